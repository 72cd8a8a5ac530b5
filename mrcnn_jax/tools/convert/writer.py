"""Pictures and their annotations become COCO JSON files: the same for the same input, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrcnn_jax.errors import DataError, listing
from mrcnn_jax.runtime import files

Content = dict[str, list[dict[str, Any]]]  # of a COCO JSON


@dataclass(frozen=True)
class Picture:
    """One image. Its annotations lack `id` and `image_id`, which they get when all are together."""

    file_name: str  # relative to the folder of images, with forward slashes
    height: int
    width: int
    annotations: list[dict[str, Any]]
    notes: tuple[tuple[str, str], ...] = ()  # what was left out or changed: what it is, and where


@dataclass(frozen=True)
class Conversion:
    """A data set that was read."""

    folder: Path  # of the images
    categories: dict[int, str]  # name of each id
    pictures: list[Picture]
    remarks: tuple[str, ...] = ()  # on all of it


def outputs(output: Path, holdout: float) -> list[Path]:
    """The files that `write` makes. Raises DataError where one exists already, ConfigError where it cannot."""
    if not 0 <= holdout < 1:
        raise DataError(f"--holdout={holdout} is no part of the images: give a number from 0 to 1, such as 0.1")
    folder = output.suffix == "" or output.is_dir()
    if output.suffix != ".json" and not (folder and holdout):
        raise DataError(
            f"--output={output}: the name of a COCO file ends in .json; a folder gets train.json and val.json, with"
            " --holdout=0.1 to part the images"
        )
    written = [output]
    if holdout:
        base = output if folder else output.parent
        written = [base / f"{'' if folder else f'{output.stem}_'}{part}.json" for part in ("train", "val")]
    for path in written:
        files.check_output(path, "--output")
        if path.exists():
            raise DataError(f"{path} exists already; remove it, or name another --output")
    return written


def assemble(conversion: Conversion, output: Path, holdout: float = 0.0, seed: int = 0) -> dict[Path, Content]:
    """The content of `output`; with `holdout` of its parts "_train" and "_val", that share of the images in the second.

    Images are numbered from 1 in the order of their names, annotations from 1 in the order of images: before they are
    parted, so that no number means two things. An image's part depends on `seed` and its name. Raises DataError when
    there is nothing to write.
    """
    pictures = sorted(conversion.pictures, key=lambda picture: picture.file_name)
    if not any(picture.annotations for picture in pictures):
        raise DataError(
            f"{conversion.folder}: none of the {len(pictures)} images has an instance; is it the right data?"
        )
    images, annotations = _numbered(pictures)
    parts = [set(range(1, len(images) + 1))]
    if holdout:
        held = _held_out([picture.file_name for picture in pictures], holdout, seed)
        parts = [parts[0] - held, held]
    contents = (
        {
            "images": [image for image in images if image["id"] in part],
            "annotations": [annotation for annotation in annotations if annotation["image_id"] in part],
            "categories": [{"id": i, "name": name} for i, name in sorted(conversion.categories.items())],
        }
        for part in parts
    )
    return dict(zip(outputs(output, holdout), contents, strict=True))


def write(contents: dict[Path, Content]) -> None:
    """Write all files beside their places, then rename them: whoever stops this before its end leaves nothing.

    Raises DataError where that is not possible.
    """
    building = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            building[path].write_text(json.dumps(content) + "\n", encoding="utf-8")
        for path, temporary in building.items():
            temporary.replace(path)
    except OSError as error:
        where = ", ".join(map(str, contents))
        raise DataError(f"{where} cannot be written ({error}); make room, or name another --output") from None
    finally:
        for temporary in building.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def notes(pictures: Sequence[Picture]) -> list[str]:
    """A line for each kind of note: how many, and the first of them by name."""
    kinds: dict[str, list[str]] = {}
    for picture in pictures:
        for kind, where in picture.notes:
            kinds.setdefault(kind, []).append(where)
    return [f"{kind} ({len(places)}): {listing(places)}" for kind, places in kinds.items()]


def summary(path: Path, content: Content) -> list[str]:
    """What a file holds: images, instances of each category, crowds."""
    real = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
    crowds = len(content["annotations"]) - len(real)
    empty = len(content["images"]) - len({annotation["image_id"] for annotation in real})
    lines = [f"{path}: {len(content['images'])} images ({empty} without an instance), {len(real)} instances"]
    lines[0] += f", {crowds} ignored regions" if crowds else ""
    counts = Counter(annotation["category_id"] for annotation in real)
    return lines + [f"  {c['id']:>6}  {c['name']}: {counts[c['id']]}" for c in content["categories"]]


def next_commands(contents: dict[Path, Content], folder: Path) -> list[str]:
    """Commands that check what was written and train on it, by a recipe that looks for train.json, val.json, images."""
    paths = list(contents)
    masks = any("segmentation" in a for content in contents.values() for a in content["annotations"])
    root = paths[0].parent
    images = os.path.relpath(folder, root)
    images = str(folder.resolve()) if images.startswith("..") else images
    settings = [f"data.root={root}"]
    for split, path, usual in (("train", paths[0], "train.json"), ("eval", paths[-1], "val.json")):
        settings += [f"data.{split}.annotations={path.name}"] if path.name != usual else []
        settings += [f"data.{split}.images={images}"] if images != "images" else []
    settings += [] if masks else ["model.mask=None"]
    check = [f"mrcnn check {shlex.quote(str(p))} --images {shlex.quote(str(folder))}" for p in paths]
    train = ["python train.py --config=configs/light_mask_rcnn.py --workdir=runs/mine"]
    train += [shlex.quote(f"--config.{setting}") for setting in settings]
    same = "  # evaluated on the images that it was trained on; --holdout keeps some apart" if len(paths) == 1 else ""
    return [*check, " \\\n    ".join(train) + same]


def _numbered(pictures: Sequence[Picture]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        images.append(
            {"id": image_id, "file_name": picture.file_name, "height": picture.height, "width": picture.width}
        )
        for fields in picture.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **fields})
    return images, annotations


def _held_out(names: Sequence[str], holdout: float, seed: int) -> set[int]:
    """Numbers, from 1, of the images to keep apart: those whose hashes come first."""
    if len(names) < 2:
        raise DataError("--holdout needs two images: one to train on, one to evaluate on")
    count = min(max(round(holdout * len(names)), 1), len(names) - 1)
    hashes = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return {i + 1 for i in sorted(range(len(names)), key=hashes.__getitem__)[:count]}

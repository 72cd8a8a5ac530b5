"""Writing of converted images as COCO JSON files, deterministically and atomically."""

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

from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.runtime import files

Annotation = dict[str, Any]  # COCO's, without `id` and `image_id`
Note = tuple[str, str]  # kind and location of what was left out or changed
Content = dict[str, list[dict[str, Any]]]  # COCO JSON


@dataclass(frozen=True)
class ConvertedImage:
    """An image with its annotations."""

    file_name: str  # relative to the folder of images, with forward slashes
    height: int
    width: int
    annotations: list[Annotation]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """A converted dataset."""

    folder: Path  # of the images
    categories: dict[int, str]  # name of each id
    images: list[ConvertedImage]
    remarks: tuple[str, ...] = ()  # on the dataset


def output_paths(output: Path, holdout: float) -> list[Path]:
    """Return the paths to write. Raises DataError if one exists, ConfigError if it cannot be written."""
    if not 0 <= holdout < 1:
        raise DataError(f"--holdout={holdout} is not a fraction of the images: give a number from 0 to 1, such as 0.1")
    is_folder = output.suffix == "" or output.is_dir()
    if output.suffix != ".json" and not (is_folder and holdout):
        folder = "a folder gets train.json and val.json, with --holdout=0.1 to split the images"
        raise DataError(f"--output={output}: the name of a COCO file ends in .json; {folder}")
    paths = [output]
    if holdout:
        base = output if is_folder else output.parent
        paths = [base / f"{'' if is_folder else f'{output.stem}_'}{split}.json" for split in ("train", "val")]
    for path in paths:
        files.check_output(path, "--output")
        if path.exists():
            raise DataError(f"{path} exists already; remove it, or name another --output")
    return paths


def build_contents(conversion: Conversion, output: Path, holdout: float = 0.0, seed: int = 0) -> dict[Path, Content]:
    """Return the COCO content by path; with `holdout`, of a training file and a validation file with that share.

    Ids count from 1 in the order of file names, over both splits. The split of an image depends on `seed` and its name.
    Raises DataError if there is no annotation.
    """
    converted = sorted(conversion.images, key=lambda image: image.file_name)
    if not any(image.annotations for image in converted):
        problem = f"none of the {len(converted)} images has an instance"
        raise DataError(f"{conversion.folder}: {problem}; is it the right folder?")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(converted, 1):
        images.append({"id": image_id, "file_name": image.file_name, "height": image.height, "width": image.width})
        for fields in image.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **fields})
    splits = [set(range(1, len(images) + 1))]
    if holdout:
        val = _validation_ids([image.file_name for image in converted], holdout, seed)
        splits = [splits[0] - val, val]
    categories = [{"id": i, "name": name} for i, name in sorted(conversion.categories.items())]
    return {
        path: {
            "images": [image for image in images if image["id"] in split],
            "annotations": [annotation for annotation in annotations if annotation["image_id"] in split],
            "categories": categories,
        }
        for path, split in zip(output_paths(output, holdout), splits, strict=True)
    }


def write_files(contents: dict[Path, Content]) -> None:
    """Write all files under temporary names, then rename them, so that an interruption leaves none.

    Raises DataError if they cannot be written.
    """
    temporary_paths = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary_paths[path].write_text(json.dumps(content) + "\n", encoding="utf-8")
        for path, temporary in temporary_paths.items():
            temporary.replace(path)
    except OSError as error:
        paths = ", ".join(map(str, contents))
        raise DataError(f"{paths} cannot be written ({error}); make room, or name another --output") from None
    finally:
        for temporary in temporary_paths.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def note_lines(images: Sequence[ConvertedImage]) -> list[str]:
    """Return a line for each kind of note, with the number and the first locations."""
    kinds: dict[str, list[str]] = {}
    for image in images:
        for kind, location in image.notes:
            kinds.setdefault(kind, []).append(location)
    return [f"{kind} ({len(locations)}): {format_list(locations)}" for kind, locations in kinds.items()]


def summary_lines(path: Path, content: Content) -> list[str]:
    """Return the numbers of images, instances and crowds of a file, and of instances of each category."""
    instances = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
    crowds = len(content["annotations"]) - len(instances)
    empty = len(content["images"]) - len({annotation["image_id"] for annotation in instances})
    lines = [f"{path}: {len(content['images'])} images ({empty} without an instance), {len(instances)} instances"]
    lines[0] += f", {crowds} crowd{'' if crowds == 1 else 's'}" if crowds else ""
    counts = Counter(annotation["category_id"] for annotation in instances)
    return lines + [f"  {c['id']:>6}  {c['name']}: {counts[c['id']]}" for c in content["categories"]]


def next_commands(contents: dict[Path, Content], folder: Path) -> list[str]:
    """Return commands that check the files and train on them, with a recipe for train.json, val.json and images."""
    paths = list(contents)
    masks = any("segmentation" in a for content in contents.values() for a in content["annotations"])
    root = paths[0].parent
    images = os.path.relpath(folder, root)
    images = str(folder.resolve()) if images.startswith("..") else images
    settings = [f"data.root={root}"]
    for split, path, default in (("train", paths[0], "train.json"), ("eval", paths[-1], "val.json")):
        settings += [f"data.{split}.annotations={path.name}"] if path.name != default else []
        settings += [f"data.{split}.images={images}"] if images != "images" else []
    settings += [] if masks else ["model.mask=None"]
    check = [f"mrcnn check {shlex.quote(str(p))} --images {shlex.quote(str(folder))}" for p in paths]
    train = ["mrcnn train --config=light_mask_rcnn --workdir=runs/mine"]
    train += [shlex.quote(f"--config.{setting}") for setting in settings]
    comment = "  # evaluates on the training images; --holdout separates some" if len(paths) == 1 else ""
    return [*check, " \\\n    ".join(train) + comment]


def _validation_ids(names: Sequence[str], holdout: float, seed: int) -> set[int]:
    """Return the ids of the validation images, those with the smallest hashes."""
    if len(names) < 2:
        raise DataError("--holdout needs at least two images, one for training and one for evaluation")
    count = min(max(round(holdout * len(names)), 1), len(names) - 1)
    hashes = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return {i + 1 for i in sorted(range(len(names)), key=hashes.__getitem__)[:count]}

"""COCO instance JSON, read and checked: what cannot be used is refused, what can be left out is left out and named.

Two severities. Entries that are no COCO, ids that are not unique, an unknown category: they mean that nobody can say
what the file means, or that it does not belong to the images; training does not start (`refusals`). The images
themselves are judged in `image_files`. Slips of single annotations are dropped, counted and named (`problems`): see
`instances`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrcnn_jax.data import annotation_checks, file_names, plausibility
from mrcnn_jax.data.categories import Categories, inspect_categories
from mrcnn_jax.data.findings import Problem, Refusal, raise_refusals
from mrcnn_jax.data.image_formats import MOST_PIXELS
from mrcnn_jax.data.json_entries import Entry, is_id, validate_entries
from mrcnn_jax.data.lvis_labels import FederatedLabels, federated_labels
from mrcnn_jax.errors import DataError, shown


@dataclass(frozen=True)
class ImageEntry:
    """One image of the JSON with the annotations that survived the checks (crowds included)."""

    id: int
    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class AnnotationFile:
    """A checked COCO JSON. Where there are refusals, what they are about is left out of the rest."""

    categories: Categories
    images: list[ImageEntry]
    problems: list[Problem]
    refusals: list[Refusal] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)  # see `plausibility`; not for scoring
    lvis: FederatedLabels | None = None  # read for scoring alone


def read(
    path: Path, image_ids: Sequence[int] = (), folder: Path | None = None, *, scoring: bool = False
) -> AnnotationFile:
    """As `inspect`, of a file without refusals. Raises DataError, which names them all, for one that has some."""
    content = inspect(path, image_ids, folder, scoring=scoring)
    raise_refusals(path, content.refusals)
    return content


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """No search for cycles, of which JSON has none: with millions of lists alive it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collector()
def inspect(
    path: Path, image_ids: Sequence[int] = (), folder: Path | None = None, *, scoring: bool = False
) -> AnnotationFile:
    """Read and check a COCO instances JSON, or one of LVIS; images stay in the order of the file.

    image_ids: keep only these images, and do not mind what is wrong with others. folder: of the images; LVIS files
    name them by address, and whether they lie in a folder of their split is seen there. scoring: keep annotations that
    can be scored although nothing can be learnt from them, and boxes as they are; see `instances.Judge`.
    Raises DataError for a file that is missing, no JSON, or without COCO's three lists; whatever else is wrong is in
    `refusals` and `problems`.
    """
    content = _load(path)
    categories, refusals = inspect_categories(content["categories"])
    images, found = _images(content["images"], image_ids, folder)
    refusals += found
    by_image, found = _by_image(content, images, image_ids)
    refusals += found
    judge = annotation_checks.AnnotationValidator(
        categories,
        masks=any(a.get("segmentation") for annotations in by_image.values() for a in annotations),
        refused=_ids(content["categories"]) - set(categories.ids),
        scoring=scoring,
    )
    for image in images:
        image.annotations.extend(judge.usable(by_image[image.id], image.height, image.width))
    chosen = {image.id for image in images}
    lvis, found = federated_labels(content["images"], content["categories"], chosen) if scoring else (None, [])
    suspicions = [] if scoring else plausibility.suspicions(categories, images, by_image)
    return AnnotationFile(categories, images, judge.problems, refusals + judge.refusals + found, suspicions, lvis)


def too_large(culprit: str, image_id: int) -> Refusal:
    """The refusal of an image of more than MOST_PIXELS."""
    advice = "cut them into tiles, or scale them down"
    return Refusal(f"images of more than {MOST_PIXELS} pixels", culprit, advice, image_id)


def _load(path: Path) -> dict[str, list[Any]]:
    """The parsed JSON, which has the three lists."""
    if not path.is_file():
        raise DataError(f"no annotation file {path}; set data.root and data.train/eval.annotations")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); see to its permissions") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); write it anew") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} is not a COCO instances file: it has no list {name!r}; add it")
    if not content["images"]:
        raise DataError(f"{path}: no images; there is nothing to load")
    return content


def _images(
    entries: Sequence[Any], chosen: Sequence[int], folder: Path | None
) -> tuple[list[ImageEntry], list[Refusal]]:
    """The images that can be used, as yet without annotations; only those `chosen`, if any are."""
    wanted = set(chosen)
    if wanted:
        entries = [e for e in entries if type(e) is dict and is_id(e.get("id")) and e["id"] in wanted]
    found, refusals = validate_entries("images", entries, ("id",), ("height", "width"))
    advice = "correct data.*.image_ids"
    kind = "image_ids asks for images that the file does not have"
    there = {entry["id"] for entry in entries} if wanted else set()
    refusals += [Refusal(kind, str(image_id), advice, image_id) for image_id in chosen if image_id not in there]
    images = []
    for entry in found:
        name = _file_name(entry, folder)
        if refusal := _image_refusal(entry, name):
            refusals.append(refusal)
        else:
            images.append(ImageEntry(entry["id"], str(name), entry["height"], entry["width"], []))
    return images, refusals


def _image_refusal(entry: Entry, name: object) -> Refusal | None:
    """What is wrong with an entry of `images` itself, or with the name of its file."""
    if name is None:
        kind, culprit, advice = "images without file_name or coco_url", "", "add the field"
    elif isinstance(name, str) and not file_names.is_unicode(name):
        kind, culprit = "file names that are not Unicode", f" has {shown(name)}"
        advice = "rename the files, and write the new names"
    elif not isinstance(name, str) or not _is_inside(name):
        kind, culprit = "file names that are no paths inside the image folder", f" has {shown(name)}"
        advice = "write them relative to it, without '..'"
    elif not all(type(side) is int and side > 0 for side in (entry["height"], entry["width"])):
        kind, culprit = "image sizes that are not whole numbers from 1 on", f" is {_size(entry)}"
        advice = "write height and width in pixels"
    elif entry["height"] * entry["width"] > MOST_PIXELS:
        return too_large(f"image {entry['id']} is {_size(entry)}", entry["id"])
    else:
        return None
    return Refusal(kind, f"image {entry['id']}{culprit}", advice, entry["id"])


def _size(entry: Entry) -> str:
    return f"{shown(entry['height'])}x{shown(entry['width'])}"


def _file_name(entry: Entry, folder: Path | None) -> object:
    """`file_name`; or, as LVIS has none, the end of `coco_url`, with the folder of its split where there is one."""
    name, url = entry.get("file_name"), entry.get("coco_url")
    if name is not None or not isinstance(url, str):
        return name
    *_, split, last = ["", *url.split("/")]
    inside = f"{split}/{last}"
    usable = _is_inside(inside) and file_names.is_unicode(inside)
    return inside if usable and (folder is None or os.path.isfile(folder / inside)) else last


def _is_inside(name: str) -> bool:
    """Whether this is the name of a file somewhere below a folder."""
    return (
        bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in name.replace("\\", "/").split("/")
    )


def _ids(entries: Sequence[Any]) -> set[int]:
    """Of all entries that have one, also of those that are refused."""
    return {entry["id"] for entry in entries if type(entry) is dict and is_id(entry.get("id"))}


def _by_image(
    content: dict[str, list[Any]], images: Sequence[ImageEntry], chosen: Sequence[int]
) -> tuple[dict[int, list[Entry]], list[Refusal]]:
    """The annotations of each of `images`; those of no image in the file are refused, unless images are `chosen`."""
    by_image: dict[int, list[Entry]] = {image.id: [] for image in images}
    entries = content["annotations"]
    if chosen:
        entries = [e for e in entries if type(e) is dict and is_id(e.get("image_id")) and e["image_id"] in by_image]
    found, refusals = validate_entries("annotations", entries, ("id", "image_id", "category_id"), ("bbox",))
    present = _ids(content["images"])
    kind, advice = "annotations of images that the file does not have", "add the image, or take them out"
    for annotation in found:
        image_id = annotation["image_id"]
        if image_id in by_image:
            by_image[image_id].append(annotation)
        elif image_id not in present:  # what is wrong with those that are present is said already
            culprit = f"annotation {annotation['id']} (image {image_id})"
            refusals.append(Refusal(kind, culprit, advice, image_id, annotation["id"]))
    return by_image, refusals

"""Reading and validation of COCO annotation files.

Invalid entries, duplicate ids and unknown categories make a file ambiguous: they are `refusals`, and training does not
start. Mistakes of single annotations are corrected or dropped, and reported: they are `problems`, see
`annotation_checks`. The image files are checked in `image_files`.
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
from mrcnn_jax.data.image_formats import MAX_PIXELS
from mrcnn_jax.data.json_entries import Entry, is_id, validate_entries
from mrcnn_jax.data.lvis_labels import FederatedLabels, federated_labels
from mrcnn_jax.errors import DataError, format_value


@dataclass(frozen=True)
class ImageEntry:
    """One image of the JSON with its usable annotations, crowds included."""

    id: int
    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """File name and id for messages."""
        return f"{format_value(self.file_name)} (id {self.id})"


@dataclass(frozen=True)
class AnnotationFile:
    """A validated COCO JSON. Refused entries are not in the other fields."""

    categories: Categories
    images: list[ImageEntry]
    problems: list[Problem]
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # see `plausibility`; empty for scoring
    lvis: FederatedLabels | None = None  # for scoring only


def read(
    path: Path, image_ids: Sequence[int] = (), folder: Path | None = None, *, scoring: bool = False
) -> AnnotationFile:
    """Read and validate a COCO JSON, as `inspect` does. Raises DataError if anything in it is refused."""
    content = inspect(path, image_ids, folder, scoring=scoring)
    raise_refusals(path, content.refusals)
    return content


@contextlib.contextmanager
def _garbage_collection_disabled() -> Iterator[None]:
    """Disable the search for reference cycles, which takes a third of the time with millions of lists alive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_garbage_collection_disabled()
def inspect(
    path: Path, image_ids: Sequence[int] = (), folder: Path | None = None, *, scoring: bool = False
) -> AnnotationFile:
    """Read and validate a COCO or LVIS instances JSON, and collect refusals and problems.

    Args:
      path: the JSON file.
      image_ids: keep these images only, and ignore errors of others; empty for all images.
      folder: the image folder. LVIS gives URLs instead of file names; the folder shows whether the images are in a
        subfolder named after their split.
      scoring: for evaluation, see `annotation_checks.AnnotationValidator`.

    Returns images in the order of the file. Raises DataError if the file is missing, is not JSON or lacks one of
    COCO's three lists.
    """
    content = _load(path)
    categories, refusals = inspect_categories(content["categories"])
    images, image_refusals = _images(content["images"], image_ids, folder)
    by_image, annotation_refusals = _by_image(content, images, image_ids)
    validator = annotation_checks.AnnotationValidator(
        categories,
        masks=any(a.get("segmentation") for annotations in by_image.values() for a in annotations),
        refused=_ids(content["categories"]) - set(categories.ids),
        scoring=scoring,
    )
    for image in images:
        image.annotations.extend(validator.validate(by_image[image.id], image.height, image.width))
    selected = {image.id for image in images}
    lvis, lvis_refusals = (
        federated_labels(content["images"], content["categories"], selected) if scoring else (None, [])
    )
    warnings = [] if scoring else plausibility.warnings(categories, images, by_image)
    refusals += [*image_refusals, *annotation_refusals, *validator.refusals, *lvis_refusals]
    return AnnotationFile(categories, images, validator.problems, refusals, warnings, lvis)


def size_limit_refusal(item: str, image_id: int) -> Refusal:
    """Return the refusal of an image of more than MAX_PIXELS."""
    advice = "cut them into tiles, or scale them down"
    return Refusal(f"images of more than {MAX_PIXELS} pixels", item, advice, image_id)


def _load(path: Path) -> dict[str, list[Any]]:
    """Return the parsed JSON. Raises DataError unless it has COCO's three lists."""
    if not path.is_file():
        raise DataError(
            f"no annotation file {path}; correct the path (data.root with data.train.annotations or"
            " data.eval.annotations)"
        )
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); export the file again") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} is not a COCO instances file: it has no list {name!r}; add it")
    if not content["images"]:
        raise DataError(f"{path}: the list 'images' is empty; add the images")
    return content


def _images(
    entries: Sequence[Any], image_ids: Sequence[int], folder: Path | None
) -> tuple[list[ImageEntry], list[Refusal]]:
    """Return the usable images, without annotations, and refusals; only images of `image_ids` if it is not empty."""
    selected = set(image_ids)
    if selected:
        entries = [e for e in entries if type(e) is dict and is_id(e.get("id")) and e["id"] in selected]
    valid, refusals = validate_entries("images", entries, ("id",), ("height", "width"))
    kind = "image_ids names images that the file does not have"
    advice = "correct data.train.image_ids or data.eval.image_ids"
    present = {entry["id"] for entry in entries} if selected else set()
    refusals += [Refusal(kind, f"image {i}", advice, i) for i in image_ids if i not in present]
    images = []
    for entry in valid:
        name = _file_name(entry, folder)
        if refusal := _image_refusal(entry, name):
            refusals.append(refusal)
        else:
            images.append(ImageEntry(entry["id"], str(name), entry["height"], entry["width"], []))
    return images, refusals


def _image_refusal(entry: Entry, name: object) -> Refusal | None:
    """Return the refusal of an entry of `images` with an invalid size or file name, else None."""
    if name is None:
        kind, detail, advice = "images without file_name or coco_url", "", "add file_name"
    elif isinstance(name, str) and not file_names.is_utf8(name):
        kind, detail = "file names that are not valid Unicode", f" has {format_value(name)}"
        advice = "rename the files, and correct file_name"
    elif not isinstance(name, str) or not _is_inside(name):
        kind, detail = "file names that are not paths inside the image folder", f" has {format_value(name)}"
        advice = "write paths relative to the image folder, without '..'"
    elif not all(type(side) is int and side > 0 for side in (entry["height"], entry["width"])):
        kind, detail = "image sizes (height x width) that are not positive integers", f" is {_size(entry)}"
        advice = "write height and width in pixels"
    elif entry["height"] * entry["width"] > MAX_PIXELS:
        return size_limit_refusal(f"image {entry['id']} is {_size(entry)}", entry["id"])
    else:
        return None
    return Refusal(kind, f"image {entry['id']}{detail}", advice, entry["id"])


def _size(entry: Entry) -> str:
    return f"{format_value(entry['height'])}x{format_value(entry['width'])}"


def _file_name(entry: Entry, folder: Path | None) -> object:
    """Return `file_name`, or for LVIS the end of `coco_url`, with the folder of its split if the file is there."""
    name, url = entry.get("file_name"), entry.get("coco_url")
    if name is not None or not isinstance(url, str):
        return name
    *_, split, last = ["", *url.split("/")]
    with_split = f"{split}/{last}"
    usable = _is_inside(with_split) and file_names.is_utf8(with_split)
    return with_split if usable and (folder is None or os.path.isfile(folder / with_split)) else last


def _is_inside(name: str) -> bool:
    """Whether this is a relative path that stays inside its folder."""
    return (
        bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in name.replace("\\", "/").split("/")
    )


def _ids(entries: Sequence[Any]) -> set[int]:
    """Return the valid ids of all entries, also of refused ones."""
    return {entry["id"] for entry in entries if type(entry) is dict and is_id(entry.get("id"))}


def _by_image(
    content: dict[str, list[Any]], images: Sequence[ImageEntry], image_ids: Sequence[int]
) -> tuple[dict[int, list[Entry]], list[Refusal]]:
    """Return the annotations of each of `images`, and refusals; with `image_ids`, other annotations are ignored."""
    by_image: dict[int, list[Entry]] = {image.id: [] for image in images}
    entries = content["annotations"]
    if image_ids:
        entries = [e for e in entries if type(e) is dict and is_id(e.get("image_id")) and e["image_id"] in by_image]
    valid, refusals = validate_entries("annotations", entries, ("id", "image_id", "category_id"), ("bbox",))
    present = _ids(content["images"])
    kind = "annotations of images that the file does not have"
    advice = "add the images, or remove the annotations"
    for annotation in valid:
        image_id = annotation["image_id"]
        if image_id in by_image:
            by_image[image_id].append(annotation)
        elif image_id not in present:  # images that are present and unusable have a refusal of their own
            item = f"annotation {annotation['id']} (image {image_id})"
            refusals.append(Refusal(kind, item, advice, image_id, annotation["id"]))
    return by_image, refusals

"""COCO instance JSON, read and checked: what cannot be used is refused, what can be left out is left out and named.

Two severities. A missing image, an image whose size disagrees with the JSON and an unknown category id are errors:
they mean that the JSON and the images do not belong together. Boxes without area and polygons with fewer than three
points are slips of annotation (the published COCO has some): they are dropped, counted and named. So are keypoints
that are not x, y, visibility for each of the category's keypoints; their instance stays, and has none labelled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mrcnn_jax.data.categories import Categories, read_categories
from mrcnn_jax.data.errors import DataError, refuse

_REQUIRED = {"images": ("id", "file_name", "height", "width"), "annotations": ("id", "image_id", "category_id", "bbox")}


class Problem(NamedTuple):
    """One thing that was left out of the data."""

    kind: str
    annotation_id: int
    image_id: int


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
    """A checked COCO JSON."""

    categories: Categories
    images: list[ImageEntry]
    problems: list[Problem]


def read(path: Path, image_ids: Sequence[int] = ()) -> AnnotationFile:
    """Read a COCO instances JSON; keep only `image_ids` when some are given. Images stay in the order of the JSON.

    Raises DataError for a file that is missing or no COCO JSON, an unknown category id, or image ids it does not have.
    """
    content = _load(path)
    images = {image["id"]: image for image in content["images"]}
    if absent := [image_id for image_id in image_ids if image_id not in images]:
        refuse(f"{path}: image_ids asks for images that the file does not have", absent, "correct data.*.image_ids")
    if image_ids:
        images = {image_id: images[image_id] for image_id in images if image_id in set(image_ids)}
    if not images:
        raise DataError(f"{path}: no images; there is nothing to load")
    categories = read_categories(path, content["categories"])
    by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for annotation in content["annotations"]:
        if annotation["image_id"] in by_image:
            by_image[annotation["image_id"]].append(annotation)
    _check_categories(path, by_image, categories)
    masks = any(a.get("segmentation") for annotations in by_image.values() for a in annotations)
    counts = categories.keypoint_counts()
    entries, problems = [], []
    for image_id, image in images.items():
        kept, dropped = _usable(by_image[image_id], masks, counts)
        entries.append(ImageEntry(image_id, image["file_name"], image["height"], image["width"], kept))
        problems += dropped
    return AnnotationFile(categories, entries, problems)


def check_images(path: Path, folder: Path, images: Sequence[ImageEntry]) -> None:
    """Compare every image file with what the JSON says of it, reading headers only.

    Raises DataError that names the missing files, or the files whose size differs from the JSON.
    """
    check_present(path, folder, [image.file_name for image in images], [image.id for image in images])
    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        sizes = list(pool.map(lambda image: _image_size(folder / image.file_name), images))
    wrong = [
        f"{image.file_name} (id {image.id}) is {size[0]}x{size[1]}, not {image.height}x{image.width}"
        for image, size in zip(images, sizes, strict=True)
        if size != (image.height, image.width)
    ]
    if wrong:
        refuse(
            f"{path}: images whose size (height x width) disagrees with the JSON",
            wrong,
            "correct height and width there",
        )


def check_present(path: Path, folder: Path, file_names: Sequence[str], ids: Sequence[int]) -> None:
    """Raise DataError that names the image files which are not in `folder`."""
    images = zip(file_names, ids, strict=True)
    missing = [f"{name} (id {image_id})" for name, image_id in images if not os.path.isfile(folder / name)]
    if missing:
        refuse(f"{path}: images that are not in {folder}", missing, "add them, or take them out of the JSON")


def _load(path: Path) -> dict[str, Any]:
    """The parsed JSON, with the fields that everything else relies on."""
    if not path.is_file():
        raise DataError(f"no annotation file {path}; set data.root and data.train/eval.annotations")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} is not a COCO instances file: it has no list {name!r}")
    for name, fields in _REQUIRED.items():
        lacking = [item.get("id", item) for item in content[name] if any(field not in item for field in fields)]
        if lacking:
            refuse(f"{path}: entries of {name!r} without one of {', '.join(fields)}", lacking, "add the field")
    return content


def _check_categories(path: Path, by_image: dict[int, list[dict[str, Any]]], categories: Categories) -> None:
    known = set(categories.ids)
    unknown = [
        f"annotation {annotation['id']} (image {image_id}) has category {annotation['category_id']}"
        for image_id, annotations in by_image.items()
        for annotation in annotations
        if annotation["category_id"] not in known
    ]
    if unknown:
        refuse(f"{path}: unknown category ids", unknown, "add the category to 'categories', or correct the id")


def _usable(
    annotations: list[dict[str, Any]], masks: bool, keypoints: dict[int, int]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The annotations of one image that can be used, cleaned, and what was left out of them.

    `masks`: the data set has segmentations, so an instance without one would teach an empty mask. `keypoints`: their
    number for each category id that has some.
    """
    kept, dropped = [], []
    for annotation in annotations:
        where = (annotation["id"], annotation["image_id"])
        if annotation["bbox"][2] <= 0 or annotation["bbox"][3] <= 0:
            dropped.append(Problem("box without area", *where))
            continue
        segmentation = annotation.get("segmentation")
        if masks and not segmentation:
            dropped.append(Problem("no segmentation", *where))
            continue
        if isinstance(segmentation, list) and segmentation:
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            if len(polygons) < len(segmentation):
                dropped.append(Problem("polygon with fewer than 3 points", *where))
            if not polygons:
                continue
            annotation = {**annotation, "segmentation": polygons}
        points = annotation.get("keypoints")
        if points and len(points) != 3 * keypoints.get(annotation["category_id"], 0):
            dropped.append(Problem("wrong number of keypoints", *where))
            annotation = {**annotation, "keypoints": []}
        kept.append(annotation)
    return kept, dropped


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as it is seen, that is after its EXIF rotation."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            exif = Image.Image.getexif(image)  # the method of PNG files would decode the pixels first
            if exif.get(0x0112, 1) >= 5:  # orientations 5..8 swap the axes
                width, height = height, width
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace the file") from None
    return height, width

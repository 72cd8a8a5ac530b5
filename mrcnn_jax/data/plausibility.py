"""What is suspicious in a COCO file that can be used: boxes of another convention, and things that are there twice.

Nothing of it is refused or left out. The check prints it, and training logs it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mrcnn_jax.data import rle
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.json_entries import Entry
from mrcnn_jax.errors import listing, shown

_EXAMINED = 1000  # images whose boxes are held against their masks
_SHARE = 0.05  # of the boxes, from which on it is no slip
_FIT = 0.5  # least IoU of a box and the extent of its mask, each grown by a pixel

_COCO = "x, y, width, height"
_ADVICE = f"bbox is {_COCO} in pixels in a COCO file"


def suspicions(categories: Categories, images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> list[str]:
    """A line for each thing that looks wrong in checked images and their annotations as they are in the file."""
    names = [(name.strip().casefold(), i) for name, i in zip(categories.names, categories.ids, strict=True)]
    files = [(os.path.normpath(image.file_name), image.id) for image in images]
    lines = [
        _format(images, by_image),
        _twice("categories of the same name", "merge each into one", names),
        _twice("image files with several ids", "give each file one id", files),
        _repeated(images, by_image),
    ]
    return [line for line in lines if line]


def _box_format(boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray) -> str:
    """A line about `bbox` (n, 4) of which too many do not fit `extents` (n, 4), x0 y0 x1 y1 of their masks; or nothing.

    sizes: (n, 2), width and height of the image of each.
    """
    readings = _readings(boxes, sizes)
    wrong = ~_fit(readings.pop(_COCO), extents)
    if not len(boxes) or wrong.mean() < _SHARE:
        return ""
    said = f"{wrong.sum():,} of {len(boxes):,} boxes ({wrong.mean():.0%}) do not fit the extent of their own masks"
    fitting = {name: _fit(corners[wrong], extents[wrong]).mean() for name, corners in readings.items()}
    best = max(fitting, key=lambda name: fitting[name])
    looks = f"they look like {best}" if fitting[best] >= 0.5 else "they fit in no other convention either"
    return f"{said}; {looks}: {_ADVICE}"


def _readings(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The x0 y0 x1 y1 (n, 4) that four numbers stand for in each convention."""
    first, second = boxes[:, :2], boxes[:, 2:]
    swapped, after = first[:, ::-1], second[:, ::-1]
    found = {
        _COCO: (first, first + second),
        "x0, y0, x1, y1": (first, second),
        "center x, center y, width, height": (first - second / 2, first + second / 2),
        "y0, x0, y1, x1": (swapped, after),
        "y, x, height, width": (swapped, swapped + after),
    }
    corners = {name: np.concatenate(pair, axis=1) for name, pair in found.items()}
    fractions = {f"{name} as fractions of the image": c * np.tile(sizes, 2) for name, c in corners.items()}
    return {**corners, **fractions}


def _fit(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """(n,) bool, whether boxes and extents x0 y0 x1 y1 are about the same."""
    grown = np.array([-1.0, -1.0, 1.0, 1.0])
    boxes, extents = boxes + grown, extents + grown
    sides = np.minimum(boxes[:, 2:], extents[:, 2:]) - np.maximum(boxes[:, :2], extents[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas = [np.maximum(corners[:, 2:] - corners[:, :2], 0).prod(axis=1) for corners in (boxes, extents)]
    return common >= _FIT * (areas[0] + areas[1] - common)


def _format(images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> str:
    """A line about the convention of the boxes, from evenly spread images; or nothing."""
    boxes, extents, sizes = [], [], []
    for image in images[:: max(1, len(images) // _EXAMINED)]:
        for annotation in by_image[image.id]:
            box = annotation["bbox"]
            if not annotation.get("iscrowd") and _are_numbers(box) and len(box) == 4 and min(box[2:]) > 0:
                boxes.append([float(number) for number in box])
                extents.append(_extent(annotation.get("segmentation"), image.height))
                sizes.append((image.width, image.height))
    if not boxes:
        return ""
    masked = np.array([extent is not None for extent in extents])
    arrays = np.array(boxes), np.array(sizes, float)
    known = np.array([extent for extent in extents if extent is not None]).reshape(-1, 4)
    line = _box_format(arrays[0][masked], known, arrays[1][masked]) if masked.any() else ""
    return line or _format_by_images(*arrays)


def _format_by_images(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """As `_box_format`, where masks say nothing and the size of the image is all that can be compared with."""
    if np.all(boxes <= 1):
        return f"no box has a number above 1; they look like fractions of the image: {_ADVICE}"
    beyond = np.any(boxes[:, :2] + boxes[:, 2:] > sizes + 1, axis=1)
    if beyond.mean() >= _SHARE and np.all((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + 1)):
        said = f"{beyond.sum():,} of {len(boxes):,} boxes ({beyond.mean():.0%}) reach beyond their images"
        return f"{said}; they look like x0, y0, x1, y1: {_ADVICE}"
    return ""


def _extent(segmentation: Any, height: int) -> list[float] | None:
    """x0 y0 x1 y1 of a mask in an image of this height; None where it has none that can be read."""
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if _are_numbers(p) and len(p) >= 6 and len(p) % 2 == 0]
        if not polygons:
            return None
        xs, ys = [x for p in polygons for x in p[0::2]], [y for p in polygons for y in p[1::2]]
        return [float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))]
    try:
        ends = np.cumsum(rle.runs(segmentation)) if isinstance(segmentation, dict) else np.zeros(0, int)
    except (KeyError, TypeError, ValueError):
        return None
    stop = ends[1::2]  # of each run of ones
    first = ends[0::2][: len(stop)]
    first, last = first[first < stop], stop[first < stop] - 1
    if not len(first):
        return None
    columns, rows = (first // height, last // height), (first % height, last % height)
    if np.any(columns[0] < columns[1]):  # a run that goes on at the top of the next column
        return [float(columns[0].min()), 0.0, float(columns[1].max() + 1), float(height)]
    return [float(columns[0].min()), float(rows[0].min()), float(columns[1].max() + 1), float(rows[1].max() + 1)]


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return False
    return all(abs(value) <= 1e9 for value in values)  # NaN is not


def _twice(kind: str, advice: str, pairs: Iterable[tuple[str, int]]) -> str:
    """A line about names that several ids have; or nothing."""
    owners: dict[str, list[int]] = defaultdict(list)
    for name, number in pairs:
        owners[name].append(number)
    named = [f"{shown(name)} (ids {listing(ids)})" for name, ids in owners.items() if len(ids) > 1]
    return f"{kind} ({len(named)}): {listing(named)}; {advice}" if named else ""


def _repeated(images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> str:
    """A line about annotations with the category, box, mask and keypoints of another one in their image; or nothing."""
    named = []
    for image in images:
        earlier: dict[Hashable, list[Entry]] = defaultdict(list)
        for annotation in by_image[image.id]:
            try:
                alike = earlier[annotation["category_id"], *annotation["bbox"]]
            except TypeError:  # something else than a list of numbers, which is named elsewhere
                continue
            if same := next((other for other in alike if _same(annotation, other)), None):
                named.append(f"{annotation['id']} = {same['id']} (image {image.id})")
            alike.append(annotation)
    return f"annotations that are there twice ({len(named)}): {listing(named)}; take one out" if named else ""


def _same(one: Entry, other: Entry) -> bool:
    return all(one.get(name) == other.get(name) for name in ("segmentation", "keypoints", "iscrowd"))

"""Warnings about a valid COCO file: boxes in another format, and duplicate categories, files and annotations.

Nothing is refused or dropped. `mrcnn check` prints the warnings, and training logs them.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mrcnn_jax.data import rle
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.json_entries import Entry
from mrcnn_jax.errors import format_list, format_value

_MAX_IMAGES = 1000  # images whose boxes are compared with their masks
_MIN_FRACTION = 0.05  # of boxes that do not match, for a warning
_MIN_IOU = 0.5  # of a matching box and the extent of its mask, each enlarged by a pixel

_COCO_FORMAT = "x, y, width, height"
_ADVICE = f"write bbox as {_COCO_FORMAT} in pixels"


def warnings(categories: Categories, images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> list[str]:
    """Return a line for each warning about valid images and their annotations as they are in the file."""
    names = [(name.strip().casefold(), i) for name, i in zip(categories.names, categories.ids, strict=True)]
    files = [(os.path.normpath(image.file_name), image.id) for image in images]
    lines = [
        _box_format_warning(images, by_image),
        _duplicate_names("categories with the same name", "merge them into one", names),
        _duplicate_names("image files with several ids", "give each file one id", files),
        _duplicate_annotations(images, by_image),
    ]
    return [line for line in lines if line]


def _box_format_by_masks(boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray) -> str:
    """Return a warning if too many `bbox` (n, 4) do not match the `extents` (n, 4) x0 y0 x1 y1 of their masks.

    sizes: (n, 2), width and height of the image of each box.
    """
    corners_by_format = _convert_from_formats(boxes, sizes)
    wrong = ~_match(corners_by_format.pop(_COCO_FORMAT), extents)
    if not len(boxes) or wrong.mean() < _MIN_FRACTION:
        return ""
    finding = f"{wrong.sum():,} of {len(boxes):,} boxes ({wrong.mean():.0%}) do not match the extent of their masks"
    matching = {name: _match(corners[wrong], extents[wrong]).mean() for name, corners in corners_by_format.items()}
    best = max(matching, key=lambda name: matching[name])
    guess = f"they look like {best}" if matching[best] >= 0.5 else "their format is not recognized"
    return f"{finding}; {guess}: {_ADVICE}"


def _convert_from_formats(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Return x0 y0 x1 y1 (n, 4) for each format that the four numbers could have."""
    first, second = boxes[:, :2], boxes[:, 2:]
    first_swapped, second_swapped = first[:, ::-1], second[:, ::-1]
    pairs = {
        _COCO_FORMAT: (first, first + second),
        "x0, y0, x1, y1": (first, second),
        "center x, center y, width, height": (first - second / 2, first + second / 2),
        "y0, x0, y1, x1": (first_swapped, second_swapped),
        "y, x, height, width": (first_swapped, first_swapped + second_swapped),
    }
    corners = {name: np.concatenate(pair, axis=1) for name, pair in pairs.items()}
    fractions = {f"{name} as fractions of the image": c * np.tile(sizes, 2) for name, c in corners.items()}
    return {**corners, **fractions}


def _match(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Return whether boxes and extents x0 y0 x1 y1 have an IoU of _MIN_IOU, (n,) bool."""
    margin = np.array([-1.0, -1.0, 1.0, 1.0])
    boxes, extents = boxes + margin, extents + margin
    sides = np.minimum(boxes[:, 2:], extents[:, 2:]) - np.maximum(boxes[:, :2], extents[:, :2])
    intersection = np.maximum(sides, 0).prod(axis=1)
    areas = [np.maximum(corners[:, 2:] - corners[:, :2], 0).prod(axis=1) for corners in (boxes, extents)]
    return intersection >= _MIN_IOU * (areas[0] + areas[1] - intersection)


def _box_format_warning(images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> str:
    """Return a warning about the format of the boxes, from evenly spaced images, or an empty string."""
    rows = []
    for image in images[:: max(1, len(images) // _MAX_IMAGES)]:
        for annotation in by_image[image.id]:
            box = annotation["bbox"]
            if not annotation.get("iscrowd") and _are_numbers(box) and len(box) == 4 and min(box[2:]) > 0:
                rows.append((*box, *_mask_extent(annotation.get("segmentation")), image.width, image.height))
    if not rows:
        return ""
    boxes, extents, sizes = np.split(np.array(rows, float), [4, 8], axis=1)
    masked = ~np.isnan(extents[:, 0])
    by_masks = _box_format_by_masks(boxes[masked], extents[masked], sizes[masked])
    return by_masks or _box_format_by_image_size(boxes, sizes)


def _box_format_by_image_size(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """Return a warning as `_box_format_by_masks`, from a comparison with the image size, for boxes without masks."""
    if np.all(boxes <= 1):
        return f"no box has a number above 1; they look like fractions of the image: {_ADVICE}"
    outside = np.any(boxes[:, :2] + boxes[:, 2:] > sizes + 1, axis=1)
    if outside.mean() >= _MIN_FRACTION and np.all((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + 1)):
        finding = f"{outside.sum():,} of {len(boxes):,} boxes ({outside.mean():.0%}) reach beyond their images"
        return f"{finding}; they look like x0, y0, x1, y1: {_ADVICE}"
    return ""


def _mask_extent(segmentation: Any) -> tuple[float, float, float, float]:
    """Return x0 y0 x1 y1 of a mask, NaN if there is none or it is invalid."""
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if _are_numbers(p) and len(p) >= 6 and len(p) % 2 == 0]
        if polygons:
            xs, ys = [x for p in polygons for x in p[0::2]], [y for p in polygons for y in p[1::2]]
            return min(xs), min(ys), max(xs), max(ys)
    elif isinstance(segmentation, dict):
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            x, y, w, h = rle.bounding_box(segmentation)
            if w:
                return x, y, x + w, y + h
    return math.nan, math.nan, math.nan, math.nan


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return False
    return all(abs(value) <= 1e9 for value in values)  # False for NaN


def _duplicate_names(kind: str, advice: str, pairs: Iterable[tuple[str, int]]) -> str:
    """Return a warning about names that have several ids, or an empty string."""
    ids_by_name: dict[str, list[int]] = defaultdict(list)
    for name, number in pairs:
        ids_by_name[name].append(number)
    items = [f"{format_value(name)} (ids {format_list(ids)})" for name, ids in ids_by_name.items() if len(ids) > 1]
    return f"{kind} ({len(items)}): {format_list(items)}; {advice}" if items else ""


def _duplicate_annotations(images: Sequence[Any], by_image: Mapping[int, Sequence[Entry]]) -> str:
    """Return a warning about annotations with the category, box, mask and keypoints of another one in their image."""
    items = []
    for image in images:
        earlier: dict[Hashable, list[Entry]] = defaultdict(list)
        for annotation in by_image[image.id]:
            try:
                candidates = earlier[annotation["category_id"], *annotation["bbox"]]
            except TypeError:  # not a list of numbers, which `annotation_checks` reports
                continue
            if same := next((other for other in candidates if _is_duplicate(annotation, other)), None):
                items.append(f"{annotation['id']} = {same['id']} (image {image.id})")
            candidates.append(annotation)
    return f"duplicate annotations ({len(items)}): {format_list(items)}; remove one of each pair" if items else ""


def _is_duplicate(one: Entry, other: Entry) -> bool:
    return all(one.get(name) == other.get(name) for name in ("segmentation", "keypoints", "iscrowd"))

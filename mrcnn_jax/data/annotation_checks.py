"""The rules for one annotation: what of it is refused, and what of it can be used.

What pycocotools and NumPy are given later has passed here: pycocotools trusts its input, and a polygon that reaches
out far enough makes it write beyond its memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import rle
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.findings import Problem, Refusal
from mrcnn_jax.data.json_entries import Entry
from mrcnn_jax.errors import shown

Box = tuple[float, float, float, float]  # x0 y0 x1 y1

_THINNEST = 0.01  # pixels; a mask could not be drawn inside a thinner box
_LONGEST = 10_000_000  # pixels of a polygon's outline, for each of which pycocotools takes 40 bytes and more

BAD_BOX = "box that is not four finite numbers"
EMPTY_BOX = "box without area"
THIN_BOX = "box thinner than 1/100 pixel"
OUTER_BOX = "box outside the image"
CLIPPED_BOX = "part of a box beyond the image"
NO_MASK = "no segmentation (the box stays)"
BAD_MASK = "segmentation that is neither polygons nor RLE"
BAD_RLE = "RLE that cannot be read"
SHORT_POLYGON = "polygon with fewer than 3 points"
ODD_POLYGON = "polygon with an odd number of coordinates"
BAD_POLYGON = "polygon with coordinates that are not finite numbers"
FAR_POLYGON = "polygon that reaches far beyond the image"
LONG_POLYGON = "polygon with an outline of more than 10 million pixels"
UNSEEN_MASK = "segmentation without a pixel in the image"
STRAY_MASK = "segmentation without a pixel in its box"
BAD_KEYPOINTS = "keypoints that are not finite numbers"
MISCOUNTED_KEYPOINTS = "wrong number of keypoints"
OUTER_KEYPOINTS = "keypoints outside the image"
BAD_AREA = "area that is not a finite number"
ZERO_AREA = "area of 0 (that of the mask or the box counts)"

# What leaves an instance that has a segmentation without a mask.
MASK_FAULTS = (
    BAD_MASK,
    BAD_RLE,
    SHORT_POLYGON,
    ODD_POLYGON,
    BAD_POLYGON,
    FAR_POLYGON,
    LONG_POLYGON,
    UNSEEN_MASK,
    STRAY_MASK,
)


class _Unusable(Exception):
    """A box or a mask cannot be used; its argument, if any, is the kind of problem."""


class AnnotationValidator:
    """Goes through annotations whose ids are known to be sound, and collects what is wrong with them.

    A mask or keypoints that cannot be used are left out, and the box stays. Without a usable box nothing can be learned
    from an instance, and it is dropped.

    masks: the data set has segmentations, so that an instance without one is named. refused: ids of categories about
    which everything is said; their annotations are left out without a word. scoring: for evaluation, which scores
    boxes and masks as they are in the file, also those that lie outside the image or of which nothing is seen; there
    an unusable box becomes None, and the rest of the annotation stays.
    """

    def __init__(self, categories: Categories, *, masks: bool, refused: Iterable[int] = (), scoring: bool = False):
        self.problems: list[Problem] = []
        self.refusals: list[Refusal] = []
        self._scoring = scoring
        self._categories, self._masks, self._refused = frozenset(categories.ids), masks, frozenset(refused)
        self._keypoints = categories.keypoint_counts()

    def usable(self, annotations: Sequence[Entry], height: int, width: int) -> list[Entry]:
        """Those of one image's annotations that can be used, cleaned."""
        kept = []
        for annotation in annotations:
            if refusal := self._refusal(annotation, height, width):
                if annotation["category_id"] not in self._refused:
                    self.refusals.append(refusal)
                continue
            kinds: list[str] = []
            cleaned = self._clean(annotation, height, width, kinds)
            if cleaned is not None:
                kept.append(cleaned)
            for kind in dict.fromkeys(kinds):
                self.problems.append(Problem(kind, annotation["id"], annotation["image_id"]))
        return kept

    def _refusal(self, annotation: Entry, height: int, width: int) -> Refusal | None:
        size = _size(annotation.get("segmentation"))
        if annotation["category_id"] not in self._categories:
            kind, what = "unknown category ids", f"category {annotation['category_id']}"
            advice = "add the category to 'categories', or correct the id"
        elif annotation.get("iscrowd") not in (0, 1, None):
            crowd = annotation["iscrowd"]
            kind, what = "iscrowd that is neither 0 nor 1", f'"{shown(crowd)}"' if type(crowd) is str else shown(crowd)
            advice = "write the number 1 for a group of objects that share a mask, else 0, without quotes"
        elif size is not None and size != [height, width]:
            kind, what = "RLE of another size than its image", f"{size[0]}x{size[1]}, not {height}x{width}"
            advice = "encode the masks anew, or correct the image's height and width"
        else:
            return None
        ids = annotation["image_id"], annotation["id"]
        return Refusal(kind, f"annotation {ids[1]} (image {ids[0]}) has {what}", advice, *ids)

    def _clean(self, annotation: Entry, height: int, width: int, kinds: list[str]) -> Entry | None:
        """The annotation without what is wrong with it, whose `kinds` are appended; None if it cannot be used."""
        changes: dict[str, Any] = {}
        box = None
        try:
            _check_box(annotation["bbox"])
            if not self._scoring:
                box, whole = _visible_box(annotation["bbox"], height, width)
                if not whole:
                    kinds.append(CLIPPED_BOX)
                    changes["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        except _Unusable as unusable:
            kinds += unusable.args
            if not self._scoring:
                return None
            changes["bbox"] = None
        segmentation = annotation.get("segmentation")
        if segmentation:
            try:
                kept = _usable_mask(segmentation, box, height, width, kinds)
            except _Unusable as unusable:
                kinds += unusable.args
                kept = []
            if kept is not segmentation:
                changes["segmentation"] = kept
        else:
            if self._masks:
                kinds.append(NO_MASK)
            if segmentation is not None and type(segmentation) is not list:
                changes["segmentation"] = []
        points = annotation.get("keypoints")
        if points and (kind := _keypoint_fault(points, self._keypoints.get(annotation["category_id"], 0))):
            kinds.append(kind)
            changes["keypoints"] = []
        elif points and not self._scoring and not _are_inside(points, height, width):
            kinds.append(OUTER_KEYPOINTS)  # `sample.make_sample` leaves them out; the others stay
        annotation = _with_values(annotation, kinds)
        return {**annotation, **changes} if changes else annotation


def _with_values(annotation: Entry, kinds: list[str]) -> Entry:
    """Without fields that may be missing and are null, and without an area that is 0 or no number."""
    unfit = [name for name in ("area", "iscrowd") if annotation.get(name, 0) is None]
    area = annotation.get("area")
    if area is not None and (area == 0 or not _is_area(area)):
        kinds.append(ZERO_AREA if _is_area(area) else BAD_AREA)
        unfit.append("area")
    return {name: value for name, value in annotation.items() if name not in unfit} if unfit else annotation


def _check_box(bbox: Any) -> None:
    """Raise _Unusable for what is no box."""
    try:
        x, y, w, h = bbox
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        raise _Unusable(BAD_BOX)
    if w <= 0 or h <= 0:
        raise _Unusable(EMPTY_BOX)


def _visible_box(bbox: Sequence[float], height: int, width: int) -> tuple[Box, bool]:
    """The part of a box that lies in the image, and whether it is all of it but for a pixel. Raises _Unusable."""
    x, y, w, h = bbox
    x1, y1 = x + w, y + h
    if x >= width or y >= height or x1 <= 0 or y1 <= 0:
        raise _Unusable(OUTER_BOX)
    box = (max(x, 0), max(y, 0), min(x1, width), min(y1, height))
    if box[2] - box[0] < _THINNEST or box[3] - box[1] < _THINNEST:
        raise _Unusable(THIN_BOX)
    return box, x >= -1 and y >= -1 and x1 <= width + 1 and y1 <= height + 1


def _usable_mask(segmentation: Any, box: Box | None, height: int, width: int, kinds: list[str]) -> Any:
    """The segmentation, or those of its polygons that can be used. Raises _Unusable.

    box: where some of it must be seen; None: it need not be.
    """
    if type(segmentation) is list:
        return _usable_polygons(segmentation, box, height, width, kinds)
    if type(segmentation) is not dict:
        raise _Unusable(BAD_MASK)
    if _size(segmentation) is None:
        raise _Unusable(BAD_RLE)
    try:
        runs = rle.runs(segmentation)
    except (KeyError, ValueError):
        raise _Unusable(BAD_RLE) from None
    if box is not None:
        _check_seen(runs, box, height)
    return segmentation


def _usable_polygons(
    polygons: list[Any], box: Box | None, height: int, width: int, kinds: list[str]
) -> list[list[float]]:
    """Those that pycocotools may be given; `polygons` itself if it is all of them. Raises _Unusable."""
    usable, seen, reach = [], False, max(height, width)
    for polygon in polygons:
        if kind := _polygon_fault(polygon):
            kinds.append(kind)
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        extent = (min(xs), min(ys), max(xs), max(ys))
        if min(extent) < -reach or max(extent) > 2 * reach:
            kinds.append(FAR_POLYGON)
            continue
        if len(xs) * max(extent[2] - extent[0], extent[3] - extent[1]) > _LONGEST and _outline(xs, ys) > _LONGEST:
            kinds.append(LONG_POLYGON)
            continue
        usable.append(polygon)
        seen = seen or box is None or _is_surely_seen(xs, ys, extent, box)
    if not usable:
        raise _Unusable
    if not seen and box is not None:
        _check_seen(rle.runs(coco_mask.merge(coco_mask.frPyObjects(usable, height, width))), box, height)
    return usable if len(usable) < len(polygons) else polygons


def _polygon_fault(polygon: Any) -> str | None:
    if type(polygon) is not list:
        return BAD_MASK
    if len(polygon) < 6:
        return SHORT_POLYGON
    if len(polygon) % 2:
        return ODD_POLYGON
    return None if _all_finite(polygon) else BAD_POLYGON


def _outline(xs: list[float], ys: list[float]) -> float:
    """The length of a polygon's outline in steps from pixel to pixel, straight or diagonal."""
    steps = np.maximum(np.abs(np.diff(xs, append=xs[0])), np.abs(np.diff(ys, append=ys[0])))
    return float(steps.sum())


def _is_surely_seen(xs: list[float], ys: list[float], extent: Box, box: Box) -> bool:
    """A polygon that must have pixels, at a tenth of the cost of drawing it: two pixels wide, and inside its box.

    The area that it winds around is the one that it covers unless it goes around twice, which shows in an area larger
    than its extent or in its first corner coming again. False does not mean that there are none.
    """
    x0, y0, x1, y1 = extent
    if x0 < box[0] - 1 or y0 < box[1] - 1 or x1 > box[2] + 1 or y1 > box[3] + 1:
        return False
    twice = abs(sum(map(mul, xs, ys[1:])) - sum(map(mul, ys, xs[1:])) + xs[-1] * ys[0] - xs[0] * ys[-1])
    w, h = x1 - x0, y1 - y0
    if not 4 * (w + h) <= twice <= 2 * w * h:
        return False
    return xs[0] not in xs[1:-1] or (xs[0], ys[0]) not in zip(xs[1:-1], ys[1:-1], strict=True)


def _check_seen(runs: np.ndarray, box: Box, height: int) -> None:
    """Raise _Unusable for a mask without a pixel, or without one in those that the box touches."""
    ends = np.cumsum(runs)
    middle = len(runs) // 4 * 2 + 1
    if middle < len(runs) and runs[middle]:  # mostly one look at the middle of the mask will do
        column, row = divmod(int(ends[middle]) - (int(runs[middle]) + 1) // 2, height)
        if box[0] <= column < box[2] and box[1] <= row < box[3]:
            return
    if not runs[1::2].any():
        raise _Unusable(UNSEEN_MASK)
    window = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    if not rle.crop(runs, height, window).any():
        raise _Unusable(STRAY_MASK)


def _keypoint_fault(points: Any, count: int) -> str | None:
    if type(points) is not list or not _all_finite(points) or not _all_finite([abs(point) for point in points]):
        return BAD_KEYPOINTS  # of whole numbers, even those beyond floating point may cancel out in a sum
    return None if len(points) == 3 * count else MISCOUNTED_KEYPOINTS


def _are_inside(points: list[float], height: int, width: int) -> bool:
    """Whether the labeled keypoints are in the image, from the edge of its first pixel to that of its last."""
    labeled = zip(points[0::3], points[1::3], points[2::3], strict=True)
    return all(v <= 0 or (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5) for x, y, v in labeled)


def _all_finite(numbers: list[Any]) -> bool:
    """Numbers whose sum is finite, which no infinity or NaN can be in."""
    try:
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _is_area(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _size(segmentation: Any) -> list[int] | None:
    """Height and width that an RLE says; None if it does not say whole numbers, or is no RLE."""
    size = segmentation.get("size") if type(segmentation) is dict else None
    sound = type(size) is list and len(size) == 2 and type(size[0]) is int and type(size[1]) is int
    return size if sound else None


def readable_mask(segmentation: Any, height: int, width: int) -> Any:
    """A segmentation that pycocotools may be given as it is; None for one of which something is wrong."""
    kinds: list[str] = []
    try:
        kept = _usable_mask(segmentation, None, height, width, kinds)
    except _Unusable:
        return None
    return None if kinds else kept

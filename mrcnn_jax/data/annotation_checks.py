"""Validation of single COCO annotations: which are refused, which are dropped, and which fields are corrected."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.findings import Problem, Refusal
from mrcnn_jax.data.json_entries import Entry
from mrcnn_jax.data.segmentation_checks import Box, UnusableError, all_finite, check_segmentation, rle_size
from mrcnn_jax.errors import format_value

_MIN_BOX_SIDE = 0.01  # pixels; a mask cannot be rasterized inside a thinner box

INVALID_BOX = "bbox that is not four finite numbers (annotation dropped)"
EMPTY_BOX = "bbox without area (annotation dropped)"
THIN_BOX = "bbox thinner than 1/100 pixel (annotation dropped)"
BOX_OUTSIDE_IMAGE = "bbox outside the image (annotation dropped)"
CLIPPED_BOX = "bbox reaching beyond the image (clipped)"
MISSING_SEGMENTATION = "no segmentation (bbox used without a mask)"
INVALID_KEYPOINTS = "keypoints that are not finite numbers (dropped)"
WRONG_KEYPOINT_COUNT = "wrong number of keypoints (dropped)"
KEYPOINTS_OUTSIDE_IMAGE = "keypoints outside the image (treated as not labeled)"
INVALID_AREA = "area that is not a finite number (computed from the mask or bbox)"
ZERO_AREA = "area of 0 (computed from the mask or bbox)"


class AnnotationValidator:
    """Validates annotations whose ids are valid; collects `problems` and `refusals`.

    An invalid mask or invalid keypoints are dropped and the box stays. An annotation without a usable box is dropped.

    Args:
      categories: the known categories.
      masks: the dataset has segmentations, so that annotations without one are reported.
      refused: ids of categories that are refused themselves; their annotations are dropped without a report.
      scoring: for evaluation, which scores boxes and masks as they are in the file, also those outside the image. An
        unusable box becomes None, and the rest of the annotation stays.
    """

    def __init__(self, categories: Categories, *, masks: bool, refused: Iterable[int] = (), scoring: bool = False):
        self.problems: list[Problem] = []
        self.refusals: list[Refusal] = []
        self._scoring = scoring
        self._categories, self._masks, self._refused = frozenset(categories.ids), masks, frozenset(refused)
        self._keypoint_counts = categories.keypoint_counts()

    def validate(self, annotations: Sequence[Entry], height: int, width: int) -> list[Entry]:
        """Return the usable annotations of one image, corrected; the arguments do not change."""
        valid = []
        for annotation in annotations:
            if refusal := self._refusal(annotation, height, width):
                if annotation["category_id"] not in self._refused:
                    self.refusals.append(refusal)
                continue
            kinds: list[str] = []
            corrected = self._correct(annotation, height, width, kinds)
            if corrected is not None:
                valid.append(corrected)
            for kind in dict.fromkeys(kinds):
                self.problems.append(Problem(kind, annotation["id"], annotation["image_id"]))
        return valid

    def _refusal(self, annotation: Entry, height: int, width: int) -> Refusal | None:
        size = rle_size(annotation.get("segmentation"))
        if annotation["category_id"] not in self._categories:
            kind, what = "unknown category ids", f"has category_id {annotation['category_id']}"
            advice = "add the category to 'categories', or correct category_id"
        elif annotation.get("iscrowd") not in (0, 1, None):
            crowd = annotation["iscrowd"]
            text = f'"{format_value(crowd)}"' if type(crowd) is str else format_value(crowd)
            kind, what = "iscrowd that is neither 0 nor 1", f"has iscrowd {text}"
            advice = "write the number 1 for a group of objects that share a mask, else 0, without quotes"
        elif size is not None and size != [height, width]:
            kind = "RLE whose size (height x width) differs from its image"
            what = f"has an RLE of {size[0]}x{size[1]}, not {height}x{width}"
            advice = "encode the masks again, or correct height and width of the image"
        else:
            return None
        ids = annotation["image_id"], annotation["id"]
        return Refusal(kind, f"annotation {ids[1]} (image {ids[0]}) {what}", advice, *ids)

    def _correct(self, annotation: Entry, height: int, width: int, kinds: list[str]) -> Entry | None:
        """Return the annotation without what is wrong with it, or None if it is dropped; appends to `kinds`."""
        changes: dict[str, Any] = {}
        try:
            box = self._correct_box(annotation["bbox"], height, width, kinds, changes)
        except UnusableError as error:
            kinds += error.args
            if not self._scoring:
                return None
            box, changes["bbox"] = None, None
        segmentation, points = annotation.get("segmentation"), annotation.get("keypoints")
        usable = self._correct_segmentation(segmentation, box, height, width, kinds)
        if usable is not segmentation:
            changes["segmentation"] = usable
        if points and (kind := _keypoint_problem(points, self._keypoint_counts.get(annotation["category_id"], 0))):
            kinds.append(kind)
            changes["keypoints"] = []
        elif points and not self._scoring and not _all_inside(points, height, width):
            kinds.append(KEYPOINTS_OUTSIDE_IMAGE)  # `sample.make_sample` drops them; the others stay
        annotation = _drop_unusable_fields(annotation, kinds)
        return {**annotation, **changes} if changes else annotation

    def _correct_box(self, bbox: Any, height: int, width: int, kinds: list[str], changes: dict[str, Any]) -> Box | None:
        """Return x0 y0 x1 y1 of the box inside the image, or None for scoring. Raises UnusableError."""
        try:
            x, y, w, h = bbox
            finite = math.isfinite(x + y + w + h)
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise UnusableError(INVALID_BOX)
        if w <= 0 or h <= 0:
            raise UnusableError(EMPTY_BOX)
        if self._scoring:
            return None
        x1, y1 = x + w, y + h
        if x >= width or y >= height or x1 <= 0 or y1 <= 0:
            raise UnusableError(BOX_OUTSIDE_IMAGE)
        box = (max(x, 0), max(y, 0), min(x1, width), min(y1, height))
        if box[2] - box[0] < _MIN_BOX_SIDE or box[3] - box[1] < _MIN_BOX_SIDE:
            raise UnusableError(THIN_BOX)
        if x < -1 or y < -1 or x1 > width + 1 or y1 > height + 1:  # a pixel more is a matter of rounding
            kinds.append(CLIPPED_BOX)
            changes["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        return box

    def _correct_segmentation(
        self, segmentation: Any, box: Box | None, height: int, width: int, kinds: list[str]
    ) -> Any:
        """Return the usable part of a segmentation, which is itself if all of it is usable."""
        if not segmentation:
            if self._masks:
                kinds.append(MISSING_SEGMENTATION)
            return segmentation if segmentation is None or type(segmentation) is list else []
        try:
            return check_segmentation(segmentation, box, height, width, kinds)
        except UnusableError as error:
            kinds += error.args
            return []


def _drop_unusable_fields(annotation: Entry, kinds: list[str]) -> Entry:
    """Remove `area` and `iscrowd` that are null, and an `area` that is 0 or invalid; appends to `kinds`."""
    unusable = [name for name in ("area", "iscrowd") if annotation.get(name, 0) is None]
    area = annotation.get("area")
    if area is not None and (area == 0 or not _is_area(area)):
        kinds.append(ZERO_AREA if _is_area(area) else INVALID_AREA)
        unusable.append("area")
    return {name: value for name, value in annotation.items() if name not in unusable} if unusable else annotation


def _keypoint_problem(points: Any, count: int) -> str | None:
    # Integers too large for floating point can cancel out in a sum, so their absolute values are summed too.
    if type(points) is not list or not all_finite(points) or not all_finite([abs(point) for point in points]):
        return INVALID_KEYPOINTS
    return None if len(points) == 3 * count else WRONG_KEYPOINT_COUNT


def _all_inside(points: list[float], height: int, width: int) -> bool:
    """Whether the labeled keypoints lie in the image, whose pixel centers have integer coordinates in COCO."""
    labeled = zip(points[0::3], points[1::3], points[2::3], strict=True)
    return all(v <= 0 or (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5) for x, y, v in labeled)


def _is_area(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max

"""One image as one table sees it: what is true, what was detected, and how much they overlap.

Letters: D detections, G annotated instances that count, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

FOREGROUND = 0.5  # overlap from which a detection has found an instance
Record = dict[str, Any]  # an annotation or a result record


class ImageOverlaps(NamedTuple):
    """Detections best first. Classes are places in `Analysis.categories`."""

    found: list[Record]  # D
    truths: list[Record]  # G
    is_ignored: list[Record]  # annotations that are neither hit nor missed: crowds, people without keypoints
    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    true_classes: NDArray[np.int64]  # (G,)
    pairwise_overlaps: NDArray[np.float64]  # (D, G), of whatever classes
    excused: NDArray[np.bool_]  # (D,), lies in something ignored of its class: no error where it finds nothing


def image_overlaps(
    iou_type: str,
    truths: Sequence[Record],
    found: Sequence[Record],
    class_of: dict[int, int],
    sigmas: NDArray[np.float64],
    partial: frozenset[int] = frozenset(),
) -> ImageOverlaps:
    """Annotations and detections, best first, of one image; masks are run lengths in both.

    `partial`: categories of which not every instance is annotated.
    """
    counted = [truth for truth in truths if not is_ignored(truth, iou_type)]
    left_out = [truth for truth in truths if is_ignored(truth, iou_type)]
    ids = np.array([record["category_id"] for record in found], np.int64)
    of_class = ids[:, None] == np.array([truth["category_id"] for truth in left_out], np.int64)[None]
    inside = pairwise_overlaps(iou_type, found, left_out, True, sigmas) > FOREGROUND
    return ImageOverlaps(
        found=list(found),
        truths=counted,
        ignored=left_out,
        scores=np.array([record["score"] for record in found], np.float64),
        classes=np.array([class_of[record["category_id"]] for record in found], np.int64),
        true_classes=np.array([class_of[truth["category_id"]] for truth in counted], np.int64),
        overlaps=pairwise_overlaps(iou_type, found, counted, False, sigmas),
        excused=(inside & of_class).any(axis=1) | np.isin(ids, list(partial)),
    )


def is_ignored(truth: Record, iou_type: str) -> bool:
    """Whether pycocotools leaves an annotation out of this table."""
    return bool(truth["iscrowd"]) or (iou_type == "keypoints" and not truth["num_keypoints"])


def pairwise_overlaps(
    iou_type: str, found: Sequence[Record], truths: Sequence[Record], crowds: bool, sigmas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """IoU or OKS (D, G). In `crowds` it is the share of the detection that lies in each."""
    if not found or not truths:
        return np.zeros((len(found), len(truths)))
    if iou_type == "keypoints":
        return np.stack([object_keypoint_similarity(found, truth, sigmas) for truth in truths], axis=1)
    field = "bbox" if iou_type == "bbox" else "segmentation"
    sides = [[record[field] for record in records] for records in (found, truths)]
    return np.asarray(coco_mask.iou(*sides, [int(crowds)] * len(truths)), np.float64)


def object_keypoint_similarity(found: Sequence[Record], truth: Record, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Object keypoint similarity (D,) with one annotation, as pycocotools has it (`COCOeval.computeOks`).

    Without labeled keypoints distances are those to a box of thrice the size, for every keypoint.
    """
    points = np.array([record["keypoints"] for record in found], np.float64).reshape(len(found), -1, 3)[:, :, :2]
    target = np.array(truth["keypoints"], np.float64).reshape(-1, 3)
    labeled = target[:, 2] > 0
    offsets = points - target[:, :2]
    if not labeled.any():
        corner, side = np.array(truth["bbox"], np.float64).reshape(2, 2)
        offsets = np.maximum(corner - side - points, 0) + np.maximum(points - (corner + 2 * side), 0)
        labeled[:] = True
    spread = 2 * (2 * sigmas) ** 2 * (truth["area"] + np.spacing(1))
    return np.exp(-np.square(offsets).sum(axis=2) / spread)[:, labeled].mean(axis=1)

"""Overlaps between the detections and the annotated instances of one image, for one table.

Letters: D detections, G annotated instances that count, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.coco_ground_truth import is_ignored

FOREGROUND = 0.5  # least overlap of a match
Record = dict[str, Any]  # an annotation or a result record


class ImageOverlaps(NamedTuple):
    """Detections (best score first), instances and their overlaps. Classes are indices into `Analysis.categories`."""

    detections: list[Record]  # D
    instances: list[Record]  # G
    ignored: list[Record]  # annotations that pycocotools ignores: crowds, people without keypoints
    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    instance_classes: NDArray[np.int64]  # (G,)
    overlaps: NDArray[np.float64]  # (D, G), of all classes
    # (D,): no false positive without a match, being inside an ignored annotation of its class, or of a class that is
    # not annotated exhaustively
    ignored_if_unmatched: NDArray[np.bool_]


def image_overlaps(
    iou_type: str,
    annotations: Sequence[Record],
    detections: Sequence[Record],
    class_of: dict[int, int],
    sigmas: NDArray[np.float64],
    partial: frozenset[int] = frozenset(),
) -> ImageOverlaps:
    """Compute the overlaps of one image. Masks are run lengths; `detections` have the best score first.

    partial: category ids that are not annotated exhaustively.
    """
    instances = [annotation for annotation in annotations if not is_ignored(annotation, iou_type)]
    ignored = [annotation for annotation in annotations if is_ignored(annotation, iou_type)]
    ids = np.array([record["category_id"] for record in detections], np.int64)
    same_class = ids[:, None] == np.array([annotation["category_id"] for annotation in ignored], np.int64)[None]
    inside = pairwise_overlaps(iou_type, detections, ignored, True, sigmas) > FOREGROUND
    return ImageOverlaps(
        detections=list(detections),
        instances=instances,
        ignored=ignored,
        scores=np.array([record["score"] for record in detections], np.float64),
        classes=np.array([class_of[record["category_id"]] for record in detections], np.int64),
        instance_classes=np.array([class_of[annotation["category_id"]] for annotation in instances], np.int64),
        overlaps=pairwise_overlaps(iou_type, detections, instances, False, sigmas),
        ignored_if_unmatched=(inside & same_class).any(axis=1) | np.isin(ids, list(partial)),
    )


def pairwise_overlaps(
    iou_type: str,
    detections: Sequence[Record],
    annotations: Sequence[Record],
    crowds: bool,
    sigmas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return IoU or OKS (D, G). With `crowds`, IoU is the fraction of the detection inside each annotation."""
    if not detections or not annotations:
        return np.zeros((len(detections), len(annotations)))
    if iou_type == "keypoints":
        similarities = [object_keypoint_similarity(detections, annotation, sigmas) for annotation in annotations]
        return np.stack(similarities, axis=1)
    field = "bbox" if iou_type == "bbox" else "segmentation"
    sides = [[record[field] for record in records] for records in (detections, annotations)]
    return np.asarray(coco_mask.iou(*sides, [int(crowds)] * len(annotations)), np.float64)


def object_keypoint_similarity(
    detections: Sequence[Record], annotation: Record, sigmas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return OKS (D,) with one annotation, equal to pycocotools' (`COCOeval.computeOks`).

    Without labeled keypoints all keypoints count, with their distances to a box of three times the size.
    """
    points = np.array([record["keypoints"] for record in detections], np.float64)
    points = points.reshape(len(detections), -1, 3)[:, :, :2]
    target = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
    labeled = target[:, 2] > 0
    offsets = points - target[:, :2]
    if not labeled.any():
        corner, side = np.array(annotation["bbox"], np.float64).reshape(2, 2)
        offsets = np.maximum(corner - side - points, 0) + np.maximum(points - (corner + 2 * side), 0)
        labeled[:] = True
    variance = 2 * (2 * sigmas) ** 2 * (annotation["area"] + np.spacing(1))
    return np.exp(-np.square(offsets).sum(axis=2) / variance)[:, labeled].mean(axis=1)

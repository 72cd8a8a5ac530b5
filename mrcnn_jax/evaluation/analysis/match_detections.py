"""Matching of the detections with the annotated instances of one image, and the kind of error of each unmatched one.

Kinds, their order and thresholds are TIDE's (Bolya et al. 2020, section 2.2). An unmatched detection has the first kind
whose condition holds; overlaps are the largest with an instance of the same or of another class.

    localization     0.1 <= overlap with the same class <= 0.5
    classification   overlap with another class >= 0.5
    duplicate        overlap with the same class >= 0.5, matched by a detection with a better score
    background       overlap with every class <= 0.1
    both             otherwise: another class, and poorly localized

Letters: D detections, G annotated instances that count, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.analysis import ERRORS

FOREGROUND = 0.5  # least overlap of a match
BACKGROUND = 0.1  # greatest overlap of a detection on background
CORRECT = -1
_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
assert ERRORS[:5] == ("classification", "localization", "both", "duplicate", "background")

Record = dict[str, Any]  # an annotation or a result record


class Matches(NamedTuple):
    """Detections (best score first), instances and their matches. Classes are indices into `Analysis.categories`."""

    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    instance_classes: NDArray[np.int64]  # (G,)
    overlaps: NDArray[np.float64]  # (D, G), of all classes
    # (D,): no false positive without a match, being inside an ignored annotation of its class, or of a class that is
    # not annotated exhaustively
    ignored_if_unmatched: NDArray[np.bool_]
    kinds: NDArray[np.int64]  # (D,): CORRECT, or an index into ERRORS
    # (D,): the matched instance, or the one that would match with the right class or location; -1 for none
    targets: NDArray[np.int64]

    def outcomes(self) -> list[str]:
        """Return `Instance.outcome` of each detection."""
        names = ["correct" if kind == CORRECT else ERRORS[kind] for kind in self.kinds]
        ignored = self.ignored_if_unmatched & (self.kinds != CORRECT)
        return ["crowd" if is_ignored else name for name, is_ignored in zip(names, ignored, strict=True)]


def match_detections(
    iou_type: str,
    detections: Sequence[Record],
    instances: Sequence[Record],
    ignored: Sequence[Record],
    class_of: dict[int, int],
    sigmas: NDArray[np.float64],
    partial: Sequence[int] = (),
) -> Matches:
    """Match each detection, best score first, with the free instance of its class with the largest overlap.

    Masks are run lengths. ignored: annotations that pycocotools ignores: crowds, people without keypoints.
    partial: category ids that are not annotated exhaustively.
    """
    ids = np.array([record["category_id"] for record in detections], np.int64)
    same_id = ids[:, None] == np.array([annotation["category_id"] for annotation in ignored], np.int64)
    inside = pairwise_overlaps(iou_type, detections, ignored, True, sigmas) > FOREGROUND
    classes = np.array([class_of[record["category_id"]] for record in detections], np.int64)
    instance_classes = np.array([class_of[annotation["category_id"]] for annotation in instances], np.int64)
    overlaps = pairwise_overlaps(iou_type, detections, instances, False, sigmas)
    same_class = classes[:, None] == instance_classes
    targets = greedy_match(overlaps * same_class)
    own, other = _padded(overlaps * same_class), _padded(overlaps * ~same_class)
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    conditions = {
        CORRECT: targets >= 0,
        _LOCALIZATION: (best_own >= BACKGROUND) & (best_own <= FOREGROUND),
        _CLASSIFICATION: best_other >= FOREGROUND,
        _DUPLICATE: best_own >= FOREGROUND,
        _BACKGROUND: np.maximum(best_own, best_other) <= BACKGROUND,
    }
    kinds = np.select(list(conditions.values()), list(conditions), _BOTH)
    return Matches(
        scores=np.array([record["score"] for record in detections], np.float64),
        classes=classes,
        instance_classes=instance_classes,
        overlaps=overlaps,
        ignored_if_unmatched=(inside & same_id).any(axis=1) | np.isin(ids, list(partial)),
        kinds=kinds,
        targets=np.select(
            [kinds == _LOCALIZATION, kinds == _CLASSIFICATION], [own.argmax(axis=1), other.argmax(axis=1)], targets
        ),
    )


def greedy_match(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row of (D, G) the free column with the largest overlap of at least FOREGROUND, or -1."""
    free = _padded(overlaps)
    columns = np.full(len(free), -1)
    for row, values in enumerate(free):
        column = int(values.argmax())
        if values[column] >= FOREGROUND:
            columns[row] = column
            free[:, column] = 0
    return columns


def _padded(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a copy with a last column of zeros, so that every row has a largest overlap."""
    return np.pad(overlaps, ((0, 0), (0, 1)))


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

"""Metric tables: scores of each class, precision-recall curves, confusion matrix, score histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.analysis import ClassScores, MetricTable
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches, greedy_match
from mrcnn_jax.evaluation.analysis.tide_errors import tide_errors
from mrcnn_jax.evaluation.coco_ground_truth import counts_in_table, is_ignored
from mrcnn_jax.evaluation.coco_metrics import Scores

_BINS = 20  # of the histogram


def metric_table(scores: Scores, iou_type: str, images: Sequence[Matches], threshold: float) -> MetricTable:
    """Return the table of one `iou_type` from `scores` and the matches of all images."""
    evaluation, prefix = scores.evaluations[iou_type], f"{iou_type}/"
    classes = len(evaluation.params.catIds)
    return MetricTable(
        iou_type=iou_type,
        metrics={name.removeprefix(prefix): ap for name, ap in scores.metrics.items() if name.startswith(prefix)},
        classes=class_scores(scores, iou_type),
        precision=np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1],
        thresholds=np.asarray(evaluation.params.iouThrs),
        errors=tide_errors(images, classes) if iou_type != "keypoints" else None,
        confusion=_confusion(images, classes, threshold),
        histogram=_histogram(images),
    )


def class_scores(scores: Scores, iou_type: str) -> tuple[ClassScores, ...]:
    """Return the scores of each category, in the order of category ids."""
    evaluation = scores.evaluations[iou_type]
    instances = count_instances(scores.ground_truth, iou_type)
    return tuple(
        ClassScores(
            category_id=category_id,
            name=scores.ground_truth.cats[category_id]["name"],
            instances=instances[category_id],
            AP=_average_precision(evaluation, k),
            AP50=_average_precision(evaluation, k, 0.5),
            AP75=_average_precision(evaluation, k, 0.75),
            APs=_average_precision(evaluation, k, area="small"),
            APm=_average_precision(evaluation, k, area="medium"),
            APl=_average_precision(evaluation, k, area="large"),
            AR=_mean(np.asarray(evaluation.eval["recall"])[:, k, 0, -1]),
        )
        for k, category_id in enumerate(map(int, evaluation.params.catIds))
    )


def count_instances(truth: COCO, iou_type: str) -> dict[int, int]:
    """Return the number of instances of each category that a table counts."""
    instances = dict.fromkeys(sorted(truth.cats), 0)
    for annotation in truth.dataset["annotations"]:
        if counts_in_table(annotation, iou_type) and not is_ignored(annotation, iou_type):
            instances[annotation["category_id"]] += 1
    return instances


def _average_precision(evaluation: COCOeval, k: int, threshold: float | None = None, area: str = "all") -> float:
    """Return the AP of class `k`; -1 without such ground truth."""
    labels = list(evaluation.params.areaRngLbl)
    if area not in labels:  # keypoints have no small instances
        return -1.0
    precision = np.asarray(evaluation.eval["precision"])[:, :, k, labels.index(area), -1]  # (T, 101)
    if threshold is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, threshold)]
    return _mean(precision)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not -1; -1 if there are none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _confusion(images: Sequence[Matches], classes: int, threshold: float) -> NDArray[np.int64]:
    """Return `MetricTable.confusion` of all images."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for image in images:
        count = int(np.sum(image.scores >= threshold))  # detections are sorted by score
        targets = greedy_match(image.overlaps[:count])
        matched, predicted = targets >= 0, image.classes[:count]
        false_positives = ~matched & ~image.ignored_if_unmatched[:count]
        np.add.at(matrix, (image.instance_classes[targets[matched]], predicted[matched]), 1)
        np.add.at(matrix[classes], predicted[false_positives], 1)
        np.add.at(matrix[:, classes], np.delete(image.instance_classes, targets[matched]), 1)
    return matrix


def _histogram(images: Sequence[Matches]) -> NDArray[np.int64]:
    """Return `MetricTable.histogram`, without ignored detections."""
    histogram = np.zeros((2, _BINS), np.int64)
    for image in images:
        correct = image.kinds == CORRECT
        bins = np.minimum((np.clip(image.scores, 0, 1) * _BINS).astype(int), _BINS - 1)
        np.add.at(histogram[0], bins[correct], 1)
        np.add.at(histogram[1], bins[~correct & ~image.ignored_if_unmatched], 1)
    return histogram

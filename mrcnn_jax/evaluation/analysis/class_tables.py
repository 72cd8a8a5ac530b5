"""The numbers of one table: of each class, by threshold and recall, confusions, scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.analysis.image_overlaps import ImageOverlaps, is_ignored
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches, greedy_match
from mrcnn_jax.evaluation.analysis.results import ClassScores, MetricTable
from mrcnn_jax.evaluation.analysis.tide_errors import tide_errors
from mrcnn_jax.evaluation.coco_metrics import Scores, counts_in_table, left_out

_BINS = 20  # of the histogram


def metric_table(scores: Scores, iou_type: str, scenes: Sequence[tuple[ImageOverlaps, Matches]], threshold: float) -> MetricTable:
    """Everything that `scores` and the scenes of all images say by one measure of overlap."""
    evaluation = scores.evaluations[iou_type]
    classes = len(evaluation.params.catIds)
    return MetricTable(
        iou_type=iou_type,
        metrics={
            name.removeprefix(f"{iou_type}/"): value
            for name, value in scores.metrics.items()
            if name.startswith(f"{iou_type}/")
        },
        left_out=left_out(scores.truth, iou_type),
        classes=class_scores(scores, iou_type),
        precision=np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1],
        thresholds=np.asarray(evaluation.params.iouThrs),
        errors=tide_errors(scenes, classes) if iou_type != "keypoints" else None,
        confusion=_confusion(scenes, classes, threshold),
        histogram=_histogram(scenes),
    )


def class_scores(scores: Scores, iou_type: str) -> tuple[ClassScores, ...]:
    """The scores of each category, in the order of their ids."""
    evaluation = scores.evaluations[iou_type]
    instances = count_instances(scores.truth, iou_type)
    return tuple(
        ClassScores(
            category_id=category_id,
            name=scores.truth.cats[category_id]["name"],
            instances=instances[category_id],
            AP=_precision(evaluation, place),
            AP50=_precision(evaluation, place, 0.5),
            AP75=_precision(evaluation, place, 0.75),
            APs=_precision(evaluation, place, area="small"),
            APm=_precision(evaluation, place, area="medium"),
            APl=_precision(evaluation, place, area="large"),
            AR=_mean(np.asarray(evaluation.eval["recall"])[:, place, 0, -1]),
        )
        for place, category_id in enumerate(map(int, evaluation.params.catIds))
    )


def count_instances(truth: COCO, iou_type: str) -> dict[int, int]:
    """How many instances of each category a table counts."""
    instances = dict.fromkeys(sorted(truth.cats), 0)
    for annotation in truth.dataset["annotations"]:
        if counts_in_table(annotation, iou_type) and not is_ignored(annotation, iou_type):
            instances[annotation["category_id"]] += 1
    return instances


def _precision(evaluation: COCOeval, place: int, threshold: float | None = None, area: str = "all") -> float:
    """AP of one class; -1 where there is no such truth."""
    labels = list(evaluation.params.areaRngLbl)
    if area not in labels:  # keypoints are not told apart from small ones
        return -1.0
    precision = np.asarray(evaluation.eval["precision"])[:, :, place, labels.index(area), -1]  # (T, 101)
    if threshold is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, threshold)]
    return _mean(precision)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _confusion(scenes: Sequence[tuple[ImageOverlaps, Matches]], classes: int, threshold: float) -> NDArray[np.int64]:
    """`Table.confusion` of all images."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for scene, _ in scenes:
        count = int(np.sum(scene.scores >= threshold))  # the best come first
        chosen = greedy_match(scene.overlaps[:count])
        hit = chosen >= 0
        np.add.at(matrix, (scene.true_classes[chosen[hit]], scene.classes[:count][hit]), 1)
        alarms = ~hit & ~scene.excused[:count]
        np.add.at(matrix[classes], scene.classes[:count][alarms], 1)
        np.add.at(matrix[:, classes], np.delete(scene.true_classes, chosen[hit]), 1)
    return matrix


def _histogram(scenes: Sequence[tuple[ImageOverlaps, Matches]]) -> NDArray[np.int64]:
    """`Table.histogram`. What is excused is neither true nor false."""
    histogram = np.zeros((2, _BINS), np.int64)
    for scene, matches in scenes:
        correct = matches.kinds == CORRECT
        bins = np.minimum((np.clip(scene.scores, 0, 1) * _BINS).astype(int), _BINS - 1)
        np.add.at(histogram[0], bins[correct], 1)
        np.add.at(histogram[1], bins[~correct & ~scene.excused], 1)
    return histogram

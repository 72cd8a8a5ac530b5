"""Uncertainty of COCO AP: its standard deviation over bootstrap samples of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.coco_ground_truth import restrict
from mrcnn_jax.evaluation.coco_metrics import Scores, evaluate_images, with_field


def ap_deviation(scores: Scores, iou_type: str, samples: int = 200, seed: int = 0) -> float:
    """Return the standard deviation of COCO AP, between 0 and 1, over samples of the images with replacement."""
    truth, results = restrict(scores.ground_truth, iou_type), with_field(scores.results, iou_type)
    evaluation = evaluate_images(truth, results, iou_type, scores.keypoint_sigmas)
    images = len(truth.imgs)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), samples)
    return float(np.nanstd(resampled_ap(evaluation, draws), ddof=1))


def resampled_ap(evaluation: COCOeval, draws: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return AP (B,) of samples in which images occur several times or not at all; NaN without an instance.

    evaluation: of all images, with `evalImgs`.
    draws: (B, I), how often each sample has each image, in the order of image ids.

    Equal to COCO AP of a dataset with copies of the images, up to the order of equal scores.
    """
    params = evaluation.params
    images, stride = len(params.imgIds), len(params.imgIds) * len(params.areaRng)
    starts = range(0, len(params.catIds) * stride, stride)  # the first range of areas is "all"
    by_class = np.stack(
        [_class_ap(evaluation.evalImgs[start : start + images], draws, params.recThrs) for start in starts]
    )
    classes = np.isfinite(by_class).sum(axis=0)
    return np.where(classes, np.nansum(by_class, axis=0) / np.maximum(classes, 1), np.nan)


def _class_ap(
    evaluated: Sequence[dict[str, Any] | None], draws: NDArray[np.integer], recalls: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return AP (B,) of one class, of which `evaluated` has the matches of each image; NaN without an instance."""
    present = [(index, image) for index, image in enumerate(evaluated) if image is not None]
    if not present:
        return np.full(len(draws), np.nan)
    instances = np.zeros(len(evaluated), int)
    for index, image in present:
        instances[index] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
    totals = draws @ instances
    order = np.argsort(-np.concatenate([image["dtScores"] for _, image in present]), kind="stable")
    image_of = np.repeat([index for index, _ in present], [len(image["dtScores"]) for _, image in present])[order]
    matched, ignored = (
        np.concatenate([image[name] for _, image in present], axis=1)[:, order] > 0
        for name in ("dtMatches", "dtIgnore")
    )
    copies = draws[:, image_of].astype(np.int32)
    sums = np.zeros(len(draws))
    for hit, counted in zip(matched & ~ignored, ~ignored, strict=True):  # for each IoU threshold
        sums += _mean_precision(copies, hit, counted, totals, recalls)
    return np.where(totals, sums / len(matched), np.nan)


def _mean_precision(
    copies: NDArray[np.int32],
    hit: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    totals: NDArray[np.integer],
    recalls: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the interpolated precision (B,), averaged over the `recalls`, at one IoU threshold.

    Recall changes at true positives only, and interpolated precision is largest at them, so the others only count.

    copies: (B, D), how often each sample has each detection, by decreasing score.
    hit, counted: (D,), true positives; true and false positives.
    totals: (B,), instances of each sample.
    """
    true_positives = np.cumsum(copies[:, hit], axis=1)
    positives = np.cumsum(copies * counted, axis=1)[:, hit]
    precision = true_positives / np.maximum(positives, 1)
    interpolated = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(recalls, true_positives / np.maximum(totals, 1)[:, None], side="right")
    return (interpolated * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(recalls)

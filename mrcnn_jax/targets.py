"""Training targets of the RPN and the heads for one image: sampled anchors and RoIs, boxes, masks, keypoints."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, RoIConfig, RPNConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import masks as mask_ops
from mrcnn_jax.ops.keypoints import heatmap_targets
from mrcnn_jax.ops.matching import match
from mrcnn_jax.ops.proposals import DELTA_WEIGHTS
from mrcnn_jax.ops.sampling import subsample, subsample_indices
from mrcnn_jax.structures import GroundTruth, Proposals, SampledRoIs


class RPNTargets(NamedTuple):
    """RPN targets of one image. Anchors that were not sampled are neither positive nor negative."""

    positive: jax.Array  # (A,) bool
    negative: jax.Array  # (A,) bool
    deltas: jax.Array  # (A, 4) float32; only those of positives are meaningful


class KeypointTargets(NamedTuple):
    """Target cells of the heat maps of R RoIs. Keypoints that are not `valid` have no loss."""

    cell: jax.Array  # (R, K) int32, row * S + column in a heat map of side S
    valid: jax.Array  # (R, K) bool, True for labeled keypoints inside a positive RoI


def rpn_targets(key: jax.Array, anchors: jax.Array, ground_truth: GroundTruth, config: RPNConfig) -> RPNTargets:
    """Match anchors (A, 4) to the ground truth and sample a fixed number (Ren et al. 2015, section 3.1.2)."""
    matches, labels = match(
        box_ops.iou(ground_truth.boxes, anchors),
        ground_truth.valid,
        positive=config.positive_iou,
        negative=config.negative_iou,
        allow_low_quality=True,
    )
    positive, negative = subsample(key, labels, count=config.batch_size, positive_fraction=config.positive_fraction)
    boxes = jax.lax.platform_dependent(
        ground_truth.boxes, ground_truth.valid, matches, tpu=_take_by_product, default=_take
    )
    return RPNTargets(positive, negative, box_ops.encode(boxes, anchors, weights=DELTA_WEIGHTS))


def _take(boxes: jax.Array, valid: jax.Array, matches: jax.Array) -> jax.Array:
    return boxes[matches]


def _take_by_product(boxes: jax.Array, valid: jax.Array, matches: jax.Array) -> jax.Array:
    """The same, exactly, as a product with zeros and ones: TPUs gather row after row, however short the rows are."""
    one_hot = jax.nn.one_hot(matches, len(boxes), dtype=boxes.dtype)
    return jnp.dot(one_hot, jnp.where(valid[:, None], boxes, 0.0), precision=jax.lax.Precision.HIGHEST)


def sample_rois(key: jax.Array, proposals: Proposals, ground_truth: GroundTruth, config: RoIConfig) -> SampledRoIs:
    """Sample the RoIs that the heads are trained on, positives first (Girshick 2015, section 2.3).

    Ground-truth boxes are added to the proposals, so that there are positives from the first step on.
    """
    boxes = jnp.concatenate([proposals.boxes, ground_truth.boxes])
    valid = jnp.concatenate([proposals.valid, ground_truth.valid])
    matches, labels = match(
        box_ops.iou(ground_truth.boxes, boxes),
        ground_truth.valid,
        positive=config.positive_iou,
        negative=config.positive_iou,
        allow_low_quality=False,
    )
    labels = jnp.where(valid, labels, -1)
    indices, sampled = subsample_indices(
        key, labels, count=config.batch_size, positive_fraction=config.positive_fraction
    )
    positive = sampled & (labels[indices] == 1)
    return SampledRoIs(
        boxes=jnp.where(sampled[:, None], boxes[indices], 0.0),
        classes=jnp.where(positive, ground_truth.classes[matches[indices]], 0),
        matches=matches[indices],
        valid=sampled,
    )


def box_targets(rois: SampledRoIs, ground_truth: GroundTruth, config: BoxHeadConfig) -> jax.Array:
    """Deltas (R, 4) from each RoI to its matched box. Only those of positives are meaningful."""
    return box_ops.encode(ground_truth.boxes[rois.matches], rois.boxes, weights=config.delta_weights)


def mask_targets(rois: SampledRoIs, ground_truth: GroundTruth, config: MaskHeadConfig, size: int) -> jax.Array:
    """Masks (R, size, size) of the matched instances, cropped to the RoIs. Only those of positives are meaningful.

    A `config.target` of "soft" resamples as torchvision does (ROIAlign without the half-pixel shift), "binary" as
    Detectron2 does (with the shift, thresholded at 1/2).
    """
    return mask_ops.crop_targets(
        ground_truth.masks,
        ground_truth.mask_windows,
        rois.boxes,
        rois.matches,
        size=size,
        binary=config.target == "binary",
        aligned=config.target == "binary",
        sampling_ratio=config.target_sampling_ratio,
    )


def with_masks(rois: SampledRoIs, ground_truth: GroundTruth) -> SampledRoIs:
    """Mark RoIs as not valid where the matched instance has no mask, which is an empty mask window."""
    windows = ground_truth.mask_windows[rois.matches]
    return rois._replace(valid=rois.valid & jnp.all(windows[:, 2:] > windows[:, :2], axis=1))


def keypoint_targets(rois: SampledRoIs, ground_truth: GroundTruth, config: KeypointHeadConfig) -> KeypointTargets:
    """Cells of the matched instances' keypoints in heat maps of side 4 * pool_size."""
    cell, valid = heatmap_targets(ground_truth.keypoints[rois.matches], rois.boxes, size=4 * config.pool_size)
    return KeypointTargets(cell, valid & (rois.valid & (rois.classes > 0))[:, None])

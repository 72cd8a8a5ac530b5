"""What each head should have said: sampled anchors, sampled RoIs, masks and keypoints of ONE image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, RoIConfig, RPNConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import masks as mask_ops
from mrcnn_jax.ops.keypoints import heatmap_targets
from mrcnn_jax.ops.matching import match
from mrcnn_jax.ops.sampling import sample, select
from mrcnn_jax.structures import GroundTruth, Proposals, SampledRoIs

_RPN_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RPNTargets(NamedTuple):
    """Targets of the anchors of one image; anchors that were not drawn are neither positive nor negative."""

    positive: jax.Array  # (A,) bool
    negative: jax.Array  # (A,) bool
    deltas: jax.Array  # (A, 4) float32, meaningful for positives


class KeypointTargets(NamedTuple):
    """The right cell of each heat map of R RoIs; nothing is asked for where `valid` is False."""

    cell: jax.Array  # (R, K) int32, row * S + column, S the side of a heat map
    valid: jax.Array  # (R, K) bool, a labeled keypoint that lies inside of a positive RoI


def rpn_targets(key: jax.Array, anchors: jax.Array, truth: GroundTruth, config: RPNConfig) -> RPNTargets:
    """Match anchors (A, 4) to the ground truth and draw a fixed-size sample (Ren et al. 2015, section 3.1.2)."""
    matches, labels = match(
        box_ops.iou(truth.boxes, anchors),
        truth.valid,
        positive=config.positive_iou,
        negative=config.negative_iou,
        allow_low_quality=True,
    )
    positive, negative = sample(key, labels, count=config.batch_size, positive_fraction=config.positive_fraction)
    deltas = box_ops.encode(truth.boxes[matches], anchors, weights=_RPN_DELTA_WEIGHTS)
    return RPNTargets(positive, negative, deltas)


def sample_rois(key: jax.Array, proposals: Proposals, truth: GroundTruth, config: RoIConfig) -> SampledRoIs:
    """Draw the RoIs that train the heads, positives first (Girshick 2015, section 2.3).

    The ground-truth boxes join the proposals, so that there are positives from the first step on.
    """
    boxes = jnp.concatenate([proposals.boxes, truth.boxes])
    valid = jnp.concatenate([proposals.valid, truth.valid])
    matches, labels = match(
        box_ops.iou(truth.boxes, boxes),
        truth.valid,
        positive=config.positive_iou,
        negative=config.positive_iou,
        allow_low_quality=False,
    )
    labels = jnp.where(valid, labels, -1)
    chosen, chosen_valid = select(key, labels, count=config.batch_size, positive_fraction=config.positive_fraction)
    positive = chosen_valid & (labels[chosen] == 1)
    return SampledRoIs(
        boxes=jnp.where(chosen_valid[:, None], boxes[chosen], 0.0),
        classes=jnp.where(positive, truth.classes[matches[chosen]], 0),
        matches=matches[chosen],
        valid=chosen_valid,
    )


def box_targets(rois: SampledRoIs, truth: GroundTruth, config: BoxHeadConfig) -> jax.Array:
    """Deltas (R, 4) from each RoI to its matched box; meaningful for positives."""
    return box_ops.encode(truth.boxes[rois.matches], rois.boxes, weights=config.delta_weights)


def mask_targets(rois: SampledRoIs, truth: GroundTruth, config: MaskHeadConfig, size: int) -> jax.Array:
    """Masks (R, size, size) of the matched instances inside the RoIs; meaningful for positives.

    "soft" samples the raster as torchvision does (ROIAlign without the half-pixel shift), "binary" as Detectron2 does
    (with the shift, thresholded at 1/2).
    """
    return mask_ops.crop_targets(
        truth.masks,
        truth.mask_windows,
        rois.boxes,
        rois.matches,
        size=size,
        binary=config.target == "binary",
        aligned=config.target == "binary",
        sampling_ratio=config.target_sampling_ratio,
    )


def with_masks(rois: SampledRoIs, truth: GroundTruth) -> SampledRoIs:
    """The RoIs, of which those are not valid whose matched instance has no mask."""
    windows = truth.mask_windows[rois.matches]
    return rois._replace(valid=rois.valid & jnp.all(windows[:, 2:] > windows[:, :2], axis=1))


def keypoint_targets(rois: SampledRoIs, truth: GroundTruth, config: KeypointHeadConfig) -> KeypointTargets:
    """The cells of the matched instances' keypoints in heat maps of side 4 * pool_size."""
    cell, valid = heatmap_targets(truth.keypoints[rois.matches], rois.boxes, size=4 * config.pool_size)
    return KeypointTargets(cell, valid & (rois.valid & (rois.classes > 0))[:, None])

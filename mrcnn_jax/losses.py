"""What the heads' answers cost. Every loss returns (sum, count); both are summed over devices and divided once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.structures import SampledRoIs
from mrcnn_jax.targets import KeypointTargets, RPNTargets

Loss = tuple[jax.Array, jax.Array]


def smooth_l1(error: jax.Array, beta: float) -> jax.Array:
    """Elementwise: quadratic below `beta`, linear above (Girshick 2015, eq. 3); the absolute error for beta = 0."""
    if beta == 0:
        return error * jnp.sign(error)  # not `abs`, whose gradient at 0 is 1
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def rpn_class_loss(logits: jax.Array, targets: RPNTargets) -> Loss:
    """Binary cross-entropy of the drawn anchors. logits: (..., A). Count: how many were drawn."""
    drawn = targets.positive | targets.negative
    cost = optax.sigmoid_binary_cross_entropy(logits, targets.positive.astype(logits.dtype))
    return jnp.sum(jnp.where(drawn, cost, 0.0)), jnp.sum(drawn)


def rpn_box_loss(deltas: jax.Array, targets: RPNTargets, *, beta: float) -> Loss:
    """Smooth L1 of the positive anchors' deltas (..., A, 4). Count: how many anchors were drawn, negatives too."""
    error = _masked_error(deltas, targets.deltas, targets.positive)
    return jnp.sum(smooth_l1(error, beta)), jnp.sum(targets.positive | targets.negative)


def class_loss(logits: jax.Array, rois: SampledRoIs) -> Loss:
    """Softmax cross-entropy of the sampled RoIs. logits: (..., R, C + 1). Count: the valid RoIs."""
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, rois.classes)
    return jnp.sum(jnp.where(rois.valid, cost, 0.0)), jnp.sum(rois.valid)


def box_loss(deltas: jax.Array, targets: jax.Array, rois: SampledRoIs, *, beta: float) -> Loss:
    """Smooth L1 of the positive RoIs' deltas for their own class. Count: the valid RoIs.

    deltas: (..., R, C, 4), or (..., R, 1, 4) of a class-agnostic head.
    """
    column = jnp.clip(rois.classes - 1, 0, deltas.shape[-2] - 1)
    chosen = jnp.take_along_axis(deltas, column[..., None, None], axis=-2)[..., 0, :]
    error = _masked_error(chosen, targets, rois.valid & (rois.classes > 0))
    return jnp.sum(smooth_l1(error, beta)), jnp.sum(rois.valid)


def mask_loss(logits: jax.Array, targets: jax.Array, rois: SampledRoIs) -> Loss:
    """Binary cross-entropy of each positive RoI's own class (He et al. 2017, section 3).

    logits, of that class, and targets: (R, S, S), for R RoIs of any number of images. Count: pixels of positive RoIs.
    """
    positive = rois.valid & (rois.classes > 0)
    # Both sides are masked: a NaN in an unused target would reach the gradient through the product with zero.
    targets = jnp.where(positive[:, None, None], targets, 0.0)
    cost = optax.sigmoid_binary_cross_entropy(logits, targets)
    cost = jnp.where(positive[:, None, None], cost, 0.0)
    return jnp.sum(cost), jnp.sum(positive) * cost.shape[1] * cost.shape[2]


def softmax_mask_loss(logits: jax.Array, targets: jax.Array, rois: SampledRoIs) -> Loss:
    """Cross-entropy of each pixel's softmax over background and classes (Long et al. 2015; He et al. 2017, table 2b).

    A pixel of a positive RoI is of the RoI's class where its target is 1, background where it is 0; in between, both.
    logits: (R, S, S, C + 1), background first, or (R, S, S, 2) of a class-agnostic head; targets: (R, S, S), for R RoIs
    of any number of images. Count: pixels of positive RoIs.
    """
    positive = (rois.valid & (rois.classes > 0))[:, None, None]
    targets = jnp.where(positive, targets, 0.0)
    log_probabilities = jax.nn.log_softmax(jnp.where(positive[..., None], logits, 0.0), axis=-1)
    count = logits.shape[-1]
    chosen = jax.nn.one_hot(jnp.minimum(rois.classes, count - 1), count)[:, None, None]
    inside, outside = jnp.sum(chosen * log_probabilities, axis=-1), log_probabilities[..., 0]
    cost = jnp.where(positive, -targets * inside - (1.0 - targets) * outside, 0.0)
    return jnp.sum(cost), jnp.sum(positive) * cost.shape[1] * cost.shape[2]


def keypoint_loss(logits: jax.Array, targets: KeypointTargets) -> Loss:
    """Cross-entropy of each visible keypoint's softmax over the cells of its heat map (He et al. 2017, section 5).

    logits: (R, S, S, K), for R RoIs of any number of images. Count: the visible keypoints.
    """
    maps = logits.reshape(logits.shape[0], -1, logits.shape[-1])
    maps = jnp.where(targets.valid[:, None], maps, 0.0)
    cells = jnp.arange(maps.shape[1], dtype=targets.cell.dtype)[None, :, None]
    chosen = jnp.sum(jnp.where(cells == targets.cell[:, None], maps, 0.0), axis=1)
    cost = jax.nn.logsumexp(maps, axis=1) - chosen
    return jnp.sum(jnp.where(targets.valid, cost, 0.0)), jnp.sum(targets.valid)


def _masked_error(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """prediction - target where `mask`, else 0: garbage in the padding reaches neither the loss nor the gradient."""
    return jnp.where(mask[..., None], prediction - jnp.where(mask[..., None], target, 0.0), 0.0)

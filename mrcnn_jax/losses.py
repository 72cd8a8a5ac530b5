"""Detection losses of the RPN and the heads, each returned as (sum, count).

Sums and counts are added over devices separately and divided once: a mean of the means of devices would be wrong.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.structures import SampledRoIs
from mrcnn_jax.targets import KeypointTargets, RPNTargets

Loss = tuple[jax.Array, jax.Array]


def smooth_l1(error: jax.Array, beta: float) -> jax.Array:
    """Smooth L1 loss per element (Girshick 2015, eq. 3).

    Quadratic where |error| < beta, linear above; the absolute error for beta = 0.
    """
    if beta == 0:
        return error * jnp.sign(error)  # not `abs`, whose gradient at 0 is 1
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def rpn_class_loss(logits: jax.Array, targets: RPNTargets) -> Loss:
    """Binary cross-entropy of the objectness of sampled anchors.

    logits: (..., A). Count: sampled anchors.
    """
    sampled = targets.positive | targets.negative
    cost = optax.sigmoid_binary_cross_entropy(logits, targets.positive.astype(logits.dtype))
    return jnp.sum(jnp.where(sampled, cost, 0.0)), jnp.sum(sampled)


def rpn_box_loss(deltas: jax.Array, targets: RPNTargets, *, beta: float) -> Loss:
    """Smooth L1 loss of the box deltas of positive anchors.

    deltas: (..., A, 4). Count: sampled anchors, positive and negative.
    """
    error = _masked_error(deltas, targets.deltas, targets.positive)
    return jnp.sum(smooth_l1(error, beta)), jnp.sum(targets.positive | targets.negative)


def class_loss(logits: jax.Array, rois: SampledRoIs) -> Loss:
    """Softmax cross-entropy of the classes of sampled RoIs.

    logits: (..., R, C + 1), background first. Count: valid RoIs.
    """
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, rois.classes)
    return jnp.sum(jnp.where(rois.valid, cost, 0.0)), jnp.sum(rois.valid)


def box_loss(deltas: jax.Array, targets: jax.Array, rois: SampledRoIs, *, beta: float) -> Loss:
    """Smooth L1 loss of the box deltas that positive RoIs have for their own class.

    deltas: (..., R, C, 4), or (..., R, 1, 4) from a class-agnostic head; targets: (..., R, 4). Count: valid RoIs.
    """
    column = jnp.clip(rois.classes - 1, 0, deltas.shape[-2] - 1)
    own_deltas = jnp.take_along_axis(deltas, column[..., None, None], axis=-2)[..., 0, :]
    error = _masked_error(own_deltas, targets, rois.valid & (rois.classes > 0))
    return jnp.sum(smooth_l1(error, beta)), jnp.sum(rois.valid)


def mask_loss(logits: jax.Array, targets: jax.Array, rois: SampledRoIs) -> Loss:
    """Binary cross-entropy of the masks of positive RoIs (He et al. 2017, section 3).

    logits: (R, S, S), of each RoI's own class; targets: (R, S, S). The R RoIs may come from several images.
    Count: pixels of positive RoIs.
    """
    positive = rois.valid & (rois.classes > 0)
    # Targets are masked too: a NaN in an unused one would reach the gradient through the product with zero.
    targets = jnp.where(positive[:, None, None], targets, 0.0)
    cost = optax.sigmoid_binary_cross_entropy(logits, targets)
    cost = jnp.where(positive[:, None, None], cost, 0.0)
    return jnp.sum(cost), jnp.sum(positive) * cost.shape[1] * cost.shape[2]


def softmax_mask_loss(logits: jax.Array, targets: jax.Array, rois: SampledRoIs) -> Loss:
    """Softmax cross-entropy of the masks of positive RoIs (Long et al. 2015; He et al. 2017, table 2b).

    Each pixel is classified as background or one of C classes. A target of 1 is the RoI's class, 0 is background,
    values in between weight both.

    logits: (R, S, S, C + 1), background first, or (R, S, S, 2) from a class-agnostic head; targets: (R, S, S). The R
    RoIs may come from several images. Count: pixels of positive RoIs.
    """
    positive = (rois.valid & (rois.classes > 0))[:, None, None]
    targets = jnp.where(positive, targets, 0.0)
    log_probabilities = jax.nn.log_softmax(jnp.where(positive[..., None], logits, 0.0), axis=-1)
    num_logits = logits.shape[-1]
    one_hot = jax.nn.one_hot(jnp.minimum(rois.classes, num_logits - 1), num_logits)[:, None, None]
    foreground, background = jnp.sum(one_hot * log_probabilities, axis=-1), log_probabilities[..., 0]
    cost = jnp.where(positive, -targets * foreground - (1.0 - targets) * background, 0.0)
    return jnp.sum(cost), jnp.sum(positive) * cost.shape[1] * cost.shape[2]


def keypoint_loss(logits: jax.Array, targets: KeypointTargets) -> Loss:
    """Cross-entropy of each keypoint's softmax over the cells of its heat map (He et al. 2017, section 5).

    logits: (R, S, S, K). The R RoIs may come from several images. Count: valid keypoints.
    """
    maps = logits.reshape(logits.shape[0], -1, logits.shape[-1])
    maps = jnp.where(targets.valid[:, None], maps, 0.0)
    cells = jnp.arange(maps.shape[1], dtype=targets.cell.dtype)[None, :, None]
    target_logits = jnp.sum(jnp.where(cells == targets.cell[:, None], maps, 0.0), axis=1)
    cost = jax.nn.logsumexp(maps, axis=1) - target_logits
    return jnp.sum(jnp.where(targets.valid, cost, 0.0)), jnp.sum(targets.valid)


def _masked_error(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """prediction - target where `mask`, else 0, so that values in padding reach neither loss nor gradient."""
    return jnp.where(mask[..., None], prediction - jnp.where(mask[..., None], target, 0.0), 0.0)

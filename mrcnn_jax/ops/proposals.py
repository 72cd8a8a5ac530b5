"""Proposals from RPN outputs (Ren et al. 2015; Lin et al. 2017 for the pyramid)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import RPNConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import nms_sorted
from mrcnn_jax.structures import Proposals

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def propose(
    logits_by_level: Sequence[jax.Array],
    deltas_by_level: Sequence[jax.Array],
    anchors_by_level: Sequence[jax.Array | np.ndarray],
    image_size: jax.Array,
    config: RPNConfig,
    *,
    train: bool,
) -> Proposals:
    """Proposals of one image, best first. No gradient flows through them.

    On each level the `pre_nms_top_k` boxes of highest score are decoded and clipped to the image, small and non-finite
    ones are dropped, and NMS is applied. The best `post_nms_top_k` boxes of all levels remain, in as many slots P;
    slots without a proposal are zero.

    Args:
        logits_by_level: (A_l,) objectness logits of each level.
        deltas_by_level: (A_l, 4).
        anchors_by_level: (A_l, 4).
        image_size: (2,) height and width of the image inside the padding.
        config: the limits and thresholds.
        train: whether to use the limits for training.
    """
    pre_nms_top_k = config.pre_nms_top_k_train if train else config.pre_nms_top_k_test
    post_nms_top_k = config.post_nms_top_k_train if train else config.post_nms_top_k_test
    best = [
        _best_of_level(*level, pre_nms_top_k)
        for level in zip(logits_by_level, deltas_by_level, anchors_by_level, strict=True)
    ]
    lengths = [scores.shape[0] for scores, _, _ in best]
    scores, deltas, anchors = (jax.lax.stop_gradient(jnp.concatenate(parts)) for parts in zip(*best, strict=True))
    boxes = box_ops.decode(deltas, anchors, weights=DELTA_WEIGHTS)
    boxes = box_ops.clip(boxes, image_size)
    # Drops NaN as well, and boxes at infinity, which clipping has made empty. Scores of -inf come last.
    large = box_ops.large_enough(boxes, config.min_box_size)
    keep = _nms_by_level(boxes, large, lengths, config.nms_iou)
    return _best_of_all(boxes, jnp.where(keep, scores, -jnp.inf), post_nms_top_k)


def _best_of_level(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array | np.ndarray, top_k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (k,), descending, with deltas (k, 4) and anchors (k, 4); -inf replaces non-finite logits."""
    scores = jnp.where(jnp.isfinite(logits), logits, -jnp.inf)
    scores, indices = jax.lax.top_k(scores, min(top_k, logits.shape[0]))
    return scores, deltas[indices], jnp.asarray(anchors)[indices]


def _nms_by_level(boxes: jax.Array, valid: jax.Array, lengths: Sequence[int], iou_threshold: float) -> jax.Array:
    """NMS of each level; its boxes are contiguous and sorted, so this is cheaper than NMS with groups."""
    ends = np.cumsum(lengths)[:-1]
    groups = jnp.zeros(valid.shape, jnp.int32)
    levels = list(zip(*(jnp.split(array, ends) for array in (boxes, groups, valid)), strict=True))
    return jnp.concatenate(nms_sorted(levels, iou_threshold=iou_threshold))


def _best_of_all(boxes: jax.Array, scores: jax.Array, count: int) -> Proposals:
    """The `count` boxes of highest score, padded with zeros; boxes with a score of -inf are left out."""
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[0]))
    missing = count - scores.shape[0]
    valid = jnp.pad(jnp.isfinite(scores), (0, missing))
    boxes = jnp.pad(boxes[indices], ((0, missing), (0, 0)))
    scores = jnp.pad(scores, (0, missing))
    return Proposals(jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0), valid)

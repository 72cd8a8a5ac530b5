"""From the RPN's outputs to proposals (Ren et al. 2015; Lin et al. 2017 for the pyramid)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import nms_sorted
from mrcnn_jax.structures import Proposals

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def propose(
    logits_by_level: Sequence[jax.Array],
    deltas_by_level: Sequence[jax.Array],
    anchors_by_level: Sequence[jax.Array | np.ndarray],
    image_size: jax.Array,
    *,
    pre_nms_top_k: int,
    post_nms_top_k: int,
    nms_iou: float,
    min_box_size: float,
) -> Proposals:
    """Proposals of one image, exactly `post_nms_top_k` slots, best first; no gradient flows through them.

    logits (A_l,), deltas (A_l, 4) and anchors (A_l, 4) of each level; image_size (2,) height and width of the
    picture inside the padded image. In each level the best `pre_nms_top_k` boxes are decoded, cut to the picture,
    those with a side < min_box_size (0: with an empty side) or with a number that is not finite are dropped, and NMS
    at `nms_iou` runs; the best `post_nms_top_k` of all levels remain. Slots without a proposal hold zeros.
    """
    best = [
        _best_of_level(*level, pre_nms_top_k)
        for level in zip(logits_by_level, deltas_by_level, anchors_by_level, strict=True)
    ]
    lengths = [scores.shape[0] for scores, _, _ in best]
    scores, deltas, anchors = (jax.lax.stop_gradient(jnp.concatenate(parts)) for parts in zip(*best, strict=True))
    boxes = box_ops.decode(deltas, anchors, weights=DELTA_WEIGHTS)
    boxes = box_ops.clip(boxes, image_size)
    # A NaN is never large enough, a box at infinity has been cut to an empty one, and scores of -inf come last.
    fit = box_ops.large_enough(boxes, min_box_size)
    keep = _nms_by_level(boxes, fit, lengths, nms_iou)
    return _best_of_all(boxes, jnp.where(keep, scores, -jnp.inf), post_nms_top_k)


def _best_of_level(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array | np.ndarray, top_k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (k,) in falling order, deltas (k, 4) and anchors (k, 4) of the best; -inf for what is not finite."""
    scores = jnp.where(jnp.isfinite(logits), logits, -jnp.inf)
    scores, indices = jax.lax.top_k(scores, min(top_k, logits.shape[0]))
    return scores, deltas[indices], jnp.asarray(anchors)[indices]


def _nms_by_level(boxes: jax.Array, valid: jax.Array, lengths: Sequence[int], iou_threshold: float) -> jax.Array:
    """NMS of each level on its own: its boxes lie together, best first. Cheaper than all levels with groups."""
    ends = np.cumsum(lengths)[:-1]
    groups = jnp.zeros(valid.shape, jnp.int32)
    levels = list(zip(*(jnp.split(array, ends) for array in (boxes, groups, valid)), strict=True))
    return jnp.concatenate(nms_sorted(levels, iou_threshold=iou_threshold))


def _best_of_all(boxes: jax.Array, scores: jax.Array, count: int) -> Proposals:
    """The `count` best boxes; a score of -inf marks a box that is out."""
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[0]))
    missing = count - scores.shape[0]
    valid = jnp.pad(jnp.isfinite(scores), (0, missing))
    boxes = jnp.pad(boxes[indices], ((0, missing), (0, 0)))
    scores = jnp.pad(scores, (0, missing))
    return Proposals(jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0), valid)

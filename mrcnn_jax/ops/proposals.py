"""From the RPN's outputs to proposals (Ren et al. 2015; Lin et al. 2017 for the pyramid)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import nms_sorted
from mrcnn_jax.structures import Proposals

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def propose(
    logits_by_level: Sequence[jax.Array],
    deltas_by_level: Sequence[jax.Array],
    anchors_by_level: Sequence[jax.Array],
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
    boxes, scores = [], []
    for logits, deltas, anchors in zip(logits_by_level, deltas_by_level, anchors_by_level, strict=True):
        level_boxes, level_scores, valid = _best_of_level(
            logits, deltas, jnp.asarray(anchors), image_size, top_k=pre_nms_top_k, min_box_size=min_box_size
        )
        groups = jnp.zeros(level_scores.shape, jnp.int32)
        keep = nms_sorted(level_boxes, groups, valid, iou_threshold=nms_iou)
        boxes.append(level_boxes)
        scores.append(jnp.where(keep, level_scores, -jnp.inf))
    proposals = _best_of_all(jnp.concatenate(boxes), jnp.concatenate(scores), post_nms_top_k)
    return jax.lax.stop_gradient(proposals)


def _best_of_level(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, image_size: jax.Array, *, top_k: int, min_box_size: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decoded and clipped boxes (k, 4), logits (k,) in falling order, and which of them are fit to be proposed."""
    scores = jnp.where(jnp.isfinite(logits), logits, -jnp.inf)
    scores, indices = jax.lax.top_k(scores, min(top_k, logits.shape[0]))
    boxes = box_ops.decode(deltas[indices], anchors[indices], weights=DELTA_WEIGHTS)
    finite = jnp.isfinite(scores) & jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = box_ops.clip(boxes, image_size)
    return boxes, scores, finite & box_ops.large_enough(boxes, min_box_size)


def _best_of_all(boxes: jax.Array, scores: jax.Array, count: int) -> Proposals:
    """The `count` best boxes; a score of -inf marks a box that is out."""
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[0]))
    missing = count - scores.shape[0]
    valid = jnp.pad(jnp.isfinite(scores), (0, missing))
    boxes = jnp.pad(boxes[indices], ((0, missing), (0, 0)))
    scores = jnp.pad(scores, (0, missing))
    return Proposals(jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0), valid)

"""Exact greedy non-maximum suppression in fixed shapes.

With boxes sorted by score, S[i, j] = (IoU of i and j > threshold and i before j). Greedy NMS keeps j unless a kept i
suppresses it. `keep <- not any_i(keep_i and S_ij)`, repeated until nothing changes, has exactly that result: round k
settles at least the k-th box, in practice a few rounds settle all. Large inputs are walked in blocks of the order, so
that memory grows with K, not with its square.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops import boxes as box_ops

BLOCK = 2048  # boxes whose mutual overlaps are held at once


def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, *, iou_threshold: float) -> jax.Array:
    """Mask keep (K,) bool, in the order of the input, of the boxes that greedy NMS keeps.

    boxes (K, 4); scores (K,); valid (K,) bool: others are neither kept nor suppress. A box goes when its IoU with a
    kept box of a higher score (equal scores: of a lower index) is > iou_threshold.
    """
    groups = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(boxes, scores, groups, valid, iou_threshold=iou_threshold)


def batched_nms(
    boxes: jax.Array, scores: jax.Array, groups: jax.Array, valid: jax.Array, *, iou_threshold: float
) -> jax.Array:
    """`nms` inside each group (K,) int32, a class or a level: boxes of different groups do not see each other."""
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    keep = nms_sorted(boxes[order], groups[order], valid[order], iou_threshold=iou_threshold)
    return jnp.zeros_like(keep).at[order].set(keep, unique_indices=True)


def nms_sorted(boxes: jax.Array, groups: jax.Array, valid: jax.Array, *, iou_threshold: float) -> jax.Array:
    """Mask keep (K,) bool for boxes (K, 4) that are sorted, best first; `groups` and `valid` as in `batched_nms`."""
    count = boxes.shape[0]
    threshold = _float32_not_above(iou_threshold)
    keep = jnp.asarray(valid)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        block = slice(start, stop)
        before = jnp.arange(stop - start)[:, None] < jnp.arange(stop - start)[None, :]
        suppresses = _overlaps(boxes[block], groups[block], boxes[block], groups[block], threshold) & before
        keep_block = _settle(suppresses, keep[block])
        keep = keep.at[block].set(keep_block)
        if stop < count:
            later = _overlaps(boxes[block], groups[block], boxes[stop:], groups[stop:], threshold)
            keep = keep.at[stop:].set(keep[stop:] & ~jnp.any(later & keep_block[:, None], axis=0))
    return keep


def _overlaps(a: jax.Array, groups_a: jax.Array, b: jax.Array, groups_b: jax.Array, threshold: float) -> jax.Array:
    return (box_ops.iou(a, b) > threshold) & (groups_a[:, None] == groups_b[None, :])


def _settle(suppresses: jax.Array, valid: jax.Array) -> jax.Array:
    """The fixed point of keep_j = valid_j and not any_i(keep_i and suppresses_ij), suppresses strictly upper."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = valid & ~jnp.any(suppresses & keep[:, None], axis=0)
        return new, jnp.any(new != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], step, (valid, jnp.bool_(True)))
    return keep


def _float32_not_above(threshold: float) -> float:
    """The largest float32 <= threshold: `iou > that` in float32 is `iou > threshold` in exact arithmetic."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))

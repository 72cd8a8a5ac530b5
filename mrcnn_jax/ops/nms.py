"""Exact greedy non-maximum suppression in fixed shapes.

With boxes sorted by score, S[i, j] = (IoU of i and j > threshold and i before j). Greedy NMS keeps j unless a kept i
suppresses it. `keep <- not any_i(keep_i and S_ij)`, repeated until nothing changes, has exactly that result: round k
settles at least the k-th box, in practice a few rounds settle all. Large inputs are walked in blocks of the order, so
that memory grows with K, not with its square.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.ops import boxes as box_ops

Boxes = tuple[jax.Array, jax.Array, jax.Array]  # boxes (K, 4), groups (K,), valid (K,)
BLOCK = 1024  # boxes whose mutual overlaps are held at once: small enough for a processor's cache


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
    (keep,) = nms_sorted([(boxes[order], groups[order], valid[order])], iou_threshold=iou_threshold)
    return jnp.zeros_like(keep).at[order].set(keep, unique_indices=True)


def nms_sorted(sets: Sequence[Boxes], *, iou_threshold: float) -> list[jax.Array]:
    """Masks keep (K,) bool, one for each set of boxes (K, 4), groups (K,) and valid (K,) that is sorted, best first.

    The sets, of any sizes, do not see each other; handed over together they share one loop.
    """
    # Without the barrier XLA would compute the boxes again (decoding, clipping) for every pair.
    rest = jax.lax.optimization_barrier([(jax.lax.stop_gradient(b), g, jnp.asarray(v)) for b, g, v in sets])
    kept: list[list[jax.Array]] = [[] for _ in sets]
    for _ in range(0, max(valid.shape[0] for _, _, valid in sets), BLOCK):
        heads = [(boxes[:BLOCK], groups[:BLOCK], valid[:BLOCK]) for boxes, groups, valid in rest]
        rest = [(boxes[BLOCK:], groups[BLOCK:], valid[BLOCK:]) for boxes, groups, valid in rest]
        suppresses = [jnp.triu(_overlaps(head, head, iou_threshold), k=1) for head in heads]
        settled = _settle(suppresses, [valid for _, _, valid in heads])
        for index, (head, keep) in enumerate(zip(heads, settled, strict=True)):
            kept[index].append(keep)
            boxes, groups, valid = rest[index]
            covered = jnp.any(_overlaps(head, rest[index], iou_threshold) & keep[:, None], axis=0)
            rest[index] = boxes, groups, valid & ~covered
    return [jnp.concatenate([*parts, valid]) for parts, (_, _, valid) in zip(kept, rest, strict=True)]


def _overlaps(a: Boxes, b: Boxes, threshold: float) -> jax.Array:
    return (box_ops.iou(a[0], b[0]) > threshold) & (a[1][:, None] == b[1][None, :])


def _settle(suppresses: list[jax.Array], valid: list[jax.Array]) -> list[jax.Array]:
    """The fixed point of keep_j = valid_j and not any_i(keep_i and suppresses_ij), for strictly upper triangles."""

    def step(state: tuple[list[jax.Array], jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        keep, _ = state
        new = [v & ~jnp.any(s & k[:, None], axis=0) for s, k, v in zip(suppresses, keep, valid, strict=True)]
        return new, jnp.any(jnp.concatenate(new) != jnp.concatenate(keep))

    keep, _ = jax.lax.while_loop(lambda state: state[1], step, (valid, jnp.bool_(True)))
    return keep

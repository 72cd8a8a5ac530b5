"""Exact greedy non-maximum suppression in fixed shapes.

Let boxes be sorted by score and S[i, j] = (IoU of i and j > threshold and i before j). Greedy NMS keeps j unless a kept
i suppresses it. Iterating `keep[j] = not any_i(keep[i] and S[i, j])` until nothing changes gives exactly that result:
iteration k determines at least the k-th box, and in practice a few iterations are enough. Large inputs are processed in
blocks of boxes, so that memory grows with K and not with its square.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops import boxes as box_ops

Boxes = tuple[jax.Array, jax.Array, jax.Array]  # boxes (K, 4), groups (K,), valid (K,)
BLOCK = 1024  # boxes whose pairwise overlaps are computed at once: small enough for a CPU cache


def batched_nms(
    boxes: jax.Array, scores: jax.Array, groups: jax.Array, valid: jax.Array, *, iou_threshold: float
) -> jax.Array:
    """Mask (K,) bool of the boxes that greedy NMS keeps in each group, a class or a level, in the order of the input.

    A box is suppressed if its IoU with a kept box of its group and of higher score (of equal scores: of lower index) is
    > iou_threshold. Boxes that are not `valid` are neither kept nor suppress others.

    boxes: (K, 4); scores: (K,); groups: (K,) int32; valid: (K,) bool.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    (keep,) = nms_sorted([(boxes[order], groups[order], valid[order])], iou_threshold=iou_threshold)
    return jnp.zeros_like(keep).at[order].set(keep, unique_indices=True)


def nms_sorted(sets: Sequence[Boxes], *, iou_threshold: float) -> list[jax.Array]:
    """`batched_nms` of several independent sets of boxes that are sorted by score, best first.

    All sets, of any sizes, share one loop; those of equal size share their kernels. Each is boxes (K, 4), groups (K,)
    and valid (K,); each result (K,) bool.
    """
    sizes = [valid.shape[0] for _, _, valid in sets]
    indices = [[i for i, size in enumerate(sizes) if size == common] for common in sorted(set(sizes))]
    stacks = [jax.tree.map(lambda *arrays: jnp.stack(arrays), *(sets[i] for i in same)) for same in indices]
    keeps = [keep for stack in _nms_of_stacks(stacks, iou_threshold) for keep in stack]
    return [keeps[position] for position in np.argsort(np.concatenate(indices))]


def _nms_of_stacks(stacks: list[Boxes], iou_threshold: float) -> list[jax.Array]:
    """`nms_sorted` of sets of equal size: boxes (S, K, 4), groups (S, K) and valid (S, K) -> (S, K) bool, by stack."""
    overlaps = jax.vmap(functools.partial(_overlaps, threshold=iou_threshold))
    # Without the barrier XLA would recompute the boxes (decoding, clipping) for every pair.
    rest = jax.lax.optimization_barrier([(jax.lax.stop_gradient(b), g, v) for b, g, v in stacks])
    keeps: list[list[jax.Array]] = [[] for _ in stacks]
    for _ in range(0, max(valid.shape[1] for _, _, valid in stacks), BLOCK):
        heads = [jax.tree.map(lambda array: array[:, :BLOCK], stack) for stack in rest]
        rest = [jax.tree.map(lambda array: array[:, BLOCK:], stack) for stack in rest]
        suppresses = [jnp.triu(overlaps(head, head), k=1) for head in heads]
        head_keeps = _fixed_point(suppresses, [valid for _, _, valid in heads])
        for index, (head, keep) in enumerate(zip(heads, head_keeps, strict=True)):
            keeps[index].append(keep)
            boxes, groups, valid = rest[index]
            suppressed = jnp.any(overlaps(head, rest[index]) & keep[..., None], axis=-2)
            rest[index] = boxes, groups, valid & ~suppressed
    return [jnp.concatenate([*parts, valid], axis=1) for parts, (_, _, valid) in zip(keeps, rest, strict=True)]


def _overlaps(a: Boxes, b: Boxes, threshold: float) -> jax.Array:
    return (box_ops.iou(a[0], b[0]) > threshold) & (a[1][:, None] == b[1][None, :])


def _fixed_point(suppresses: list[jax.Array], valid: list[jax.Array]) -> list[jax.Array]:
    """Fixed point of keep[j] = valid[j] and not any_i(keep[i] and suppresses[i, j]), for strictly upper triangles."""

    def step(state: tuple[list[jax.Array], jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        keep, _ = state
        new = [v & ~jnp.any(s & k[..., None], axis=-2) for s, k, v in zip(suppresses, keep, valid, strict=True)]
        return new, jnp.any(jnp.stack([jnp.any(n != k) for n, k in zip(new, keep, strict=True)]))

    keep, _ = jax.lax.while_loop(lambda state: state[1], step, (valid, jnp.bool_(True)))
    return keep

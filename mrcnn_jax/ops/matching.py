"""Which ground-truth box each anchor or proposal stands for (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(
    iou: jax.Array, valid: jax.Array, *, positive: float, negative: float, allow_low_quality: bool
) -> tuple[jax.Array, jax.Array]:
    """Matches (A,) int32, best ground-truth slots, and labels (A,) int32: 1 positive, 0 negative, -1 left out.

    iou: (N, A) overlaps; valid: (N,) bool, the slots that hold ground truth. A best overlap >= `positive` is positive,
    one < `negative` is negative, between them an anchor is ignored; without ground truth all are negative. Equal
    overlaps: the lower slot. With `allow_low_quality` every anchor that reaches the best overlap of some ground-truth
    box is positive too (it keeps its own best slot), as in torchvision and Detectron2. Unlike them, a box that meets
    no anchor at all claims none: they would call all its non-overlapping anchors positive.
    """
    slots, count = iou.shape
    if slots == 0:
        return jnp.zeros(count, jnp.int32), jnp.full(count, NEGATIVE, jnp.int32)
    # The barrier keeps XLA from computing an overlap twice with different rounding: `==` below needs the same number.
    iou = jax.lax.optimization_barrier(jnp.where(valid[:, None], iou, -1.0))
    best, matches = jax.lax.platform_dependent(iou, cpu=_best_slot_cpu, default=_best_slot)
    labels = jnp.where(best >= positive, POSITIVE, jnp.where(best < negative, NEGATIVE, IGNORED))
    if allow_low_quality:
        best_of_slot = jnp.max(iou, axis=1, keepdims=True)
        claimed = jnp.any((iou == best_of_slot) & (best_of_slot > 0.0), axis=0)
        labels = jnp.where(claimed, POSITIVE, labels)
    return matches, labels.astype(jnp.int32)


def _best_slot(iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each anchor the largest overlap (A,) and the first slot (A,) int32 that has it."""
    return jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32)


def _best_slot_cpu(iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same, slot by slot: XLA:CPU reduces pairs of a number and its index one anchor at a time."""

    def look(best: tuple[jax.Array, jax.Array], slot: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        row = iou[slot]
        better = row > best[0]
        return (jnp.where(better, row, best[0]), jnp.where(better, slot, best[1])), None

    slots = jnp.arange(iou.shape[0], dtype=jnp.int32)
    return jax.lax.scan(look, (iou[0], jnp.zeros_like(iou[0], jnp.int32)), slots)[0]

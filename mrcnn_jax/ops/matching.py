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
    best = jnp.max(iou, axis=0)
    labels = jnp.where(best >= positive, POSITIVE, jnp.where(best < negative, NEGATIVE, IGNORED))
    if allow_low_quality:
        best_of_slot = jnp.max(iou, axis=1, keepdims=True)
        claimed = jnp.any((iou == best_of_slot) & (best_of_slot > 0.0), axis=0)
        labels = jnp.where(claimed, POSITIVE, labels)
    # An argmax: XLA:CPU reduces numbers many at a time, but pairs of a number and its index one by one.
    indices = jnp.arange(slots, dtype=jnp.int32)[:, None]
    matches = jnp.min(jnp.where(iou == best[None], indices, slots - 1), axis=0)
    return matches, labels.astype(jnp.int32)

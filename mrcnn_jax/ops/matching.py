"""Matching of anchors or proposals to ground-truth boxes (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(
    iou: jax.Array, valid: jax.Array, *, positive: float, negative: float, allow_low_quality: bool
) -> tuple[jax.Array, jax.Array]:
    """Match each anchor to the ground-truth box that it overlaps most.

    Args:
        iou: (N, A) overlaps of ground-truth slots and anchors.
        valid: (N,) bool, the slots that hold ground truth. Without any, all anchors are negative.
        positive: anchors whose best overlap is >= this are positive.
        negative: anchors whose best overlap is < this are negative; those in between are ignored.
        allow_low_quality: anchors that reach the best overlap of some ground-truth box are positive too, and keep the
            match that is best for themselves, as in torchvision and Detectron2. Unlike there, a box that overlaps no
            anchor has no effect; there it would make all anchors that do not overlap it positive.

    Returns:
        matches (A,) int32, the best slot, of equal ones the first; labels (A,) int32, POSITIVE, NEGATIVE or IGNORED.
    """
    slots, count = iou.shape
    if slots == 0:
        return jnp.zeros(count, jnp.int32), jnp.full(count, NEGATIVE, jnp.int32)
    # The barrier keeps XLA from computing an overlap twice with different rounding, which would break `==` below.
    iou = jax.lax.optimization_barrier(jnp.where(valid[:, None], iou, -1.0))
    best, matches = jax.lax.platform_dependent(iou, cpu=_best_slot_cpu, default=_best_slot)
    labels = jnp.where(best >= positive, POSITIVE, jnp.where(best < negative, NEGATIVE, IGNORED))
    if allow_low_quality:
        best_of_slot = jnp.max(iou, axis=1, keepdims=True)
        is_best_of_slot = jnp.any((iou == best_of_slot) & (best_of_slot > 0.0), axis=0)
        labels = jnp.where(is_best_of_slot, POSITIVE, labels)
    return matches, labels.astype(jnp.int32)


def _best_slot(iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest overlap (A,) of each anchor, and the first slot (A,) int32 that has it."""
    return jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32)


def _best_slot_cpu(iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_best_slot` as a scan over slots: XLA:CPU computes an argmax over slots one anchor at a time."""

    def update(best: tuple[jax.Array, jax.Array], slot: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        row = iou[slot]
        better = row > best[0]
        return (jnp.where(better, row, best[0]), jnp.where(better, slot, best[1])), None

    slots = jnp.arange(iou.shape[0], dtype=jnp.int32)
    return jax.lax.scan(update, (iou[0], jnp.zeros_like(iou[0], jnp.int32)), slots)[0]

"""Random choice of a fixed budget of positives and negatives: top-k over noise, so that all shapes are static."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.matching import NEGATIVE, POSITIVE

_SORTED = 2048  # values that a GPU sorts without leaving fast memory


def sample(key: jax.Array, labels: jax.Array, *, count: int, positive_fraction: float) -> tuple[jax.Array, jax.Array]:
    """Masks (A,) bool of the drawn positives and the drawn negatives, uniform without replacement.

    labels: (A,) int32 as `matching.match` gives them. At most int(count * positive_fraction) positives are drawn, and
    negatives up to `count` in all: they make up for missing positives, nothing makes up for missing negatives, as in
    torchvision and Detectron2.
    """
    positive_key, negative_key = jax.random.split(key)
    budget = jnp.int32(int(count * positive_fraction))
    positives = _draw(positive_key, labels == POSITIVE, budget, limit=int(count * positive_fraction))
    remaining = count - jnp.sum(positives, dtype=jnp.int32)
    return positives, _draw(negative_key, labels == NEGATIVE, remaining, limit=count)


def select(key: jax.Array, labels: jax.Array, *, count: int, positive_fraction: float) -> tuple[jax.Array, jax.Array]:
    """Indices (R,) int32 and valid (R,) bool of what `sample` draws from labels (P,), R = min(count, P).

    Positives come first, then negatives, each in the order of their index; slots left over are not valid.
    """
    positives, negatives = sample(key, labels, count=count, positive_fraction=positive_fraction)
    rank = jnp.where(positives, 2.0, jnp.where(negatives, 1.0, 0.0))
    rank, indices = jax.lax.top_k(rank, min(count, labels.shape[0]))  # equal ranks: lower index first
    return indices, rank > 0.0


def _draw(key: jax.Array, candidates: jax.Array, number: jax.Array, *, limit: int) -> jax.Array:
    """Mask of min(number, candidates) candidates drawn at random; number <= limit, which is static."""
    noise = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    largest = partial(_top_k, k=min(limit, candidates.shape[0]))
    in_blocks = partial(_top_k_in_blocks, k=min(limit, candidates.shape[0]))
    noise, indices = jax.lax.platform_dependent(noise, cpu=largest, default=in_blocks)
    drawn = (noise >= 0.0) & (jnp.arange(noise.shape[0]) < number)
    return jnp.zeros(candidates.shape, bool).at[indices].set(drawn, unique_indices=True)


def _top_k(values: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k`, which returns a list, as a tuple."""
    found, indices = jax.lax.top_k(values, k)
    return found, indices


def _top_k_in_blocks(values: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of values (N,) above -inf, ties too, for machines that sort everything for it: many small sorts at
    once, in fast memory, and then one of what is left."""
    count = -(-values.shape[0] // _SORTED)
    if k > _SORTED // 2 or count == 1:
        return _top_k(values, k=k)
    blocks = jnp.pad(values, (0, count * _SORTED - values.shape[0]), constant_values=-jnp.inf).reshape(count, _SORTED)
    best, places = jax.lax.top_k(blocks, k)
    places = places + _SORTED * jnp.arange(count, dtype=places.dtype)[:, None]
    found, which = jax.lax.top_k(best.reshape(-1), k)
    return found, places.reshape(-1)[which]

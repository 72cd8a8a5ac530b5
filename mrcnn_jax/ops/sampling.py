"""Random subsampling of a fixed number of positives and negatives: top-k over noise, so that shapes are static."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.matching import NEGATIVE, POSITIVE

_BLOCK = 2048  # values that a GPU sorts in shared memory


def subsample(
    key: jax.Array, labels: jax.Array, *, count: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Masks (A,) bool of sampled positives and sampled negatives, uniform without replacement.

    At most int(count * positive_fraction) positives are sampled, then negatives up to `count` in all. Negatives fill
    the places of missing positives but not the reverse, as in torchvision and Detectron2.

    labels: (A,) int32, from `matching.match`.
    """
    positive_key, negative_key = jax.random.split(key)
    budget = jnp.int32(int(count * positive_fraction))
    positives = _choose(positive_key, labels == POSITIVE, budget, limit=int(count * positive_fraction))
    remaining = count - jnp.sum(positives, dtype=jnp.int32)
    return positives, _choose(negative_key, labels == NEGATIVE, remaining, limit=count)


def subsample_indices(
    key: jax.Array, labels: jax.Array, *, count: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Indices (R,) int32 of the sample that `subsample` takes from labels (P,), and valid (R,) bool.

    R = min(count, P). Positives come first, then negatives, each in ascending order; unused slots are not valid.
    """
    positives, negatives = subsample(key, labels, count=count, positive_fraction=positive_fraction)
    rank = jnp.where(positives, 2.0, jnp.where(negatives, 1.0, 0.0))
    rank, indices = jax.lax.top_k(rank, min(count, labels.shape[0]))  # equal ranks: lower index first
    return indices, rank > 0.0


def _choose(key: jax.Array, candidates: jax.Array, number: jax.Array, *, limit: int) -> jax.Array:
    """Mask of `number` random candidates, or all if there are fewer; number <= limit, which is static."""
    noise = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    largest = partial(_top_k, k=min(limit, candidates.shape[0]))
    in_blocks = partial(_top_k_in_blocks, k=min(limit, candidates.shape[0]))
    noise, indices = jax.lax.platform_dependent(noise, cpu=largest, default=in_blocks)
    chosen = (noise >= 0.0) & (jnp.arange(noise.shape[0]) < number)
    return jnp.zeros(candidates.shape, bool).at[indices].set(chosen, unique_indices=True)


def _top_k(values: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` as a tuple; it returns a list, which is another pytree."""
    largest, indices = jax.lax.top_k(values, k)
    return largest, indices


def _top_k_in_blocks(values: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of finite values (N,), with the same order of ties.

    Faster where top-k sorts all values, as on GPUs: many small sorts at once, in shared memory, and then one of what
    remains.
    """
    count = -(-values.shape[0] // _BLOCK)
    if k > _BLOCK // 2 or count == 1:
        return _top_k(values, k=k)
    blocks = jnp.pad(values, (0, count * _BLOCK - values.shape[0]), constant_values=-jnp.inf).reshape(count, _BLOCK)
    block_values, indices = jax.lax.top_k(blocks, k)
    indices = indices + _BLOCK * jnp.arange(count, dtype=indices.dtype)[:, None]
    largest, positions = jax.lax.top_k(block_values.reshape(-1), k)
    return largest, indices.reshape(-1)[positions]

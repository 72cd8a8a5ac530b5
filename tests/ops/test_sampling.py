"""Subsampling of positives and negatives: numbers, order, uniformity."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.ops import sampling
from mrcnn_jax.ops.sampling import subsample, subsample_indices

BUDGET = {"count": 8, "positive_fraction": 0.25}
LENGTH = 20


@functools.partial(jax.jit, static_argnames=("count", "positive_fraction"))
def draw(key, labels, **budget):
    """The masks of `subsample`, and the indices of `subsample_indices`."""
    return subsample(key, labels, **budget), subsample_indices(key, labels, **budget)


def sample_8(key, labels):
    return draw(key, labels, **BUDGET)[0]


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


def budget_reference(labels: np.ndarray, count: int, fraction: float) -> tuple[int, int]:
    """Number of positives and negatives that the reference implementations sample."""
    positives = min(int(count * fraction), int((labels == 1).sum()))
    return positives, min(count - positives, int((labels == 0).sum()))


def test_all_are_sampled_if_there_are_too_few():
    labels = jnp.array([1, -1, 0, 0, -1, 1, 0], jnp.int32)
    (positive, negative), (indices, valid) = draw(jax.random.key(0), labels, count=10**6, positive_fraction=0.5)
    np.testing.assert_array_equal(positive, labels == 1)
    np.testing.assert_array_equal(negative, labels == 0)
    np.testing.assert_array_equal(indices[:5], [0, 5, 2, 3, 6])
    np.testing.assert_array_equal(valid, [True] * 5 + [False] * 2)


def test_missing_negatives_are_not_replaced_by_positives():
    positive, negative = sample_8(jax.random.key(0), jnp.ones(LENGTH, jnp.int32))
    assert positive.sum() == 2
    assert not negative.any()


@settings(max_examples=40)
@given(st.integers(0, 1000), st.lists(st.sampled_from([0, 0, 0, 0, -1, 1]), min_size=LENGTH, max_size=LENGTH))
def test_budget(seed, labels):
    labels = np.array(labels, np.int32)
    key = jax.random.key(seed)
    (positive, negative), (indices, valid) = jax.tree.map(np.asarray, draw(key, labels, **BUDGET))
    assert (positive.sum(), negative.sum()) == budget_reference(labels, 8, 0.25)
    assert (labels[positive] == 1).all()
    assert (labels[negative] == 0).all()
    assert indices.shape == valid.shape == (8,)
    expected = np.concatenate([np.flatnonzero(positive), np.flatnonzero(negative)])
    np.testing.assert_array_equal(indices[valid], expected)
    assert valid[: len(expected)].all()


@pytest.mark.parametrize("length", [0, 1])
def test_no_candidates(length):
    labels = jnp.full(length, -1, jnp.int32)
    masks, (indices, valid) = draw(jax.random.key(0), labels, **BUDGET)
    assert not any(mask.any() for mask in masks)
    assert indices.shape == (length,)
    assert not valid.any()


def test_sampling_is_uniform():
    labels = np.array([1] * 6 + [0] * 14, np.int32)
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    positive, negative = jax.vmap(sample_8, in_axes=(0, None))(keys, labels)
    for mask, group, number in ((positive, labels == 1, 2), (negative, labels == 0, 6)):
        share = number / group.sum()
        frequency = np.asarray(mask).mean(axis=0)[group]
        # Five standard deviations of a binomial frequency.
        np.testing.assert_allclose(frequency, share, atol=5 * np.sqrt(share * (1 - share) / draws))


def test_the_key_determines_the_sample():
    labels = jnp.zeros(LENGTH, jnp.int32)
    first, again, other = (sample_8(jax.random.key(seed), labels)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_vmap_equals_the_loop():
    labels = np.random.default_rng(0).integers(-1, 2, (3, LENGTH)).astype(np.int32)
    keys = jax.random.split(jax.random.key(5), 3)
    batched = jax.vmap(functools.partial(draw, **BUDGET))(keys, labels)
    for image in range(3):
        expected = draw(keys[image], labels[image], **BUDGET)
        jax.tree.map(
            lambda got, wanted, image=image: np.testing.assert_array_equal(got[image], wanted), batched, expected
        )


@pytest.mark.parametrize(("length", "k"), [(5000, 256), (4096, 7), (2048, 64), (3000, 1500)])
def test_top_k_in_blocks_equals_top_k(length, k):
    """Ties as well: of equal values the first come first, also across blocks."""
    values = np.random.default_rng(0).integers(-1, 400, length).astype(np.float32)
    expected = jax.lax.top_k(values, k)
    found = sampling._top_k_in_blocks(jnp.asarray(values), k=k)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_more_labels_than_a_block():
    labels = np.zeros(5000, np.int32)
    labels[[7, 2047, 2048, 4999]] = 1
    positives, negatives = sample_8(jax.random.key(0), jnp.asarray(labels))
    assert positives.sum() == 2
    assert negatives.sum() == 6
    assert not np.any(labels[negatives])

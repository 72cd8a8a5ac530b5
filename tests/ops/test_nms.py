"""NMS: hand cases, greedy NMS as a loop, torchvision, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.ops import nms as nms_ops
from mrcnn_jax.ops.nms import batched_nms

COUNT = 12
compiled = jax.jit(batched_nms, static_argnames="iou_threshold")


def one_group(boxes, scores, valid, *, iou_threshold):
    return compiled(boxes, scores, jnp.zeros(len(boxes), jnp.int32), valid, iou_threshold=iou_threshold)


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


def greedy_reference(boxes, scores, groups, valid, threshold) -> np.ndarray:
    """Textbook greedy NMS: keep the best remaining box, remove those that it overlaps."""
    boxes, keep = boxes.astype(float), np.zeros(len(boxes), bool)
    left = [i for i in np.argsort(-scores, kind="stable") if valid[i]]
    while left:
        best = left.pop(0)
        keep[best] = True
        left = [i for i in left if groups[i] != groups[best] or overlap(boxes[best], boxes[i]) <= threshold]
    return keep


def overlap(a, b) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = max(width, 0.0) * max(height, 0.0)
    return inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter) if inter else 0.0


def clustered_boxes(seed: int, count: int, *, clusters: int = 4) -> tuple[np.ndarray, ...]:
    """Boxes in a few clusters with tied scores, two groups, and some slots that are not valid."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 100, (clusters, 2))[rng.integers(0, clusters, count)] + rng.integers(0, 8, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(8, 20, (count, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(0, 20, count) / 20).astype(np.float32)
    return boxes, scores, rng.integers(0, 2, count).astype(np.int32), rng.uniform(size=count) < 0.9


def test_hand_case():
    boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 8.0], [50.0, 0.0, 60.0, 10.0]])
    scores = jnp.array([0.5, 0.9, 0.4, 0.1])
    keep = one_group(boxes, scores, jnp.ones(4, bool), iou_threshold=0.85)
    # Box 1 suppresses 0 (0.9) and 2 (0.89).
    np.testing.assert_array_equal(keep, [False, True, False, True])
    # Without it, 0 and 2 overlap by 0.8 and both are kept.
    keep = one_group(boxes, scores, jnp.array([True, False, True, True]), iou_threshold=0.85)
    np.testing.assert_array_equal(keep, [True, False, True, True])


def test_suppressed_boxes_suppress_none():
    boxes = np.array([[i * 4, 0, i * 4 + 10, 10] for i in range(5)], np.float32)  # neighbors overlap by 6 / 14
    keep = one_group(jnp.asarray(boxes), jnp.array([5.0, 4.0, 3.0, 2.0, 1.0]), jnp.ones(5, bool), iou_threshold=0.4)
    np.testing.assert_array_equal(keep, [True, False, True, False, True])


def test_of_equal_scores_the_lower_index_is_kept():
    boxes = jnp.array([[0.0, 0.0, 4.0, 4.0]] * 3)
    keep = one_group(boxes, jnp.array([0.5, 0.5, 0.5]), jnp.array([False, True, True]), iou_threshold=0.5)
    np.testing.assert_array_equal(keep, [False, True, False])


@pytest.mark.parametrize(("block", "threshold"), [(5, 0.3), (5, 0.7), (nms_ops.BLOCK, 0.3)])
def test_equals_greedy(monkeypatch, block, threshold):
    monkeypatch.setattr(nms_ops, "BLOCK", block)
    inputs = clustered_boxes(0, 57)
    keep = jax.jit(lambda *arrays: batched_nms(*arrays, iou_threshold=threshold))(*inputs)
    expected = greedy_reference(*inputs, threshold)
    assert 0 < expected.sum() < inputs[3].sum()
    np.testing.assert_array_equal(keep, expected)


corner = st.sampled_from([0, 0, 5, 10])
side = st.sampled_from([0, 5, 10])
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
slot = st.tuples(box, st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 1), st.booleans())


@settings(max_examples=60)
@given(st.lists(slot, min_size=COUNT, max_size=COUNT))
def test_equals_greedy_on_ties_empty_boxes_and_exact_thresholds(slots):
    boxes, scores, groups, valid = (np.array(column) for column in zip(*slots, strict=True))
    inputs = boxes.astype(np.float32), scores.astype(np.float32), groups.astype(np.int32), valid
    np.testing.assert_array_equal(compiled(*inputs, iou_threshold=0.5), greedy_reference(*inputs, 0.5))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_has_no_effect(garbage):
    boxes, scores, groups, valid = clustered_boxes(1, COUNT)
    valid[::3] = False
    expected = compiled(boxes, scores, groups, valid, iou_threshold=0.5)
    assert expected.any()
    boxes[~valid], scores[~valid], groups[~valid] = garbage, garbage, 1
    np.testing.assert_array_equal(compiled(boxes, scores, groups, valid, iou_threshold=0.5), expected)


def test_a_nan_box_overlaps_none():
    boxes = np.array([[0, 0, 4, 4], [np.nan] * 4, [0, 0, 4, 4]], np.float32)
    keep = one_group(jnp.asarray(boxes), jnp.array([1.0, 2.0, 0.5]), jnp.ones(3, bool), iou_threshold=0.5)
    np.testing.assert_array_equal(keep, [True, True, False])


@pytest.mark.medium
@pytest.mark.parametrize("block", [5, nms_ops.BLOCK])
def test_sorted_sets_of_equal_and_different_sizes_share_one_loop(monkeypatch, block):
    monkeypatch.setattr(nms_ops, "BLOCK", block)
    sets = [clustered_boxes(seed, count) for seed, count in ((2, 23), (3, 0), (4, 6), (5, 23))]
    orders = [np.argsort(-scores, kind="stable") for _, scores, _, _ in sets]
    ready = [(b[order], g[order], v[order]) for (b, _, g, v), order in zip(sets, orders, strict=True)]
    keeps = jax.jit(lambda sets: nms_ops.nms_sorted(sets, iou_threshold=0.5))(ready)
    for inputs, order, keep in zip(sets, orders, keeps, strict=True):
        np.testing.assert_array_equal(keep, greedy_reference(*inputs, 0.5)[order])


def test_no_boxes_and_no_valid_boxes():
    none = np.zeros((0, 4), np.float32)
    keep = one_group(jnp.asarray(none), jnp.zeros(0), jnp.zeros(0, bool), iou_threshold=0.5)
    assert keep.shape == (0,)
    assert not one_group(jnp.ones((3, 4)), jnp.ones(3), jnp.zeros(3, bool), iou_threshold=0.5).any()


def test_vmap_equals_the_loop():
    images = [clustered_boxes(seed, COUNT) for seed in range(3)]
    batched = jax.vmap(lambda *arrays: compiled(*arrays, iou_threshold=0.5))(*map(np.stack, zip(*images, strict=True)))
    for keep, inputs in zip(batched, images, strict=True):
        np.testing.assert_array_equal(keep, compiled(*inputs, iou_threshold=0.5))


def kept_indices(keep) -> set[int]:
    return set(np.flatnonzero(keep).tolist())


@pytest.mark.parametrize("scores", ["scores", "scores_ties"])
def test_golden_keep(golden, scores):
    arrays = golden("tv_op_nms.npz")
    boxes, valid = arrays["boxes"], np.ones(len(arrays["boxes"]), bool)
    prefix = "keep_ties_" if scores == "scores_ties" else "keep_"
    thresholds = [key.removeprefix(prefix) for key in arrays if key.startswith(prefix) and key[len(prefix)].isdigit()]
    assert thresholds
    for text in thresholds:
        for groups, key in ((np.zeros(len(boxes), np.int32), prefix), (arrays["idxs"].astype(np.int32), "b" + prefix)):
            keep = compiled(boxes, arrays[scores], groups, valid, iou_threshold=float(text))
            assert kept_indices(keep) == set(arrays[key + text].tolist())


def test_golden_exact_threshold_is_kept(golden):
    arrays = golden("tv_op_nms.npz")
    boxes = jnp.asarray(arrays["exact_boxes"])
    keep = one_group(boxes, jnp.asarray(arrays["exact_scores"]), jnp.ones(len(boxes), bool), iou_threshold=0.5)
    assert kept_indices(keep) == set(arrays["exact_keep"].tolist())

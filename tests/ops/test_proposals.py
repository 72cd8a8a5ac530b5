"""Proposals from RPN outputs: a hand case, a plain reference, torchvision."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import RPNConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import batched_nms
from mrcnn_jax.ops.proposals import propose

LEVELS = (30, 12, 3)
F32 = np.finfo(np.float32).eps
compiled_nms = jax.jit(batched_nms, static_argnames="iou_threshold")
decode = jax.jit(
    lambda deltas, boxes, size: box_ops.clip(box_ops.decode(deltas, boxes, weights=(1.0, 1.0, 1.0, 1.0)), size)
)
OPTIONS = {"pre_nms_top_k": 20, "post_nms_top_k": 16, "nms_iou": 0.6, "min_box_size": 4.0}


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


def split(array: np.ndarray, sizes, axis: int = 0) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1], axis=axis)


def anchors() -> np.ndarray:
    rng = np.random.default_rng(9)
    corner = rng.uniform(0, 60, (sum(LEVELS), 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, corner.shape)], axis=1).astype(np.float32)


def network_output(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=sum(LEVELS)).astype(np.float32)
    return logits, rng.normal(0, 0.5, (sum(LEVELS), 4)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=tuple(OPTIONS))
def run(logits, deltas, size, **options):
    levels = split_traced(logits), split_traced(deltas), split(anchors(), LEVELS)
    return propose(*levels, size, settings(**options), train=False)


def settings(*, pre_nms_top_k, post_nms_top_k, **options):
    """The configuration with other limits for training, which these tests do not use."""
    limits = {"pre_nms_top_k_test": pre_nms_top_k, "post_nms_top_k_test": post_nms_top_k}
    return RPNConfig(**limits, pre_nms_top_k_train=1, post_nms_top_k_train=1, **options)


def split_traced(array):
    return jnp.split(array, np.cumsum(LEVELS)[:-1])


def propose_reference(logits, deltas, size, *, pre_nms_top_k, post_nms_top_k, nms_iou, min_box_size):
    """Proposals as a loop over levels; decoding, clipping and NMS have references of their own."""
    found = []
    start = 0
    for count in LEVELS:
        rows = np.arange(start, start + count)
        start += count
        rows = rows[np.argsort(-logits[rows], kind="stable")][:pre_nms_top_k]
        boxes = np.asarray(decode(deltas[rows], anchors()[rows], size))
        fit = (boxes[:, 2] - boxes[:, 0] >= min_box_size) & (boxes[:, 3] - boxes[:, 1] >= min_box_size)
        keep = np.asarray(compiled_nms(boxes, logits[rows], np.zeros(len(rows), np.int32), fit, iou_threshold=nms_iou))
        found += [(logits[row], box) for row, box in zip(rows[keep], boxes[keep], strict=True)]
    found.sort(key=lambda pair: -pair[0])
    return found[:post_nms_top_k]


def assert_same(proposals, expected) -> None:
    count = len(expected)
    np.testing.assert_array_equal(proposals.valid, np.arange(len(proposals.valid)) < count)
    np.testing.assert_array_equal(proposals.scores[:count], [score for score, _ in expected])
    # Compiled code may contract a product and a sum: a few units in the last place of coordinates below 128.
    np.testing.assert_allclose(proposals.boxes[:count], [box for _, box in expected], rtol=0, atol=3e-5)
    assert not proposals.boxes[count:].any()
    assert not proposals.scores[count:].any()


def test_hand_case():
    level0 = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [-8, 0, -2, 10]], np.float32)  # the last is outside of the image
    level1 = np.array([[0, 0, 10, 10]], np.float32)  # equal to the first, but on another level: kept
    options = {"pre_nms_top_k": 3, "post_nms_top_k": 4, "nms_iou": 0.5, "min_box_size": 0.0}
    proposals = jax.jit(functools.partial(propose, config=settings(**options), train=False))(
        [np.float32([1, 3, 9]), np.float32([2])],
        [np.zeros((3, 4), np.float32), np.zeros((1, 4), np.float32)],
        [level0, level1],
        np.array([20, 8]),
    )
    np.testing.assert_array_equal(proposals.valid, [True, True, False, False])
    np.testing.assert_array_equal(proposals.boxes, [[0, 0, 8, 9], [0, 0, 8, 10], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(proposals.scores, [3, 2, 0, 0])


@pytest.mark.parametrize("post", [8, 60])
def test_equals_the_reference(post):
    logits, deltas = network_output(0)
    size, options = np.array([60, 70]), OPTIONS | {"post_nms_top_k": post}
    proposals = run(logits, deltas, size, **options)
    expected = propose_reference(logits, deltas, size, **options)
    assert proposals.boxes.shape == (post, 4)
    assert_same(proposals, expected)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_non_finite_candidates_are_dropped_and_use_no_slot(garbage):
    logits, deltas = network_output(1)
    size, options = np.array([100, 100]), OPTIONS | {"post_nms_top_k": 60}
    in_logits, in_deltas = [0, 7], [35]
    last = logits.copy()
    last[in_logits + in_deltas] = -1e9
    expected = [item for item in propose_reference(last, deltas, size, **options) if item[0] > -1e9]
    logits[in_logits], deltas[in_deltas] = garbage, garbage
    assert_same(run(logits, deltas, size, **options), expected)


def test_an_empty_image_has_no_proposals():
    logits, deltas = network_output(2)
    proposals = run(logits, deltas, np.array([0, 0]), **OPTIONS)
    assert not proposals.valid.any()
    assert not proposals.boxes.any()


def test_no_gradient_flows():
    logits, deltas = network_output(3)

    def total(logits, deltas):
        proposals = run(logits, deltas, np.array([60, 70]), **OPTIONS)
        return proposals.boxes.sum() + proposals.scores.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(logits, deltas):
        np.testing.assert_array_equal(gradient, 0)


def test_vmap_equals_the_loop():
    outputs = [network_output(seed) for seed in (4, 5)]
    sizes = np.array([[60, 70], [30, 100]])
    logits, deltas = map(np.stack, zip(*outputs, strict=True))
    batched = jax.vmap(lambda *arrays: run(*arrays, **OPTIONS))(logits, deltas, sizes)
    for image in range(2):
        alone = run(logits[image], deltas[image], sizes[image], **OPTIONS)
        np.testing.assert_array_equal(batched.scores[image], alone.scores)
        np.testing.assert_array_equal(batched.valid[image], alone.valid)
        np.testing.assert_allclose(batched.boxes[image], alone.boxes, rtol=0, atol=3e-5)  # as above


@pytest.mark.medium
@pytest.mark.parametrize(("mode", "pre", "post"), [("train", 200, 120), ("test", 100, 60)])
def test_golden_proposals(golden, mode, pre, post):
    arrays, anchor_arrays = golden("tv_op_rpn.npz"), golden("tv_op_anchors.npz")
    height, width = arrays["padded"]
    sizes, images = arrays["num_anchors_per_level"], len(arrays["image_sizes"])
    logits = split(arrays["objectness"].reshape(images, -1), sizes, axis=1)
    deltas = split(arrays["deltas"].reshape(images, -1, 4), sizes, axis=1)
    levels = split(anchor_arrays[f"anchors_{height}x{width}"], sizes)
    limits = {f"pre_nms_top_k_{mode}": pre, f"post_nms_top_k_{mode}": post}
    config = RPNConfig(**limits, nms_iou=0.7, min_box_size=1e-3)
    ours = jax.jit(jax.vmap(lambda *a: propose(a[0], a[1], levels, a[2], config, train=mode == "train")))(
        logits, deltas, arrays["image_sizes"]
    )
    plain = (1.0, 1.0, 1.0, 1.0)
    largest = np.abs(box_ops.decode(np.concatenate(deltas, axis=1), np.concatenate(levels)[None], weights=plain)).max()
    for image in range(images):
        boxes, scores = arrays[f"proposals_{mode}{image}"], arrays[f"scores_{mode}{image}"]
        valid = np.asarray(ours.valid[image])
        assert valid.sum() == len(boxes)
        # Both round coordinates at most eight times by half a unit; doubled as a margin.
        np.testing.assert_allclose(ours.boxes[image][valid], boxes, rtol=0, atol=16 * F32 * largest)
        np.testing.assert_allclose(1 / (1 + np.exp(-np.float64(ours.scores[image][valid]))), scores, rtol=8 * F32)

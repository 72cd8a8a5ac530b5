"""Detections from box head outputs: a hand case, a plain reference, torchvision, padding."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.detections import detect
from mrcnn_jax.ops.nms import batched_nms
from mrcnn_jax.structures import Proposals

PROPOSALS, CLASSES = 24, 3
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
OPTIONS = {
    "delta_weights": WEIGHTS,
    "score_threshold": 0.2,
    "nms_iou": 0.5,
    "max_detections": 12,
    "nms_candidates": 4096,
    "min_box_size": 2.0,
}
SIZE = np.array([70, 80])
F32 = np.finfo(np.float32).eps
compiled_nms = jax.jit(batched_nms, static_argnames="iou_threshold")
decode = jax.jit(lambda deltas, boxes, size: box_ops.clip(box_ops.decode(deltas, boxes, weights=WEIGHTS), size))


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


@functools.partial(jax.jit, static_argnames=tuple(OPTIONS))
def run(logits, deltas, proposals, size, **options):
    return detect(logits, deltas, proposals, size, BoxHeadConfig(**options))


def head_output(seed: int, *, agnostic: bool = False) -> tuple[np.ndarray, np.ndarray, Proposals]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (6, 2))[rng.integers(0, 6, PROPOSALS)] + rng.uniform(0, 4, (PROPOSALS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 30, corner.shape)], axis=1).astype(np.float32)
    logits = rng.normal(0, 1.5, (PROPOSALS, CLASSES + 1)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (PROPOSALS, 1 if agnostic else CLASSES, 4)).astype(np.float32)
    return logits, deltas, Proposals(boxes, np.zeros(PROPOSALS, np.float32), rng.uniform(size=PROPOSALS) < 0.8)


def detect_reference(logits, deltas, proposals, size, *, score_threshold, nms_iou, max_detections, min_box_size, **_):
    """Detection as a loop over classes; decoding, clipping and NMS have references of their own."""
    scores = np.asarray(jax.nn.softmax(logits, axis=-1))
    found = []
    for label in range(1, CLASSES + 1):
        column = min(label, deltas.shape[1]) - 1
        boxes = np.asarray(decode(deltas[:, column], proposals.boxes, size))
        sides = boxes[:, 2:] - boxes[:, :2]
        fit = proposals.valid & (scores[:, label] > score_threshold) & (sides >= min_box_size).all(axis=1)
        kept = compiled_nms(boxes, scores[:, label], np.zeros(len(boxes), np.int32), fit, iou_threshold=nms_iou)
        found += [(scores[row, label], label, boxes[row]) for row in np.flatnonzero(kept)]
    found.sort(key=lambda item: -item[0])
    return found[:max_detections]


def assert_same(result, expected) -> None:
    boxes, scores, classes, valid, _ = (np.asarray(array) for array in result)
    count = len(expected)
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < count)
    np.testing.assert_array_equal(classes[:count], [label for _, label, _ in expected])
    # Softmax and decoding in compiled code: a few units in the last place of 1 and of coordinates below 128.
    np.testing.assert_allclose(scores[:count], [score for score, _, _ in expected], rtol=0, atol=5e-7)
    np.testing.assert_allclose(boxes[:count], np.reshape([b for _, _, b in expected], (-1, 4)), rtol=0, atol=3e-5)
    assert not boxes[count:].any()
    assert not scores[count:].any()
    assert not classes[count:].any()


def test_hand_case():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 60]])
    probabilities = np.float32([[0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.35, 0.05, 0.6]])
    proposals = Proposals(boxes, np.zeros(3, np.float32), np.ones(3, bool))
    deltas = np.zeros((3, 2, 4), np.float32)
    result = run(np.log(probabilities), deltas, proposals, np.array([40, 40]), **OPTIONS | {"max_detections": 4})
    # (0, class 1) suppresses (1, class 1); (1, class 2) overlaps no box of its class; the last is clipped.
    expected = [(0.8, 1, [0, 0, 10, 10]), (0.6, 2, [20, 20, 30, 40]), (0.3, 2, [0, 0, 10, 9])]
    assert_same(result, expected)
    assert not result[-1]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("max_detections", [3, 100])
def test_equals_the_reference(agnostic, max_detections):
    inputs, options = head_output(0, agnostic=agnostic), OPTIONS | {"max_detections": max_detections}
    result = run(*inputs, SIZE, **options)
    expected = detect_reference(*inputs, SIZE, **options)
    assert len(expected) >= 3
    assert_same(result, expected)
    assert not result[-1]


@pytest.mark.medium
def test_limit_of_candidates_is_exact_or_reported():
    inputs = head_output(1)
    full = run(*inputs, SIZE, **OPTIONS)
    candidates = 25
    capped = run(*inputs, SIZE, **OPTIONS | {"nms_candidates": candidates, "max_detections": 5})
    assert capped[3].all()
    assert not capped[4]  # max_detections survived, so the limit had no effect
    for got, expected in zip(capped[:4], full[:4], strict=True):
        np.testing.assert_array_equal(got, expected[:5])
    capped = run(*inputs, SIZE, **OPTIONS | {"nms_candidates": 3})
    assert capped[4]
    assert capped[3].sum() < full[3].sum()
    survivors = int(capped[3].sum())
    assert not run(*inputs, SIZE, **OPTIONS | {"nms_candidates": 3, "max_detections": survivors})[4]


def test_limit_that_is_just_reached_is_not_truncation():
    logits, deltas, proposals = head_output(2)
    scores = np.asarray(jax.nn.softmax(logits, axis=-1))[:, 1:]
    boxes = np.asarray(decode(deltas, proposals.boxes[:, None], SIZE))
    fit = (boxes[..., 2:] - boxes[..., :2] >= OPTIONS["min_box_size"]).all(axis=-1) & proposals.valid[:, None]
    candidates = int((fit & (scores > OPTIONS["score_threshold"])).sum())
    for cap, truncated in ((candidates, False), (candidates - 1, True)):
        options = OPTIONS | {"nms_candidates": cap, "max_detections": 60}
        assert bool(run(logits, deltas, proposals, SIZE, **options)[4]) is truncated


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, 0.0])
def test_padding_has_no_effect(garbage):
    logits, deltas, proposals = head_output(3)
    expected = run(logits, deltas, proposals, SIZE, **OPTIONS)
    assert expected[3].any()
    padding = ~proposals.valid
    for array in (logits, deltas, proposals.boxes, proposals.scores):
        array[padding] = garbage
    for got, wanted in zip(run(logits, deltas, proposals, SIZE, **OPTIONS), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_non_finite_proposals_are_dropped():
    logits, deltas, proposals = head_output(4)
    proposals.valid[:2] = False
    expected = run(logits, deltas, proposals, SIZE, **OPTIONS)
    proposals.valid[:2] = True
    logits[0], deltas[1] = np.nan, np.inf
    for got, wanted in zip(run(logits, deltas, proposals, SIZE, **OPTIONS), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_no_proposals():
    logits, deltas, proposals = head_output(5)
    result = run(logits, deltas, proposals._replace(valid=np.zeros(PROPOSALS, bool)), SIZE, **OPTIONS)
    assert_same(result, [])
    assert not result[-1]


def test_vmap_equals_the_loop():
    images = [head_output(seed) for seed in (6, 7)]
    sizes = np.array([[70, 80], [30, 40]])
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *images)
    batched = jax.vmap(lambda *arrays: run(*arrays, **OPTIONS))(*batch, sizes)
    for image, inputs in enumerate(images):
        for got, expected in zip(batched, run(*inputs, sizes[image], **OPTIONS), strict=True):
            # As in assert_same, with the looser bound for all; classes and flags differ by 1 if they differ.
            np.testing.assert_allclose(got[image], expected, rtol=0, atol=3e-5)


def test_gradient_is_finite():
    logits, deltas, proposals = head_output(8)

    def total(logits, deltas):
        boxes, scores, *_ = run(logits, deltas, proposals, SIZE, **OPTIONS)
        return boxes.sum() + scores.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(logits, deltas):
        assert np.isfinite(gradient).all()
        assert gradient.any()


@pytest.mark.medium
def test_golden_detections(golden):
    arrays = golden("tv_op_roi_box.npz")
    options = OPTIONS | {"score_threshold": 0.05, "max_detections": 25, "min_box_size": 1e-2}
    start = 0
    for image, size in enumerate(arrays["image_shapes"]):
        boxes = arrays[f"proposals{image}"]
        rows = slice(start, start + len(boxes))
        start += len(boxes)
        logits = arrays["class_logits"][rows]
        deltas = arrays["box_regression"][rows].reshape(len(boxes), -1, 4)[:, 1:]
        proposals = Proposals(boxes, np.zeros(len(boxes), np.float32), np.ones(len(boxes), bool))
        ours = run(logits, deltas, proposals, size, **options)
        valid, expected = np.asarray(ours[3]), arrays[f"det_boxes{image}"]
        assert valid.sum() == len(expected)
        # Both round coordinates at most eight times by half a unit; doubled as a margin.
        largest = np.abs(box_ops.decode(deltas, boxes[:, None], weights=WEIGHTS)).max()
        np.testing.assert_allclose(ours[0][valid], expected, rtol=0, atol=16 * F32 * largest)
        # The rounding of a logit's difference to the largest is the relative error of its exponential.
        atol = F32 * (16 + 2 * np.ptp(logits, axis=1).max())
        np.testing.assert_allclose(ours[1][valid], arrays[f"det_scores{image}"], rtol=0, atol=atol)
        np.testing.assert_array_equal(ours[2][valid], arrays[f"det_labels{image}"])

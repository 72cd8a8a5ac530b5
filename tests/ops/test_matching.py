"""Matching to ground truth: hand cases, a plain reference, torchvision and Detectron2, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.matching import match

RPN = {"positive": 0.7, "negative": 0.3, "allow_low_quality": True}
ROI = {"positive": 0.5, "negative": 0.5, "allow_low_quality": False}
iou_of = jax.jit(box_ops.iou)
rpn_match = jax.jit(lambda iou, valid: match(iou, valid, **RPN))
roi_match = jax.jit(lambda iou, valid: match(iou, valid, **ROI))


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


def match_reference(iou, valid, *, positive, negative, allow_low_quality):
    slots, count = iou.shape
    real = [n for n in range(slots) if valid[n]]
    matches, labels = np.zeros(count, int), np.zeros(count, int)
    for a in range(count):
        best = max((iou[n, a] for n in real), default=-1.0)
        matches[a] = next((n for n in real if iou[n, a] == best), 0)
        labels[a] = 1 if best >= positive else 0 if best < negative else -1
    for n in real if allow_low_quality else []:
        for a in range(count):
            if iou[n, a] == max(iou[n]) > 0:
                labels[a] = 1
    return matches, labels


def test_hand_case():
    iou = np.float32([[0.8, 0.5, 0.2, 0.0, 0.7], [0.1, 0.0, 0.25, 0.3, 0.25]])
    matches, labels = rpn_match(iou, np.array([True, True]))
    np.testing.assert_array_equal(matches, [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(labels, [1, -1, 0, 1, 1])  # the fourth has the best overlap of the second box
    assert matches.dtype == labels.dtype == jnp.int32


def test_anchors_at_the_best_overlap_of_a_box_are_positive_and_keep_their_match():
    iou = np.float32([[0.2, 0.2, 0.1], [0.25, 0.0, 0.4]])
    matches, labels = rpn_match(iou, np.array([True, True]))
    np.testing.assert_array_equal(labels, [1, 1, 1])
    np.testing.assert_array_equal(matches, [1, 0, 1])  # the first is positive because of box 0, but overlaps box 1 more


def test_a_box_that_overlaps_no_anchor_has_no_effect():
    _, labels = rpn_match(np.float32([[0, 0], [0.9, 0.1]]), np.array([True, True]))
    np.testing.assert_array_equal(labels, [1, 0])


def test_without_ground_truth_all_are_negative():
    for iou in (np.full((3, 4), 0.9, np.float32), np.zeros((0, 4), np.float32)):
        for function in (rpn_match, roi_match):
            matches, labels = function(iou, np.zeros(len(iou), bool))
            np.testing.assert_array_equal(labels, [0, 0, 0, 0])
            np.testing.assert_array_equal(matches, [0, 0, 0, 0])


# Few values, so that ties and the thresholds themselves are frequent.
overlap = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9]).map(np.float32)


@settings(max_examples=60)
@given(st.lists(overlap, min_size=28, max_size=28), st.lists(st.booleans(), min_size=4, max_size=4))
def test_equals_the_reference(values, valid):
    iou, valid = np.array(values, np.float32).reshape(4, 7), np.array(valid)
    for ours, rules in ((rpn_match, RPN), (roi_match, ROI)):
        limits = {key: np.float32(rule) if isinstance(rule, float) else rule for key, rule in rules.items()}
        for got, expected in zip(ours(iou, valid), match_reference(iou, valid, **limits), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1.0, -1.0])
def test_padding_has_no_effect(garbage):
    rng = np.random.default_rng(0)
    iou = rng.uniform(size=(4, 30)).astype(np.float32)
    valid = np.array([True, False, True, False])
    padded = np.where(valid[:, None], iou, np.float32(garbage))
    for got, expected in zip(rpn_match(padded, valid), rpn_match(iou, valid), strict=True):
        np.testing.assert_array_equal(got, expected)
    matches, labels = rpn_match(iou, valid)
    compact_matches, compact_labels = rpn_match(iou[valid], np.ones(2, bool))
    np.testing.assert_array_equal(labels, compact_labels)
    np.testing.assert_array_equal(matches, np.flatnonzero(valid)[compact_matches])


def test_vmap_equals_the_loop():
    rng = np.random.default_rng(1)
    iou = rng.integers(0, 10, (3, 4, 30)).astype(np.float32) / 10
    valid = np.array([[True] * 4, [True, False, True, False], [False] * 4])
    batched = jax.vmap(rpn_match)(iou, valid)
    for image in range(3):
        for got, expected in zip(batched, rpn_match(iou[image], valid[image]), strict=True):
            np.testing.assert_array_equal(got[image], expected)


def test_golden_matcher(golden):
    arrays = golden("d2_op_matcher.npz")
    quality = arrays["quality"]
    for function, kind in ((rpn_match, "rpn"), (roi_match, "roi")):
        matches, labels = function(quality, np.ones(len(quality), bool))
        np.testing.assert_array_equal(matches, arrays[f"{kind}_idx"])
        np.testing.assert_array_equal(labels, arrays[f"{kind}_label"])


def test_golden_rpn_labels(golden):
    arrays, anchors = golden("tv_op_rpn.npz"), golden("tv_op_anchors.npz")
    height, width = arrays["padded"]
    anchors = anchors[f"anchors_{height}x{width}"]
    for image, expected in enumerate(arrays["labels"]):
        gt = arrays[f"gt{image}"]
        matches, labels = rpn_match(iou_of(gt, anchors), np.ones(len(gt), bool))
        np.testing.assert_array_equal(labels, expected)
        if len(gt):
            positive = np.asarray(labels) == 1
            np.testing.assert_array_equal(matches[positive], arrays[f"matched_idx{image}"][positive])


def test_golden_roi_labels(golden):
    arrays = golden("tv_op_roi_box.npz")
    for image in range(len(arrays["image_shapes"])):
        gt, proposals = arrays[f"gt_boxes{image}"], arrays[f"proposals{image}"]
        matches, labels = roi_match(iou_of(gt, proposals), np.ones(len(gt), bool))
        classes = np.append(arrays[f"gt_labels{image}"], 0)[np.where(labels == 1, matches, -1)]
        np.testing.assert_array_equal(classes, arrays[f"labels{image}"])
        positive = np.asarray(labels) == 1
        np.testing.assert_array_equal(matches[positive], arrays[f"matched_idx{image}"][positive])

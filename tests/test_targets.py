"""Sampled anchors and RoIs; box, mask and keypoint targets: hand cases, padding, torchvision's arrays."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mrcnn_jax import targets
from mrcnn_jax.config import AnchorConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, RoIConfig, RPNConfig
from mrcnn_jax.models.mask_rcnn import FPN_STRIDES
from mrcnn_jax.ops.anchors import grid_anchors
from mrcnn_jax.structures import GroundTruth, Proposals, SampledRoIs
from mrcnn_jax.targets import box_targets, keypoint_targets, mask_targets, rpn_targets, sample_rois

KEY = jax.random.key(0)
TAKE_ALL = 10**6
GARBAGE = np.float32([np.nan, -1e30, np.inf, 7.0])


def make_ground_truth(boxes, classes=None, slots=None, garbage=0.0, masks=None) -> GroundTruth:
    """Ground truth followed by empty slots that contain `garbage`."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    slots = count if slots is None else slots
    padded = np.broadcast_to(np.float32(garbage), (slots, 4)).copy()
    padded[:count] = boxes
    labels = np.full(slots, 99 if np.any(garbage) else 0, np.int32)
    labels[:count] = np.ones(count) if classes is None else classes
    rasters = np.ones((slots, 8, 8), np.uint8) if masks is None else masks
    return GroundTruth(padded, labels, rasters, padded, np.zeros((slots, 0, 3), np.float32), np.arange(slots) < count)


def make_proposals(boxes, valid=None) -> Proposals:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    valid = np.ones(len(boxes), bool) if valid is None else np.asarray(valid)
    return Proposals(boxes, np.zeros(len(boxes), np.float32), valid)


def doubled_mask_targets(rois, ground_truth, config):
    return mask_targets(rois, ground_truth, config, 2 * config.pool_size)


def jitted(function, config):
    """Return the compiled function with its configuration bound; it is cached, so that it compiles once."""
    return _compile(function, config)


@functools.cache
def _compile(function, config):
    return jax.jit(functools.partial(function, config=config))


ANCHORS = np.float32(
    [
        [0, 0, 10, 10],  # the first box itself
        [0, 0, 10, 5],  # half of it: between the thresholds
        [0, 0, 10, 2],  # a fifth of it: background
        [50, 50, 60, 60],  # no overlap
        [30, 30, 34, 40],  # 2/5 of the second box: below the threshold, but the best overlap of that box
    ]
)


def test_anchors_by_hand():
    ground_truth = make_ground_truth([[0, 0, 10, 10], [30, 30, 40, 40]], slots=4, garbage=GARBAGE)
    found = jitted(rpn_targets, RPNConfig())(KEY, ANCHORS, ground_truth)
    np.testing.assert_array_equal(found.positive, [True, False, False, False, True])
    np.testing.assert_array_equal(found.negative, [False, False, True, True, False])
    np.testing.assert_array_equal(found.deltas[0], np.zeros(4))
    # from (32, 35) to (35, 35) in widths of 4; the width grows from 4 to 10
    np.testing.assert_allclose(found.deltas[4], [3 / 4, 0, np.log(10 / 4), 0], rtol=1e-6)


def test_number_of_sampled_anchors():
    anchors = np.tile(ANCHORS, (20, 1))
    ground_truth = make_ground_truth([[0, 0, 10, 10], [30, 30, 40, 40]])
    config = RPNConfig(batch_size=16, positive_fraction=0.25)
    masks = []
    for seed in range(2):
        found = jitted(rpn_targets, config)(jax.random.key(seed), anchors, ground_truth)
        assert (int(found.positive.sum()), int(found.negative.sum())) == (4, 12)
        masks.append(np.asarray(found.positive))
    assert (masks[0] != masks[1]).any()


def test_no_ground_truth_makes_all_anchors_background():
    found = jitted(rpn_targets, RPNConfig())(KEY, ANCHORS, make_ground_truth([], slots=4, garbage=GARBAGE))
    assert not found.positive.any()
    assert found.negative.all()


def test_boxes_of_anchors_on_tpus():
    """A product takes the same boxes to the bit, whatever the padding contains."""
    rng = np.random.default_rng(0)
    truth = make_ground_truth(rng.uniform(0, 1333, (7, 4)), slots=9, garbage=GARBAGE)
    matches = rng.integers(0, 7, 500)
    taken = targets._take_by_product(truth.boxes, truth.valid, matches)
    np.testing.assert_array_equal(taken, truth.boxes[matches])


def test_rois_by_hand():
    """Proposals: background, half of the box (positive), an invalid slot; the ground-truth box is added."""
    ground_truth = make_ground_truth([[0, 0, 10, 10]], classes=[3], slots=2, garbage=GARBAGE)
    proposals = make_proposals([[50, 50, 60, 60], [0, 0, 10, 5], [0, 0, 10, 10]], valid=[True, True, False])
    rois = jitted(sample_rois, RoIConfig(batch_size=8, positive_fraction=0.5))(KEY, proposals, ground_truth)
    np.testing.assert_array_equal(rois.valid, [True, True, True, False, False])
    np.testing.assert_array_equal(rois.boxes[:3], [[0, 0, 10, 5], [0, 0, 10, 10], [50, 50, 60, 60]])
    np.testing.assert_array_equal(rois.classes, [3, 3, 0, 0, 0])
    np.testing.assert_array_equal(rois.matches[:2], [0, 0])
    np.testing.assert_array_equal(rois.boxes[3:], np.zeros((2, 4)))  # garbage in empty slots is removed


def test_number_of_sampled_rois():
    ground_truth = make_ground_truth([[0, 0, 10, 10]], classes=[2])
    proposals = make_proposals([[0, 0, 10, 9]] * 20 + [[40, 40, 50, 50]] * 20)
    rois = jitted(sample_rois, RoIConfig(batch_size=12, positive_fraction=0.25))(KEY, proposals, ground_truth)
    np.testing.assert_array_equal(rois.classes, [2] * 3 + [0] * 9)
    assert rois.valid.all()
    few = make_proposals([[0, 0, 10, 9]] + [[40, 40, 50, 50]] * 39)
    rois = jitted(sample_rois, RoIConfig(batch_size=12, positive_fraction=0.25))(KEY, few, ground_truth)
    np.testing.assert_array_equal(rois.classes, [2] * 2 + [0] * 10)  # negatives fill the places of missing positives


def test_no_ground_truth_makes_all_rois_background():
    ground_truth = make_ground_truth([], slots=2, garbage=GARBAGE)
    proposals = make_proposals(ANCHORS)
    rois = jitted(sample_rois, RoIConfig(batch_size=8))(KEY, proposals, ground_truth)
    assert not rois.classes.any()
    np.testing.assert_array_equal(rois.valid, np.arange(7) < 5)
    np.testing.assert_array_equal(rois.boxes[:5], ANCHORS)


def test_box_targets_use_delta_weights():
    ground_truth = make_ground_truth([[0, 0, 10, 10], [20, 20, 40, 40]])
    rois = SampledRoIs(np.float32([[20, 20, 30, 40]]), np.int32([1]), np.int32([1]), np.ones(1, bool))
    goals = jitted(box_targets, BoxHeadConfig(delta_weights=(10, 5, 2, 1)))(rois, ground_truth)
    # the center moves half a width to the right, the width doubles
    np.testing.assert_allclose(goals, [[10 * 0.5, 0, 2 * np.log(2), 0]], rtol=1e-6)


@pytest.mark.parametrize("target", ["binary", "soft"])
def test_mask_targets_by_hand(target):
    """The instance is the left half of its box. RoIs: the box, its right half, and background."""
    rasters = np.zeros((2, 8, 8), np.uint8)
    rasters[1, :, :4] = 1
    ground_truth = make_ground_truth([[50, 50, 58, 58], [16, 16, 32, 32]], masks=rasters)
    rois = SampledRoIs(
        np.float32([[16, 16, 32, 32], [24, 16, 32, 32], [0, 0, 0, 0]]),
        np.int32([1, 1, 0]),
        np.int32([1, 1, 0]),
        np.ones(3, bool),
    )
    goals = np.asarray(jitted(doubled_mask_targets, MaskHeadConfig(pool_size=4, target=target))(rois, ground_truth))
    assert goals.shape == (3, 8, 8)
    if target == "binary":
        np.testing.assert_array_equal(goals[0], rasters[1])
        assert not goals[1].any()
    else:
        # without the half-pixel shift the edge is half a raster pixel away, and its cells are between 0 and 1
        assert np.all((goals[0] > 0) & (goals[0] < 1), axis=0).any()
        assert np.all(goals[0][:, :3] == 1)
    assert np.isfinite(goals).all()


def test_mask_targets_ignore_unmatched_slots():
    rois = SampledRoIs(np.float32([[16, 16, 32, 32]]), np.int32([1]), np.int32([0]), np.ones(1, bool))
    config = MaskHeadConfig(pool_size=4)
    clean = jitted(doubled_mask_targets, config)(rois, make_ground_truth([[16, 16, 32, 32]], slots=3))
    dirty = jitted(doubled_mask_targets, config)(rois, make_ground_truth([[16, 16, 32, 32]], slots=3, garbage=GARBAGE))
    np.testing.assert_array_equal(clean, dirty)
    assert clean.all()


def test_keypoint_targets_of_positives_only():
    """A positive RoI has the keypoints of its match; background and empty slots have none."""
    ground_truth = make_ground_truth([[0, 0, 8, 8], [16, 16, 32, 32]], slots=3, garbage=GARBAGE)
    keypoints = np.full((3, 2, 3), np.nan, np.float32)
    keypoints[0] = [(1, 1, 2), (2, 2, 2)]
    keypoints[1] = [(17, 16, 2), (31, 30, 0)]
    ground_truth = ground_truth._replace(keypoints=keypoints)
    rois = SampledRoIs(
        np.float32([[16, 16, 32, 32], [0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 0, 0]]),
        np.int32([1, 0, 1, 0]),
        np.int32([1, 0, 0, 2]),
        np.bool_([True, True, False, False]),
    )
    goals = jitted(keypoint_targets, KeypointHeadConfig(num_keypoints=2, pool_size=4))(rois, ground_truth)
    np.testing.assert_array_equal(goals.valid, [[True, False], [False, False], [False, False], [False, False]])
    assert goals.cell[0, 0] == 1  # 16 cells of one pixel


def golden_anchors(arrays):
    """torchvision's anchors of the padded batch, from sizes that the arrays hold."""
    shape = tuple(int(n) for n in arrays["padded"])
    grids = [tuple(-(-side // stride) for side in shape) for stride in FPN_STRIDES]
    config = AnchorConfig(rounded=True, order="ratio_major", stride="image_over_grid")
    anchors = np.concatenate(grid_anchors(config, shape, grids, FPN_STRIDES))
    assert [3 * h * w for h, w in grids] == arrays["num_anchors_per_level"].tolist()
    return anchors


def delta_error(anchors, boxes) -> float:
    """Largest rounding error of deltas.

    Both round two centers four times by half a unit, and divide their distance by the side of the anchor. Ratios of
    sides and their logarithms, below 8, have as many roundings of numbers that are not larger. Doubled as a margin.
    """
    anchors = np.asarray(anchors)
    largest = max(np.abs(anchors).max(initial=0), np.abs(boxes).max(initial=0))
    smallest = (anchors[:, 2:] - anchors[:, :2]).min(initial=np.inf)
    return float(2 * 8 * np.finfo(np.float32).eps * max(largest / smallest, 8))


def test_golden_anchor_targets(golden):
    arrays = golden("tv_op_rpn.npz")
    anchors = golden_anchors(arrays)
    slots = max(len(arrays[f"gt{i}"]) for i in range(len(arrays["labels"])))
    for i, labels in enumerate(arrays["labels"]):
        ground_truth = make_ground_truth(arrays[f"gt{i}"], slots=slots, garbage=GARBAGE)
        found = jitted(rpn_targets, RPNConfig(batch_size=TAKE_ALL))(KEY, anchors, ground_truth)
        np.testing.assert_array_equal(found.positive, labels == 1)
        np.testing.assert_array_equal(found.negative, labels == 0)
        if len(arrays[f"gt{i}"]):
            atol = delta_error(anchors[labels == 1], arrays[f"gt{i}"])
            np.testing.assert_allclose(found.deltas[labels == 1], arrays[f"reg_targets_pos{i}"], rtol=0, atol=atol)


def test_golden_roi_targets(golden):
    """All images in the same padded shapes, with garbage in the padding."""
    arrays = golden("tv_op_roi_box.npz")
    images = range(len(arrays["image_shapes"]))
    slots = max(len(arrays[f"gt_boxes{i}"]) for i in images)
    length = max(len(arrays[f"in_proposals{i}"]) for i in images)
    for i in images:
        ground_truth = make_ground_truth(arrays[f"gt_boxes{i}"], arrays[f"gt_labels{i}"], slots, garbage=GARBAGE)
        proposals = np.tile(GARBAGE, (length, 1))
        proposals[: len(arrays[f"in_proposals{i}"])] = arrays[f"in_proposals{i}"]
        valid = np.arange(length) < len(arrays[f"in_proposals{i}"])
        rois = jitted(sample_rois, RoIConfig(batch_size=TAKE_ALL))(KEY, make_proposals(proposals, valid), ground_truth)
        # Our RoIs are sorted, positives first, and otherwise in the order of the proposals.
        labels = arrays[f"labels{i}"]
        order = np.argsort(labels == 0, kind="stable")
        count, positives = len(labels), int(np.sum(labels > 0))
        np.testing.assert_array_equal(rois.valid, np.arange(len(rois.valid)) < count)
        np.testing.assert_array_equal(rois.boxes[:count], arrays[f"proposals{i}"][order])
        np.testing.assert_array_equal(rois.classes[:count], labels[order])
        np.testing.assert_array_equal(rois.matches[:positives], arrays[f"matched_idx{i}"][order][:positives])
        goals = jitted(box_targets, BoxHeadConfig())(rois, ground_truth)[:positives]
        atol = 10 * delta_error(rois.boxes[:positives], arrays[f"gt_boxes{i}"])  # weights of up to 10
        np.testing.assert_allclose(goals, arrays[f"reg_targets{i}"][order][:positives], rtol=0, atol=atol)


def test_golden_mask_targets(golden):
    """With target="soft", and whole bitmaps in a window that is the image."""
    arrays = golden("tv_op_mask.npz")
    for i in range(2):
        masks, theirs = arrays[f"gt_masks{i}"], arrays[f"mask_targets{i}"]
        count, height, width = masks.shape
        window = np.tile(np.float32([0, 0, width, height]), (count, 1))
        ground_truth = make_ground_truth(window, arrays[f"gt_labels{i}"], masks=masks)
        boxes = arrays[f"proposals{i}"]
        matches = arrays[f"matched_idx{i}"].astype(np.int32)
        rois = SampledRoIs(boxes, ground_truth.classes[matches], matches, np.ones(len(boxes), bool))
        config = MaskHeadConfig(pool_size=theirs.shape[1] // 2, target="soft", target_sampling_ratio=0)
        goals = jitted(doubled_mask_targets, config)(rois, ground_truth)
        # Both round a position five times by half a unit, on two axes; doubled as a margin.
        np.testing.assert_allclose(goals, theirs, rtol=0, atol=20 * np.finfo(np.float32).eps * max(height, width))

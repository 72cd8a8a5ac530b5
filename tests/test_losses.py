"""Losses: hand cases, torch, torchvision's arrays; padding has no effect."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import losses
from mrcnn_jax.ops.keypoints import heatmap_targets
from mrcnn_jax.structures import SampledRoIs
from mrcnn_jax.targets import KeypointTargets, RPNTargets


def rois_of(classes, valid=None) -> SampledRoIs:
    classes = np.asarray(classes, np.int32)
    valid = np.ones(classes.shape, bool) if valid is None else np.asarray(valid)
    return SampledRoIs(np.zeros((*classes.shape, 4), np.float32), classes, np.zeros_like(classes), valid)


def sampled_anchors(positive, negative, deltas=None) -> RPNTargets:
    positive, negative = np.asarray(positive, bool), np.asarray(negative, bool)
    deltas = np.zeros((*positive.shape, 4), np.float32) if deltas is None else np.asarray(deltas, np.float32)
    return RPNTargets(positive, negative, deltas)


def mean_and_gradient(loss, prediction, *others, **options):
    """sum / count of a loss, and its gradient with respect to the prediction."""

    value, gradient = compiled(loss, **options)(prediction, *others)
    return np.asarray(value), np.asarray(gradient)


@functools.cache
def compiled(loss, **options):
    def mean(prediction, *others):
        total, count = loss(prediction, *others, **options)
        return total / jnp.maximum(count, 1)

    return jax.jit(jax.value_and_grad(mean))


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_equals_torch(beta):
    torch = pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")
    error = np.float32([-3.0, -1 / 9, -0.05, 0.0, 1e-15, 0.05, 0.111, 0.5, 2.0])
    theirs = torch.from_numpy(error).requires_grad_()
    # torch's own beta = 0 is its l1_loss, gradient included
    cost = torch.nn.functional.smooth_l1_loss(theirs, torch.zeros(len(error)), beta=beta, reduction="none")
    cost.sum().backward()
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda error: losses.smooth_l1(error, beta))))(error)
    np.testing.assert_allclose(value, cost.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-6)


def test_rpn_class_loss_by_hand():
    """A correct, a wrong and an undecided prediction; the fourth anchor is not sampled."""
    logits = np.float32([5.0, 5.0, 0.0, 100.0])
    targets = sampled_anchors([True, False, True, False], [False, True, False, False])
    total, count = losses.rpn_class_loss(logits, targets)
    assert int(count) == 3
    np.testing.assert_allclose(total, np.log1p(np.exp(-5)) + np.log1p(np.exp(5)) + np.log(2), rtol=1e-6)


def test_rpn_box_loss_by_hand():
    """Only positive anchors have a box loss; negatives count in the denominator."""
    deltas = np.float32([[1, 0, 0, -2], [9, 9, 9, 9], [9, 9, 9, 9]])
    targets = sampled_anchors([True, False, False], [False, True, False], [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    total, count = losses.rpn_box_loss(deltas, targets, beta=0.0)
    assert (float(total), int(count)) == (3.0, 2)
    np.testing.assert_allclose(losses.rpn_box_loss(deltas, targets, beta=1.0)[0], 0.5 + 1.5, rtol=1e-6)


def test_class_loss_by_hand():
    logits = np.float32([[0, 0, 0], [0, np.log(2), 0], [50, 0, 0], [7, 7, 7]])
    total, count = losses.class_loss(logits, rois_of([2, 1, 0, 0], [True, True, True, False]))
    assert int(count) == 3
    np.testing.assert_allclose(total, np.log(3) + np.log(2), rtol=1e-6)


def test_box_loss_uses_deltas_of_the_own_class():
    """Background RoIs count in the denominator only."""
    deltas = np.zeros((3, 2, 4), np.float32)
    deltas[0, 1], deltas[0, 0], deltas[1] = [1, 2, 3, 4], 100, 100
    total, count = losses.box_loss(deltas, np.zeros((3, 4), np.float32), rois_of([2, 0, 0], [1, 1, 0]), beta=0.0)
    assert (float(total), int(count)) == (10.0, 2)
    _, gradient = mean_and_gradient(
        losses.box_loss, deltas, np.zeros((3, 4), np.float32), rois_of([2, 0, 0], [1, 1, 0]), beta=0.0
    )
    np.testing.assert_array_equal(gradient[0, 1], np.full(4, 0.5))
    assert np.count_nonzero(gradient) == 4


def test_mask_loss_uses_positives_only():
    logits = np.full((3, 2, 2), 1e6, np.float32)
    logits[0] = [[30, -30], [0, 0]]
    targets = np.zeros((3, 2, 2), np.float32)
    targets[0, 0, 0] = 1
    total, count = losses.mask_loss(logits, targets, rois_of([2, 0, 1], [1, 1, 0]))
    assert int(count) == 4
    np.testing.assert_allclose(total, 2 * np.log(2), rtol=1e-6)


def test_softmax_mask_loss_by_hand():
    """Background, class 1 and class 2 at a pixel inside, one outside, one at the edge; other RoIs are not used."""
    logits = np.full((3, 2, 2, 3), np.nan, np.float32)
    logits[0] = np.log([[[1, 2, 5], [5, 2, 1]], [[1, 1, 2], [1, 1, 1]]])
    targets = np.zeros((3, 2, 2), np.float32)
    targets[0] = [[1, 0], [0.5, 0]]
    rois = rois_of([2, 0, 1], [1, 1, 0])
    total, count = losses.softmax_mask_loss(logits, targets, rois)
    assert int(count) == 4
    np.testing.assert_allclose(total, -2 * np.log(5 / 8) - 0.5 * np.log(1 / 2 * 1 / 4) - np.log(1 / 3), rtol=1e-6)
    _, gradient = mean_and_gradient(losses.softmax_mask_loss, logits, targets, rois)
    np.testing.assert_allclose(gradient[0, 0, 0], np.float32([1, 2, 5 - 8]) / 8 / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0, 1], np.float32([5 - 8, 2, 1]) / 8 / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 1, 0], np.float32([-1, 1, 0]) / 4 / 4, rtol=1e-5, atol=1e-7)
    assert not gradient[1:].any()


def test_softmax_of_two_masks_is_a_sigmoid():
    """With a class-agnostic head the loss equals that of the sigmoid of the difference of the logits."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 2, 2, 2)).astype(np.float32)
    targets, rois = rng.random((3, 2, 2)).astype(np.float32), rois_of([5, 0, 1])
    two = losses.softmax_mask_loss(logits, targets, rois)
    one = losses.mask_loss(logits[..., 1] - logits[..., 0], targets, rois)
    np.testing.assert_allclose(two, one, rtol=1e-6)


def test_padding_of_anchors_has_no_effect():
    """Deltas of anchors that are not positive affect neither loss nor gradient."""
    rng = np.random.default_rng(0)
    prediction = rng.standard_normal((3, 4)).astype(np.float32)
    deltas = [[[1, 2, 3, 4], [value] * 4, [value] * 4] for value in (0.0, np.nan)]
    targets = [sampled_anchors([1, 0, 0], [0, 1, 0], d) for d in deltas]
    clean, dirty = (mean_and_gradient(losses.rpn_box_loss, prediction, t, beta=1 / 9) for t in targets)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert not dirty[1][1:].any()


def test_padding_of_rois_has_no_effect():
    """Targets of background RoIs and empty slots, and classes of empty slots, are arbitrary."""
    rng = np.random.default_rng(1)
    deltas = rng.standard_normal((3, 2, 4)).astype(np.float32)
    masks = rng.standard_normal((3, 2, 2)).astype(np.float32)
    competing = rng.standard_normal((3, 2, 2, 3)).astype(np.float32)
    logits = rng.standard_normal((3, 3)).astype(np.float32)
    outcomes = []
    for value, label in ((0.0, 0), (np.nan, 2)):
        rois = rois_of([2, 0, label], [True, True, False])
        box_goals, mask_goals = np.full((3, 4), value, np.float32), np.full((3, 2, 2), value, np.float32)
        box_goals[0], mask_goals[0] = 1, 1
        outcomes.append(
            [
                mean_and_gradient(losses.box_loss, deltas, box_goals, rois, beta=0.0),
                mean_and_gradient(losses.mask_loss, masks, mask_goals, rois),
                mean_and_gradient(losses.softmax_mask_loss, competing, mask_goals, rois),
                mean_and_gradient(losses.class_loss, logits, rois),
            ]
        )
    jax.tree.map(np.testing.assert_array_equal, *outcomes)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(outcomes))


def test_losses_without_samples_are_zero_with_zero_gradient():
    """Sums are 0, not NaN."""
    rois, none = rois_of([0, 0], [False, False]), sampled_anchors([0, 0], [0, 0])
    outcomes = [
        mean_and_gradient(losses.rpn_class_loss, np.ones(2, np.float32), none),
        mean_and_gradient(losses.rpn_box_loss, np.ones((2, 4), np.float32), none, beta=0.0),
        mean_and_gradient(losses.class_loss, np.ones((2, 3), np.float32), rois),
        mean_and_gradient(losses.box_loss, np.ones((2, 2, 4), np.float32), np.ones((2, 4)), rois, beta=0.0),
        mean_and_gradient(losses.mask_loss, np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2)), rois),
        mean_and_gradient(losses.softmax_mask_loss, np.ones((2, 2, 2, 3), np.float32), np.ones((2, 2, 2)), rois),
    ]
    for value, gradient in outcomes:
        assert value == 0
        assert not gradient.any()


def test_keypoint_loss_by_hand():
    """An undecided and a correct heat map; the other two are not valid."""
    logits = np.zeros((2, 2, 2, 2), np.float32)
    logits[0, 1, 0, 1] = 50
    logits[1] = 1e6 * np.arange(8).reshape(2, 2, 2)
    targets = KeypointTargets(np.int32([[3, 2], [0, 0]]), np.bool_([[True, True], [False, False]]))
    total, count = losses.keypoint_loss(logits, targets)
    assert int(count) == 2
    np.testing.assert_allclose(total, np.log(4), rtol=1e-6)
    value, gradient = mean_and_gradient(losses.keypoint_loss, logits, targets)
    np.testing.assert_allclose(value, np.log(4) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, ..., 0], np.float32([[1, 1], [1, -3]]) / 8, rtol=1e-6)
    assert not gradient[1].any()


def test_invalid_keypoints_have_no_effect():
    """Their maps and cells are arbitrary; if none is valid, loss and gradient are 0."""
    rng = np.random.default_rng(2)
    logits, visible = rng.standard_normal((2, 3, 3, 2)).astype(np.float32), np.bool_([[True, False], [False, False]])
    clean = mean_and_gradient(losses.keypoint_loss, logits, KeypointTargets(np.int32([[4, 0], [0, 0]]), visible))
    logits[0, ..., 1] = np.nan
    logits[1] = np.inf
    dirty = mean_and_gradient(losses.keypoint_loss, logits, KeypointTargets(np.int32([[4, -1], [99, 0]]), visible))
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    nothing = KeypointTargets(np.int32([[4, 0], [0, 0]]), np.zeros((2, 2), bool))
    value, gradient = mean_and_gradient(losses.keypoint_loss, logits, nothing)
    assert value == 0
    assert not gradient.any()


# Golden losses are means of up to 20,000 positive float32 terms, with as many roundings by half a unit, of either sign;
# doubled as a margin.
LOSS_RTOL = 2 * np.sqrt(20_000) * 2.0**-24


def assert_gradient(ours, theirs):
    """Assert equal gradients, relative to the largest entry. Entries are (probability - target) / count.

    Both round an exponent (up to 16), its exponential, their sum and the quotient by half a unit: 20 units together,
    doubled as a margin.
    """
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=40 * np.finfo(np.float32).eps * np.abs(theirs).max())


def test_golden_rpn_losses(golden):
    arrays = golden("tv_op_rpn.npz")
    labels = arrays["labels"]
    deltas = np.zeros((*labels.shape, 4), np.float32)
    for i, row in enumerate(labels):
        if (row == 1).any():
            deltas[i, row == 1] = arrays[f"reg_targets_pos{i}"]
    targets = sampled_anchors(labels == 1, labels == 0, deltas)
    value, gradient = mean_and_gradient(losses.rpn_class_loss, arrays["objectness"].reshape(labels.shape), targets)
    np.testing.assert_allclose(value, arrays["loss_objectness"], rtol=LOSS_RTOL)
    assert_gradient(gradient, arrays["g_objectness"].reshape(labels.shape))
    prediction = arrays["deltas"].reshape(deltas.shape)
    value, gradient = mean_and_gradient(losses.rpn_box_loss, prediction, targets, beta=1 / 9)
    np.testing.assert_allclose(value, arrays["loss_rpn_box_reg"], rtol=LOSS_RTOL)
    assert_gradient(gradient, arrays["g_deltas"].reshape(deltas.shape))


def test_golden_box_losses(golden):
    arrays = golden("tv_op_roi_box.npz")
    images = range(len(arrays["image_shapes"]))
    rois = rois_of(np.concatenate([arrays[f"labels{i}"] for i in images]))
    goals = np.concatenate([arrays[f"reg_targets{i}"] for i in images])
    value, gradient = mean_and_gradient(losses.class_loss, arrays["class_logits"], rois)
    np.testing.assert_allclose(value, arrays["loss_classifier"], rtol=LOSS_RTOL)
    assert_gradient(gradient, arrays["g_class_logits"])
    deltas = arrays["box_regression"].reshape(len(goals), -1, 4)[:, 1:]  # torchvision has deltas of the background too
    value, gradient = mean_and_gradient(losses.box_loss, deltas, goals, rois, beta=1 / 9)
    np.testing.assert_allclose(value, arrays["loss_box_reg"], rtol=LOSS_RTOL)
    theirs = arrays["g_box_regression"].reshape(len(goals), -1, 4)
    assert not theirs[:, 0].any()
    assert_gradient(gradient, theirs[:, 1:])


def test_golden_mask_loss(golden):
    arrays = golden("tv_op_mask.npz")
    rois = rois_of(arrays["labels"])
    goals = np.concatenate([arrays["mask_targets0"], arrays["mask_targets1"]])
    logits = np.take_along_axis(arrays["mask_logits"], rois.classes[:, None, None, None], axis=1)[:, 0]
    value, gradient = mean_and_gradient(losses.mask_loss, logits, goals, rois)
    np.testing.assert_allclose(value, arrays["loss_mask"], rtol=LOSS_RTOL)
    assert_gradient(gradient, arrays["g_mask_logits_at_label"])


def test_golden_keypoint_loss(golden):
    """The RoIs of all images are concatenated."""
    arrays = golden("tv_op_keypoint.npz")
    images, each = arrays["kp_matched"].shape
    size = arrays["kp_logits"].shape[-1]
    keypoints = arrays["keypoints"].reshape(images, -1, *arrays["keypoints"].shape[1:])
    matched = np.concatenate([of[rows] for of, rows in zip(keypoints, arrays["kp_matched"], strict=True)])
    targets = KeypointTargets(*heatmap_targets(matched, arrays["rois"][: images * each], size=size))
    logits = arrays["kp_logits"].transpose(0, 2, 3, 1)
    value, gradient = mean_and_gradient(losses.keypoint_loss, logits, targets)
    np.testing.assert_allclose(value, arrays["loss_keypoint"], rtol=LOSS_RTOL)
    assert_gradient(gradient[0].transpose(2, 0, 1), arrays["g_kp_logits_roi0"])
    # Sums of S * S absolute values, each with the error of an entry.
    theirs = arrays["g_kp_logits_abs_sum"]
    np.testing.assert_allclose(np.abs(gradient).sum(axis=(1, 2)), theirs, rtol=0, atol=1e-5 * theirs.max())

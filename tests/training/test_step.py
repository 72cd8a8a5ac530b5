"""The training step of a tiny model: learning, compilation, metrics, padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import programs
from support.programs import IMAGES, LEARNING_RATE

from mrcnn_jax.config import Config
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.step import create_state, make_train_step

pytestmark = pytest.mark.medium

KEY = jax.random.key(7)
LOSSES = {"loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask", "loss_keypoint"}
# Losses are sums of some hundred float32 terms in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def setup() -> programs.Program:
    return programs.one_device()


def make_batch(seed: int = 0) -> Batch:
    """Two images with two objects each, the second image less high, and two empty slots."""
    batch = programs.make_batch((2, 2), seed)
    batch.image_sizes[1, 0] = 60
    return batch


def swapped(batch: Batch) -> Batch:
    return jax.tree.map(lambda field: field[::-1].copy(), batch)


def without(batch: Batch, slot: int) -> Batch:
    """The batch with one slot marked as empty."""
    return batch._replace(valid=batch.valid & (np.arange(IMAGES) != slot))


def losses_of(metrics) -> np.ndarray:
    return np.array([float(metrics[name]) for name in sorted(LOSSES)])


def test_loss_decreases(setup):
    state, history = setup.state, []
    for _ in range(8):
        state, metrics = setup.step(state, make_batch(), KEY)
        history.append(float(metrics["loss"]))
        assert metrics["finite"]
    assert int(state.step) == 8
    assert history[-1] < 0.6 * history[0]


def test_all_parameters_learn_that_are_not_frozen(setup):
    after = setup.state
    for _ in range(4):  # so that anchors of every level are sampled
        after, _ = setup.step(after, programs.make_batch((5, 5, 5, 5)), KEY)
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, after.params, setup.state.params))
    unchanged = {jax.tree_util.keystr(path, simple=True, separator="/") for path, same in leaves if same}
    frozen = {
        name
        for name in unchanged
        if name.startswith(("backbone/stem", "backbone/res2", "backbone/res3", "backbone/res4"))
    }
    assert {name.split("/")[1] for name in frozen} == {"stem", "res2", "res3", "res4"}
    assert unchanged - frozen == set()


def test_metrics_describe_the_step(setup):
    after, metrics = setup.step(setup.state._replace(step=jnp.int32(3)), make_batch(), KEY)
    assert set(metrics) > LOSSES
    np.testing.assert_allclose(metrics["loss"], losses_of(metrics).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], LEARNING_RATE / 4, rtol=1e-6)
    assert int(metrics["num_rois"]) == 32
    assert 0 < int(metrics["num_positive_rois"]) <= 8  # a quarter of 16 in each image
    updates = jax.tree.map(lambda a, b: np.square(np.subtract(a, b)).sum(), setup.state.params, after.params)
    # The update is lost in the rounding of parameters near 1, by 6e-8 of them each.
    length = np.sqrt(sum(jax.tree.leaves(updates)))
    np.testing.assert_allclose(length, LEARNING_RATE * metrics["grad_norm"], rtol=1e-3)


def test_one_trace_for_all_batches_of_a_shape(setup):
    state, _ = setup.step(setup.state, make_batch(), KEY)
    setup.step(state, make_batch(1), jax.random.key(8))
    assert len(setup.traces) == 1


def test_noise_does_not_depend_on_the_slot(setup):
    state, metrics = setup.step(setup.state, make_batch(), KEY)
    other_state, other = setup.step(setup.state, swapped(make_batch()), KEY)
    np.testing.assert_allclose(losses_of(other), losses_of(metrics), rtol=ROUNDING)
    assert other["num_positive_rois"] == metrics["num_positive_rois"]
    # One step from the same parameters: they differ by the rounding of gradients near 1 times the learning rate.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), state.params, other_state.params)


@pytest.mark.parametrize("change", ["indices", "step", "key"])
def test_noise_depends_on_index_step_and_key(setup, change):
    """The sampled RoIs, and so the losses, change with each of the three."""
    state, batch, key = setup.state, make_batch(), KEY
    _, metrics = setup.step(state, batch, key)
    if change == "indices":
        batch = batch._replace(indices=batch.indices[::-1].copy())
    elif change == "step":
        state = state._replace(step=jnp.int32(1))
    else:
        key = jax.random.key(8)
    _, other = setup.step(state, batch, key)
    assert (np.abs(losses_of(other) / losses_of(metrics) - 1) > 10 * ROUNDING).any()


def test_empty_image_slot_contributes_nothing(setup):
    """Neither to sums, with any content, nor to counts: the loss of two images is the weighted mean of their losses."""
    batch = make_batch()
    filled = [setup.step(setup.state, without(batch, 1), KEY)]
    garbage = make_batch(5)
    images, truth = jax.tree.map(np.copy, (batch.images, batch.ground_truth))
    for ours, other in zip((images, *truth), (garbage.images, *garbage.ground_truth), strict=True):
        ours[1] = other[1]
    truth.boxes[1], truth.mask_windows[1], truth.classes[1] = np.nan, np.nan, 99
    filled.append(setup.step(setup.state, without(batch, 1)._replace(images=images, ground_truth=truth), KEY))
    jax.tree.map(np.testing.assert_array_equal, *filled)

    _, both = setup.step(setup.state, batch, KEY)
    shares = [setup.step(setup.state, without(batch, slot), KEY)[1] for slot in (1, 0)]
    for name, count in (
        ("loss_rpn_class", None),
        ("loss_rpn_box", None),
        ("loss_class", "num_rois"),
        ("loss_box", "num_rois"),
        ("loss_mask", "num_positive_rois"),
    ):
        weights = [1 if count is None else int(share[count]) for share in shares]
        mean = sum(w * float(share[name]) for w, share in zip(weights, shares, strict=True)) / sum(weights)
        np.testing.assert_allclose(both[name], mean, rtol=ROUNDING, err_msg=name)


def corrupted(batch: Batch, *slots: int) -> Batch:
    """The batch as the loader returns it when images cannot be decoded: empty slots of 1 x 1 pixels."""
    batch = jax.tree.map(np.copy, batch)
    for field in (batch.images, batch.valid, *batch.ground_truth):
        field[list(slots)] = 0
    batch.image_sizes[list(slots)] = 1
    return batch


def test_slot_of_a_corrupt_image_contributes_nothing(setup):
    without_it = setup.step(setup.state, without(make_batch(), 1), KEY)
    corrupt = setup.step(setup.state, corrupted(make_batch(), 1), KEY)
    assert float(corrupt[1]["loss"]) > 0
    jax.tree.map(np.testing.assert_array_equal, without_it, corrupt)


def test_batch_of_corrupt_images_changes_nothing(setup):
    state, metrics = setup.step(setup.state, corrupted(make_batch(), 0, 1), KEY)
    assert metrics["finite"]
    assert float(metrics["loss"]) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, setup.state.params)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e6, 30.0])
def test_empty_truth_slots_contribute_nothing(setup, garbage):
    batch = make_batch()
    clean = setup.step(setup.state, batch, KEY)
    truth = jax.tree.map(np.copy, batch.ground_truth)
    for field in (truth.boxes, truth.mask_windows):
        field[~truth.valid] = garbage
    truth.boxes[~truth.valid, 2:] += 20
    truth.classes[~truth.valid] = 5
    truth.masks[~truth.valid] = 0
    jax.tree.map(np.testing.assert_array_equal, clean, setup.step(setup.state, batch._replace(ground_truth=truth), KEY))


def test_instances_without_masks_count_in_all_other_losses(setup):
    """The mask loss is that of the instances with a mask; the other losses are exactly the same."""
    batch = make_batch()
    truth = jax.tree.map(np.copy, batch.ground_truth)
    truth.mask_windows[1], truth.masks[1] = 0, 1 - truth.masks[1]
    _, whole = setup.step(setup.state, batch, KEY)
    _, first = setup.step(setup.state, without(batch, 1), KEY)
    _, metrics = setup.step(setup.state, batch._replace(ground_truth=truth), KEY)
    for name in ("loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_keypoint", "num_positive_rois"):
        np.testing.assert_array_equal(metrics[name], whole[name], err_msg=name)
    assert abs(float(whole["loss_mask"]) / float(first["loss_mask"]) - 1) > 10 * ROUNDING  # not trivial
    np.testing.assert_allclose(metrics["loss_mask"], first["loss_mask"], rtol=ROUNDING)
    truth.mask_windows[:] = 0
    _, none = setup.step(setup.state, batch._replace(ground_truth=truth), KEY)
    assert float(none["loss_mask"]) == 0
    assert none["finite"]


def test_image_without_objects_is_background(setup):
    batch = make_batch()
    truth = batch.ground_truth._replace(valid=np.zeros_like(batch.ground_truth.valid))
    state, metrics = setup.step(setup.state, batch._replace(ground_truth=truth), KEY)
    assert metrics["finite"]
    assert int(metrics["num_positive_rois"]) == 0
    assert [float(metrics[name]) for name in ("loss_rpn_box", "loss_box", "loss_mask", "loss_keypoint")] == [0] * 4
    assert float(metrics["loss_class"]) > 0
    assert float(metrics["loss_rpn_class"]) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_batch_without_images_has_a_gradient_of_zero(setup):
    """Momentum still moves the parameters."""
    batch = make_batch()._replace(valid=np.zeros(IMAGES, bool))
    before = setup.state._replace(opt_state=jax.tree.map(lambda x: x + np.float32(0.5), setup.state.opt_state))
    after, metrics = setup.step(before, batch, KEY)
    assert metrics["finite"]
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0, 0)
    expected = jax.tree.map(lambda leaf: leaf - np.float32(LEARNING_RATE * 0.9 * 0.5), before.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), after.params, expected)


def test_nonfinite_loss_is_reported(setup):
    params = jax.tree.map(np.array, setup.state.params)
    params["box_head"]["logits"]["bias"][0] = np.nan
    _, metrics = setup.step(setup.state._replace(params=params), make_batch(), KEY)
    assert not metrics["finite"]


@pytest.mark.parametrize(
    ("norm", "compute_dtype", "masks"),
    [("bn", "bfloat16", True), ("frozen_bn", "float32", False)],
)
def test_step_keeps_dtypes_and_shapes_of_the_state(tiny_model_config, norm, compute_dtype, masks):
    """The state is float32 for any compute dtype."""
    backbone = dataclasses.replace(tiny_model_config.backbone, norm=norm, frozen_stages=1)
    mask = tiny_model_config.mask if masks else None
    model_config = dataclasses.replace(
        tiny_model_config, num_classes=5, backbone=backbone, mask=mask, compute_dtype=compute_dtype
    )
    model, optimizer = build_model(model_config), optax.adam(1e-3)
    step = make_train_step(model, Config(model=model_config), optimizer, lambda step: 1e-3)
    state = jax.eval_shape(lambda: create_state(optimizer, jax.tree.map(jnp.zeros_like, variable_shapes(model))))
    after, metrics = jax.eval_shape(step, state, make_batch(), KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    form = [[(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)] for tree in (state, after)]
    assert form[0] == form[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"float32", "int32"}
    assert LOSSES - set(metrics) == {"loss_keypoint"} | (set() if masks else {"loss_mask"})

"""A step on two devices equals the step of one device on the whole batch."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs

from mrcnn_jax.checkpoints.workdir import read_config
from mrcnn_jax.config import TrainConfig
from mrcnn_jax.data import load_split, train_batches
from mrcnn_jax.inference.devices import replicate
from mrcnn_jax.models.mask_rcnn import build_model, init_variables
from mrcnn_jax.training import gradients, parallel, train
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule
from mrcnn_jax.training.step import create_state, make_train_step
from mrcnn_jax.training.train import with_categories

pytestmark = pytest.mark.medium

STEPS = 3


def linear_losses(model, variables, batch, keys, rois=None):
    """Replaces `forward_losses`: two losses with unrelated counts."""
    values = batch.images.astype(jnp.float32).mean((1, 2, 3)) / 255
    objects = jnp.sum(batch.ground_truth.valid, axis=1)
    errors = (variables["params"]["weight"] - values) ** 2
    valid = batch.valid
    sums = {
        "of images": (jnp.sum(jnp.where(valid, errors, 0)), jnp.sum(valid)),
        "of objects": (jnp.sum(jnp.where(valid, errors * objects, 0)), jnp.sum(jnp.where(valid, objects, 0))),
    }
    mean = variables["batch_stats"]["mean"] / 2 + jnp.mean(values)
    return sums, ({"batch_stats": {"mean": mean}}, {"objects": sums["of objects"][1]})


def linear_counts(*arguments):
    """Replaces `sample_batch_rois`."""
    sums, _ = linear_losses(*arguments)
    return jnp.zeros(()), {name: count for name, (_, count) in sums.items()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_losses_are_normalized_by_counts_of_the_global_batch(count, accumulate, monkeypatch):
    monkeypatch.setattr(gradients, "forward_losses", linear_losses)
    monkeypatch.setattr(gradients, "sample_batch_rois", linear_counts)
    batch, weight = programs.make_batch((1, 4, 2), seed=1), np.float64(0.7)
    config = replace(programs.make_config(), train=TrainConfig(batch_size=4, accumulate=accumulate))
    compute_gradients = gradients.make_gradient_function(build_model(config.model), config, "devices")
    state = {"batch_stats": {"mean": np.float32(0)}}
    shares = jax.tree.map(
        lambda x: x.reshape(count, 4 // count, *x.shape[1:]), (batch, jax.random.split(jax.random.key(0), 4))
    )
    over_devices = jax.vmap(
        lambda batch, keys: compute_gradients({"weight": np.float32(weight)}, state, batch, keys), axis_name="devices"
    )
    found = jax.device_get(jax.jit(over_devices)(*shares))
    for leaf in jax.tree.leaves(found):
        assert (leaf == leaf[0]).all()  # every device has the same

    values = batch.images.astype(np.float64).mean((1, 2, 3)) / 255
    of_images, of_objects = np.array([1, 1, 1, 0]) / 3, np.array([1, 4, 2, 0]) / 7
    errors = (weight - values) ** 2
    np.testing.assert_allclose(found.losses["of images"][0], of_images @ errors, rtol=1e-6)
    np.testing.assert_allclose(found.losses["of objects"][0], of_objects @ errors, rtol=1e-6)
    expected = (of_images + of_objects) @ (2 * (weight - values))
    np.testing.assert_allclose(found.gradients["weight"][0], expected, rtol=1e-6)
    assert found.counts["objects"][0] == 7
    # The mean over the devices of statistics that each micro-batch updates.
    seen = values.reshape(count, accumulate, -1).mean(axis=(0, 2)) @ 0.5 ** np.arange(accumulate)[::-1]
    np.testing.assert_allclose(found.statistics["batch_stats"]["mean"][0], seen, rtol=1e-6)


def test_slots_of_images_do_not_matter(finished_run):
    """Three images on two devices, two and one or one and two, give the same step."""
    config = read_config(finished_run.workdir)
    model = build_model(config.model)
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, finished_run.state.params)
    devices = jax.local_devices()[:2]
    # The step of `finished_run`, which is already compiled.
    step = parallel.CompiledTrainStep(
        train.make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME), devices
    )
    with train_batches(load_split(config.data, "train"), config) as stream:
        batch = next(stream)
    batch.valid[3] = False
    moved = jax.tree.map(lambda x: x[::-1].copy(), batch)
    found = []
    for some in (batch, moved):
        state = replicate(jax.device_get(finished_run.state), devices)
        key = replicate(jax.random.key(0), devices)
        found.append(jax.device_get(step(state, parallel.place_batch(some, devices), key)))
    for name, value in found[0][1].items():
        # sums of some thousand float32 terms in another order: about a hundred roundings of 6e-8
        np.testing.assert_allclose(found[1][1][name], value, rtol=1e-5, err_msg=name)
    assert_trees_are_close(*[state for state, _ in found], 1e-5)


def with_both_norms(config):
    """Synchronized batch norm, also of RoIs, whose number differs between devices, and group norm."""
    model = config.model
    return replace(
        config,
        model=replace(
            model,
            backbone=replace(model.backbone, norm="sync_bn"),
            fpn=replace(model.fpn, norm="gn"),
            box=replace(model.box, conv_layers=1, channels=8, norm="sync_bn"),
            mask=replace(model.mask, norm="sync_bn"),
        ),
    )


@pytest.fixture(scope="module")
def runs(tiny_config):
    """(state, metrics) after each of three steps, on two devices by pmap and on one by jit."""
    dataset = load_split(tiny_config.data, "train")
    config = with_categories(with_both_norms(tiny_config), dataset.categories)
    model = build_model(config.model)
    variables = init_variables(model, jax.random.key(1))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"])
    with train_batches(dataset, config) as stream:
        batches = [next(stream) for _ in range(STEPS)]
    # Counts differ between devices, so that a mean of per-device means would fail: no objects, an empty slot.
    batches[1].ground_truth.valid[0] = False
    batches[2].valid[3] = False
    start = jax.device_get(create_state(optimizer, variables))

    def steps(step, state, place, key):
        outcomes = []
        for batch in batches:
            state, metrics = step(state, place(batch), key)
            outcomes.append(jax.device_get((state, metrics)))
        return outcomes

    devices, key = jax.local_devices()[:2], jax.random.key(2)
    shared = make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
    two = steps(
        parallel.CompiledTrainStep(shared, devices),
        replicate(start, devices),
        lambda batch: parallel.place_batch(batch, devices),
        replicate(key, devices),
    )
    alone = jax.jit(make_train_step(model, config, optimizer, schedule, axis_name=None))
    return two, steps(alone, start, lambda batch: batch, key)


@pytest.mark.slow  # adds only the synchronized norms of the heads to the tests above
def test_losses_and_counts_agree(runs):
    for (_, two), (_, one) in zip(*runs, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            # sums of some thousand float32 terms in another order: about a hundred roundings of 6e-8
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
    positives = [int(metrics["num_positive_rois"]) for _, metrics in runs[0]]
    assert positives[1] < positives[0]  # the image without objects has none: the devices' counts differ


@pytest.mark.slow
def test_gradients_and_parameters_agree(runs):
    """After one step the momentum of SGD is the gradient itself (and the decay, which does not depend on devices)."""
    for index, ((two, _), (one, _)) in enumerate(zip(*runs, strict=True)):
        # the same hundred roundings in every step's gradient; biases begin at zero and are nothing but updates
        assert_trees_are_close(two, one, 1e-5 * (1 + index))


def assert_trees_are_close(actual, expected, tolerance):
    """Compare arrays relative to their largest element: small gradients are differences of large ones."""

    def check(ours, other):
        assert np.abs(ours - other).max() <= tolerance * np.abs(other).max()

    jax.tree.map(check, actual, expected)

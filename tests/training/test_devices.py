"""Two devices with half of the batch each make the step that one device makes with all of it."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from mrcnn_jax.data import load_split, train_batches
from mrcnn_jax.models.rcnn import build_model, init_variables
from mrcnn_jax.training import parallel
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule
from mrcnn_jax.training.run import with_categories
from mrcnn_jax.training.step import create_state, make_train_step

STEPS = 3


def with_both_norms(config):
    """Synchronised batch norm, also where the devices have different numbers of rows, and group norm."""
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
    # Uneven shares, so that a mean of the devices' means would show: an image without objects, an empty slot.
    batches[1].ground_truth.valid[0] = False
    batches[2].valid[3] = False
    start = jax.device_get(create_state(optimizer, variables))

    def run(step, state, place, key):
        outcomes = []
        for batch in batches:
            state, metrics = step(state, place(batch), key)
            outcomes.append(jax.device_get((state, metrics)))
        return outcomes

    devices, key = jax.local_devices()[:2], jax.random.key(2)
    shared = make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
    two = run(
        parallel.compile_train_step(shared, devices),
        parallel.replicate(start, devices),
        lambda batch: parallel.place_batch(batch, devices),
        parallel.replicate(key, devices),
    )
    alone = jax.jit(make_train_step(model, config, optimizer, schedule, axis_name=None))
    return two, run(alone, start, lambda batch: batch, key)


def test_losses_and_counts_agree(runs):
    for (_, two), (_, one) in zip(*runs, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            # sums of some thousand float32 terms in another order: about a hundred roundings of 6e-8
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
    positives = [int(metrics["num_positive_rois"]) for _, metrics in runs[0]]
    assert positives[1] < positives[0]  # the image without objects has none: the devices' counts differ


def test_gradients_and_parameters_agree(runs):
    """After one step the momentum of SGD is the gradient itself (and the decay, which does not depend on devices)."""
    for index, ((two, _), (one, _)) in enumerate(zip(*runs, strict=True)):
        # the same hundred roundings in every step's gradient; biases begin at zero and are nothing but updates
        check = functools.partial(assert_close_to_largest, tolerance=1e-5 * (1 + index))
        jax.tree.map(check, two, one)


def assert_close_to_largest(actual, expected, *, tolerance):
    """Compare arrays relative to their largest element: small gradients are differences of large ones."""
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()

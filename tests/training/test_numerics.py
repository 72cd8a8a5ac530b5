"""Synchronized batch norm and bfloat16, compared with one device and float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from support import programs

from mrcnn_jax.config import FPNConfig
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.models.norms import Norm
from mrcnn_jax.training.forward import StatefulApply
from mrcnn_jax.training.step import TrainState, create_state

pytestmark = pytest.mark.medium

AXIS = "devices"
KEY = jax.random.key(7)


def on_two_devices(function: Any, *, mapped: int) -> Any:
    """Run `function` with its last `mapped` arguments split over two devices.

    Its results are a dict: those of key "same" are replicated, those of key "split" are concatenated.
    """
    mesh = Mesh(np.asarray(jax.local_devices()[:2]), (AXIS,))

    def run(*args: Any) -> Any:
        specs = (PartitionSpec(),) * (len(args) - mapped) + (PartitionSpec(AXIS),) * mapped
        out = {"same": PartitionSpec(), "split": PartitionSpec(AXIS)}
        inner = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        return jax.jit(inner)(*args)

    return run


ROWS = {"all": [1, 1, 1, 1], "an empty slot": [1, 1, 1, 0], "an empty device": [1, 1, 0, 0], "none": [0, 0, 0, 0]}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_synchronized_batch_norm_equals_that_of_the_whole_batch(rows):
    """Output, gradients and running statistics, against moments of the valid rows by NumPy in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 5, 6, 8)).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    valid = np.array(rows, bool)
    params = {"norm": {"scale": np.float32(rng.uniform(0.5, 2, 8)), "bias": np.float32(rng.normal(size=8))}}
    statistics = {"norm": {"mean": np.float32(rng.normal(size=8)), "var": np.float32(rng.uniform(0.5, 2, 8))}}

    def run(kind, axis_name, params, x, weights, valid):
        def loss(params, x):
            variables = {"params": params, "batch_stats": statistics}
            y, after = Norm(kind, axis_name=axis_name).apply(
                variables, x, train=True, valid=valid, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.where(valid[:, None, None, None], y * weights, 0.0)), (y, after["batch_stats"])

        (of_params, of_x), (y, after) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        of_params = of_params if axis_name is None else jax.lax.psum(of_params, axis_name)
        return {"same": (of_params, after), "split": (of_x, y)}

    one = run("bn", None, params, x, weights, valid)
    two = on_two_devices(lambda *args: run("sync_bn", AXIS, *args), mapped=3)(params, x, weights, valid)
    # sums of some hundred terms of size 10 at most
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), two, one)

    counted = x[valid].astype(np.float64).reshape(-1, 8)
    before = statistics["norm"]
    mean, var = (counted.mean(0), counted.var(0)) if valid.any() else (before["mean"], before["var"])
    y = (x - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(one["split"][1], y, rtol=1e-5, atol=1e-5)
    if valid.any():
        expected = 0.9 * before["mean"] + 0.1 * mean, 0.9 * before["var"] + 0.1 * counted.var(0, ddof=1)
    else:
        expected = before["mean"], before["var"]
    after = one["same"][1]["norm"]
    np.testing.assert_allclose((after["mean"], after["var"]), expected, rtol=1e-5, atol=1e-6)


def test_empty_slot_does_not_count_in_batch_statistics():
    """Two devices with an empty slot, of any content, equal one device without it."""
    batch = programs.make_batch((2, 2, 2, 2))
    config = programs.make_config("sync_bn", fpn=FPNConfig(channels=16, norm="sync_bn"))
    model, (_, params, state, *_) = build_model(config.model), programs.make_state(config)

    def run(axis_name, params, images, sizes, valid):
        def loss(params):
            forward = StatefulApply(model.clone(axis_name=axis_name), {"params": params, **state})
            features = forward(forward.model.features, images, sizes, valid)
            cost = sum(jnp.sum(jnp.where(valid[:, None, None, None], level, 0.0) ** 2) for level in features)
            return cost / 1000, (features[-1], forward.statistics())

        gradient, (features, statistics) = jax.grad(loss, has_aux=True)(params)
        gradient = gradient if axis_name is None else jax.lax.psum(gradient, axis_name)
        return {"same": (gradient, statistics), "split": jnp.where(valid[:, None, None, None], features, 0.0)}

    images, sizes = batch.images.copy(), batch.image_sizes
    valid = np.array([True, True, True, False])
    alone = jax.jit(lambda *args: run(None, *args))
    expected = alone(params, images[:3], sizes[:3], valid[:3])
    assert np.abs(expected["split"]).max() > 0.1
    images[3] = np.random.default_rng(9).integers(0, 256, images[3].shape)
    spread = on_two_devices(lambda *args: run(AXIS, *args), mapped=3)
    found = spread(params, images, sizes, valid)
    np.testing.assert_allclose(found["split"][:3], expected["split"], rtol=1e-4, atol=1e-4)
    jax.tree.map(assert_close_to_largest, found["same"], expected["same"])


def assert_close_to_largest(actual: Any, expected: Any) -> None:
    """Sums of some thousand terms; gradients through batch norm are differences of large numbers."""
    assert np.abs(actual - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1e-2)


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """(state, metrics) of six steps from the same parameters, for each compute dtype."""
    wide = programs.one_device()
    narrow = jax.jit(programs.make_step(programs.make_config(compute_dtype="bfloat16")))
    found = {}
    for dtype, step in (("float32", wide.step), ("bfloat16", narrow)):
        state, outcomes = wide.state, []
        for _ in range(6):
            state, metrics = step(state, programs.make_batch((2, 2, 2, 2)), KEY)
            outcomes.append(jax.device_get((state, metrics)))
        found[dtype] = outcomes
    return found


def test_bfloat16_losses_are_close_to_float32(runs):
    (_, narrow), (_, wide) = runs["bfloat16"][0], runs["float32"][0]
    for name in [name for name in wide if name.startswith("loss")]:
        # A rounding is 2 ** -9 = 0.2 % of a feature; some twenty in a row, of random signs.
        np.testing.assert_allclose(narrow[name], wide[name], rtol=0.02, err_msg=name)
        assert narrow[name].dtype == np.float32
    assert narrow["loss"] != wide["loss"]


def test_bfloat16_gradient_has_the_direction_of_float32(runs):
    """The momentum after one step is the gradient."""

    def gradient(outcome: Any) -> np.ndarray:
        state: TrainState = outcome[0]
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.opt_state)])

    narrow, wide = gradient(runs["bfloat16"][0]), gradient(runs["float32"][0])
    cosine = narrow @ wide / np.linalg.norm(narrow) / np.linalg.norm(wide)
    assert 0.98 < cosine < 1 - 1e-6
    assert 0.9 < np.linalg.norm(narrow) / np.linalg.norm(wide) < 1.1


def test_bfloat16_learns(runs):
    history = {name: [float(metrics["loss"]) for _, metrics in outcomes] for name, outcomes in runs.items()}
    assert history["bfloat16"][-1] < 0.75 * history["bfloat16"][0], history


def test_bfloat16_leaves_the_state_in_float32(runs):
    """So that small updates are not lost."""
    state, metrics = runs["bfloat16"][-1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state, metrics))} <= {"float32", "int32", "bool"}


def test_reductions_over_devices_are_float32():
    """Losses, counts, gradients, moments of batch norm and their gradients."""
    config = programs.make_config("sync_bn", compute_dtype="bfloat16")
    variables = variable_shapes(build_model(config.model))
    state = jax.eval_shape(lambda variables: create_state(programs.OPTIMIZER, variables), variables)
    mesh = Mesh(np.asarray(jax.local_devices()[:2]), (AXIS,))
    specs = (PartitionSpec(), PartitionSpec(AXIS), PartitionSpec())
    step = programs.make_step(config, axis_name=AXIS)
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    text = jax.jit(sharded).lower(state, programs.make_batch((2, 2, 2, 2)), KEY).as_text()
    lines = text.splitlines()
    types = []
    for index, line in enumerate(lines):
        if "stablehlo.all_reduce" in line:  # its type follows the body, which adds two numbers
            end = next(other for other in lines[index:] if other.strip().startswith("}) :"))
            types.append(end.split("->")[1].strip())
    assert len(types) > 100
    assert "bf16" in text
    assert not [kind for kind in types if "bf16" in kind], types

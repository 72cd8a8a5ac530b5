"""The moving average of the weights: values, ownership of arrays, saving and evaluation."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from mrcnn_jax.checkpoints.ema import init_ema, update_ema
from mrcnn_jax.checkpoints.manager import Checkpointer, load_variables
from mrcnn_jax.checkpoints.workdir import prepare_workdir
from mrcnn_jax.config import Config
from mrcnn_jax.training.step import TrainState, create_state

STEPS = 25
DECAY = 0.5  # reached at step 8: (1 + 8) / (10 + 8)


def draw(seed: int) -> dict:
    """Variables of a network with constants and running statistics."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "params": {"head": {"kernel": array(3, 2), "bias": array(2)}},
        "batch_stats": {"norm": {"mean": array(2), "var": array(2) ** 2}},
        "frozen": {"norm": {"scale": array(2)}},
    }


def state_of(variables: dict, decay: float = DECAY) -> TrainState:
    return create_state(optax.adam(0.1), jax.tree.map(jax.numpy.asarray, variables), ema_decay=decay)


def averaged(values: list[np.ndarray]) -> np.ndarray:
    """The recursion in float64."""
    average = values[0].astype(np.float64)
    for step, value in enumerate(values[1:]):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    return average


def test_average_follows_the_recursion():
    """For parameters and running statistics; constants have no average."""
    path = [draw(seed) for seed in range(STEPS + 1)]
    split = [({"params": v["params"]}, {"batch_stats": v["batch_stats"], "frozen": v["frozen"]}) for v in path]
    average = init_ema(split[0][0]["params"], split[0][1], DECAY)
    update = jax.jit(lambda average, params, rest, step: update_ema(average, params, rest, DECAY, step))
    for step, (params, rest) in enumerate(split[1:]):
        average = update(average, params["params"], rest, np.int32(step))
        seen = path[: step + 2]
        expected = {
            "params": jax.tree.map(lambda *values: averaged(values), *[v["params"] for v in seen]),
            "model_state": {
                "batch_stats": jax.tree.map(lambda *values: averaged(values), *[v["batch_stats"] for v in seen])
            },
        }
        # Compared at every step, because an error is halved by each; a step rounds a few times.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), average, expected)


def test_average_of_constant_values_is_exact():
    variables = draw(0)
    variables["params"]["head"]["bias"] *= np.float32(1e-30)
    rest = {name: variables[name] for name in ("batch_stats", "frozen")}
    average = init_ema(variables["params"], rest, 0.999)
    update = jax.jit(lambda average, step: update_ema(average, variables["params"], rest, 0.999, step))
    for step in (*range(STEPS), 100_000):
        average = update(average, np.int32(step))
    jax.tree.map(np.testing.assert_array_equal, average["params"], variables["params"])
    jax.tree.map(np.testing.assert_array_equal, average["model_state"], {"batch_stats": variables["batch_stats"]})


def test_state_has_no_aliases():
    """The whole state is donated."""
    leaves = [leaf for leaf in jax.tree.leaves(state_of(draw(0))) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def with_other_average(state: TrainState) -> TrainState:
    """The state with an average that differs from its parameters."""
    return state._replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))


def test_average_is_evaluated():
    state = with_other_average(state_of(draw(0)))
    variables = state.inference_variables()
    expected = draw(0)
    for name in ("params", "batch_stats"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), variables[name], expected[name])
    jax.tree.map(np.testing.assert_array_equal, variables["frozen"], expected["frozen"])
    assert state_of(draw(0), decay=0).ema == {}
    plain = state_of(draw(0), decay=0).inference_variables()
    jax.tree.map(np.testing.assert_array_equal, plain, expected)


@pytest.mark.parametrize("decay", [0, DECAY])
def test_average_is_saved_and_loaded(tmp_path, decay):
    state = with_other_average(state_of(draw(0), decay))
    prepare_workdir(tmp_path, Config())
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(5, state)
        restored = checkpointer.restore_latest(jax.eval_shape(lambda: state))
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))
    _, variables = load_variables(tmp_path)
    assert variables.keys() == state.inference_variables().keys()
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(state.inference_variables()))

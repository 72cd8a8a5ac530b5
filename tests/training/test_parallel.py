"""Data parallelism: results, compilations, donation, placement of batches."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.inference.devices import replicate
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training import parallel

pytestmark = pytest.mark.medium


class State(NamedTuple):
    step: jax.Array
    weight: jax.Array


def make_batch(size: int, height: int = 4, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    truth = GroundTruth(
        boxes=np.zeros((size, 1, 4), np.float32),
        classes=np.zeros((size, 1), np.int32),
        masks=np.zeros((size, 1, 0, 0), np.uint8),
        mask_windows=np.zeros((size, 1, 4), np.float32),
        keypoints=np.zeros((size, 1, 0, 3), np.float32),
        valid=np.zeros((size, 1), bool),
    )
    return Batch(
        images=rng.integers(0, 255, (size, height, 4, 3), dtype=np.uint8),
        image_sizes=np.full((size, 2), 4, np.int32),
        indices=np.arange(size, dtype=np.int32),
        valid=np.ones(size, bool),
        ground_truth=truth,
    )


def step(state: State, batch: Batch, key: jax.Array):
    """Sum all pixels, plus noise per image."""
    noise = jax.vmap(lambda index: jax.random.randint(jax.random.fold_in(key, index), (), 0, 100))(batch.indices)
    pixels = jnp.sum(batch.images.astype(jnp.int32), axis=(1, 2, 3)) + noise
    total = jax.lax.psum(jnp.sum(pixels), parallel.AXIS_NAME)
    return State(state.step + 1, state.weight + total.astype(jnp.float32)), {"total": total}


def run(devices, heights=(4, 4, 4)):
    compiled = parallel.CompiledTrainStep(step, devices)
    state = replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    key = replicate(jax.random.key(0), devices)
    traces, totals = [], []
    for index, height in enumerate(heights):
        batch = parallel.place_batch(make_batch(4, height, seed=index), devices)
        with jax.transfer_guard("disallow"):
            state, metrics = compiled(state, batch, key)
        traces.append(compiled.traces)
        totals.append(int(metrics["total"]))
    return state, totals, traces


def test_two_devices_equal_one():
    one, totals_one, _ = run(jax.local_devices()[:1])
    two, totals_two, _ = run(jax.local_devices()[:2])
    assert totals_one == totals_two  # integers below 2 ** 24: exact
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_one_compilation_for_each_shape(caplog):
    jax.config.update("jax_log_compiles", True)
    try:
        _, _, traces = run(jax.local_devices()[:2], heights=(4, 8, 4, 8, 4))
    finally:
        jax.config.update("jax_log_compiles", False)
    assert traces == [1, 2, 2, 2, 2]
    # By JAX's own count, too: the state returned by a step does not cause a second compilation.
    programs = [r for r in caplog.records if r.message.startswith("Compiling") and "uint8[" in r.message]
    assert len(programs) == 2


class Warm(NamedTuple):
    """A train step after two batches of one shape, and inputs for the next call."""

    step: parallel.CompiledTrainStep
    state: State
    batch: Batch
    key: jax.Array


@pytest.fixture
def warm() -> Warm:
    devices = jax.local_devices()[:2]
    compiled = parallel.CompiledTrainStep(step, devices)
    state = replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    batch, key = parallel.place_batch(make_batch(4), devices), replicate(jax.random.key(0), devices)
    for _ in range(2):
        state, _ = compiled(state, batch, key)
    return Warm(compiled, state, batch, key)


def on_first_device(array):
    return jax.device_put(np.asarray(array), jax.local_devices()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state._replace(weight=on_first_device(state.weight)), r"state/weight was .*, is .*SingleDevice"),
        (lambda state: state._replace(step=np.int16(2)), r"state/step was int32\[\] on .*, is int16\[\] on the host"),
    ],
    ids=["sharding", "dtype"],
)
def test_recompilation_for_a_shape_names_the_change(warm, change, message):
    with pytest.raises(parallel.RecompilationError, match=message) as error:
        warm.step(change(warm.state), warm.batch, warm.key)
    assert "batches of shape (2, 2, 4, 4, 3)" in str(error.value)
    assert str(error.value).count(" was ") == 2  # "the train step was compiled", and the one change


def test_recompilation_because_of_a_setting(warm):
    """A cleared cache has the same message, but would slow down other tests."""
    with (
        jax.default_matmul_precision("highest"),
        pytest.raises(parallel.RecompilationError, match="Changed inputs: none"),
    ):
        warm.step(*warm[1:])


def test_compilations_outside_of_the_step_do_not_count(warm, monkeypatch):
    call, compile_one = warm.step._call, jax.jit(lambda x: x + 17)
    compile_one(np.zeros(5))  # outside of the step
    state, _ = warm.step(*warm[1:])

    def call_and_compile(*arguments):
        compile_one(np.zeros(6))
        return call(*arguments)

    monkeypatch.setattr(warm.step, "_call", call_and_compile)
    with pytest.raises(parallel.RecompilationError):
        warm.step(state, warm.batch, warm.key)
    assert warm.step.traces == 1


@pytest.mark.parametrize("field", ["state", "batch"])
def test_host_arrays_fail_under_a_transfer_guard(warm, field):
    arguments = warm._replace(**{field: jax.device_get(getattr(warm, field))})
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"),
    ):
        warm.step(*arguments[1:])


def test_state_is_donated_and_replicated():
    devices = jax.local_devices()[:2]
    compiled = parallel.CompiledTrainStep(step, devices)
    state = replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    batch, key = parallel.place_batch(make_batch(2), devices), replicate(jax.random.key(0), devices)
    after, _ = compiled(state, batch, key)
    assert state.weight.is_deleted()
    assert after.weight.shape == (3,)
    assert after.weight.is_fully_replicated


def test_numpy_state_is_not_changed():
    devices = jax.local_devices()[:2]
    before = State(np.int32(0), np.zeros(3, np.float32))
    compiled = parallel.CompiledTrainStep(step, devices)
    batch, key = parallel.place_batch(make_batch(2), devices), replicate(jax.random.key(0), devices)
    state = replicate(before, devices)
    for _ in range(2):
        state, _ = compiled(state, batch, key)
    np.testing.assert_array_equal(before.weight, np.zeros(3))
    assert int(state.step) == 2


def test_indivisible_batch_is_rejected():
    with pytest.raises(ValueError, match=r"train\.batch_size: 3 images do not divide over 2 devices"):
        parallel.place_batch(make_batch(3), jax.local_devices()[:2])


@pytest.mark.parametrize(("settings", "devices"), [({}, None), ({"JAX_NUM_CPU_DEVICES": "3"}, 3)])
def test_cpu_cores_become_devices(settings, devices):
    """In a subprocess, because JAX counts its devices once."""
    batch_size = 12
    code = f"import jax; from mrcnn_jax.training import parallel; parallel.use_cpu_cores({batch_size});"
    code += "print(len(jax.devices()))"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **settings}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cores = len(os.sched_getaffinity(0))
    assert int(run.stdout) == (devices or max(n for n in range(1, cores + 1) if batch_size % n == 0))

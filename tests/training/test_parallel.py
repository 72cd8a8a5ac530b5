"""pmap: one value of the state, one compilation for each shape, batches cut evenly."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    """Adds up all pixels, each with noise of its image's own."""
    noise = jax.vmap(lambda index: jax.random.randint(jax.random.fold_in(key, index), (), 0, 100))(batch.indices)
    pixels = jnp.sum(batch.images.astype(jnp.int32), axis=(1, 2, 3)) + noise
    total = jax.lax.psum(jnp.sum(pixels), parallel.AXIS_NAME)
    return State(state.step + 1, state.weight + total.astype(jnp.float32)), {"total": total}


def run(devices, heights=(4, 4, 4)):
    compiled = parallel.compile_train_step(step, devices)
    state = parallel.replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    key = parallel.replicate(jax.random.key(0), devices)
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
    # JAX's own count: the state that comes out of a step does not make a second program either
    programs = [r for r in caplog.records if r.message.startswith("Compiling") and "uint8[" in r.message]
    assert len(programs) == 2


class Warm(NamedTuple):
    """A train step that has seen two batches of one shape, and what it takes next."""

    step: parallel.CompiledTrainStep
    state: State
    batch: Batch
    key: jax.Array


@pytest.fixture
def warm() -> Warm:
    devices = jax.local_devices()[:2]
    compiled = parallel.compile_train_step(step, devices)
    state = parallel.replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    batch, key = parallel.place_batch(make_batch(4), devices), parallel.replicate(jax.random.key(0), devices)
    for _ in range(2):
        state, _ = compiled(state, batch, key)
    return Warm(compiled, state, batch, key)


def elsewhere(array):
    return jax.device_put(np.asarray(array), jax.local_devices()[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state._replace(weight=elsewhere(state.weight)), r"state/weight was .*, is .*SingleDevice"),
        (lambda state: state._replace(step=np.int16(2)), r"state/step was int32\[\] on .*, is int16\[\] on the host"),
    ],
    ids=["another place", "another type"],
)
def test_second_compilation_for_a_shape_is_an_error_that_names_the_change(warm, change, told):
    with pytest.raises(parallel.RecompilationError, match=told) as error:
        warm.step(change(warm.state), warm.batch, warm.key)
    assert "batches of shape (2, 2, 4, 4, 3)" in str(error.value)
    assert str(error.value).count(" was ") == 2  # "the train step was compiled", and the one change


def test_changed_setting_is_told_from_a_change_of_what_goes_in(warm):
    """As is a cleared cache, which would take the programs of other tests with it."""
    with (
        jax.default_matmul_precision("highest"),
        pytest.raises(parallel.RecompilationError, match="Changed inputs: none"),
    ):
        warm.step(*warm[1:])


def test_compilation_without_a_trace_counts_and_those_of_others_do_not(warm, monkeypatch):
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
def test_arrays_of_the_host_do_not_slip_into_a_guarded_step(warm, field):
    arguments = warm._replace(**{field: jax.device_get(getattr(warm, field))})
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"),
    ):
        warm.step(*arguments[1:])


def test_state_is_donated_and_one_logical_value():
    devices = jax.local_devices()[:2]
    compiled = parallel.compile_train_step(step, devices)
    state = parallel.replicate(State(np.int32(0), np.zeros(3, np.float32)), devices)
    batch, key = parallel.place_batch(make_batch(2), devices), parallel.replicate(jax.random.key(0), devices)
    after, _ = compiled(state, batch, key)
    assert state.weight.is_deleted()
    assert after.weight.shape == (3,)
    assert after.weight.is_fully_replicated


def test_numpy_state_enters_without_being_changed():
    devices = jax.local_devices()[:2]
    before = State(np.int32(0), np.zeros(3, np.float32))
    compiled = parallel.compile_train_step(step, devices)
    batch, key = parallel.place_batch(make_batch(2), devices), parallel.replicate(jax.random.key(0), devices)
    state = parallel.replicate(before, devices)
    for _ in range(2):
        state, _ = compiled(state, batch, key)
    np.testing.assert_array_equal(before.weight, np.zeros(3))
    assert int(state.step) == 2


def test_uneven_batch_is_refused():
    with pytest.raises(ValueError, match=r"train\.batch_size: 3 images do not divide over 2 devices"):
        parallel.place_batch(make_batch(3), jax.local_devices()[:2])


@pytest.mark.parametrize(("settings", "devices"), [({}, None), ({"JAX_NUM_CPU_DEVICES": "3"}, 3)])
def test_cpu_cores_become_devices(settings, devices):
    """As many cores as divide the batch, in a process of its own: JAX counts its devices once."""
    batch_size = 12
    code = f"import jax; from mrcnn_jax.training import parallel; parallel.use_cpu_cores({batch_size});"
    code += "print(len(jax.devices()))"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **settings}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cores = len(os.sched_getaffinity(0))
    assert int(run.stdout) == (devices or max(n for n in range(1, cores + 1) if batch_size % n == 0))

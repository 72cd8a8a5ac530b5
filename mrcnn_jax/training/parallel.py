"""Data parallelism with `pmap`; no other module uses `pmap`.

The state is not replicated by hand: it enters with `in_axes=None` and leaves with `out_axes=None`, as one logical value
that every device holds. It is donated, so it must enter as NumPy arrays or replicated arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mrcnn_jax.errors import ConfigError, RecompilationError, format_changes, format_list
from mrcnn_jax.inference.devices import AXIS_NAME, shard
from mrcnn_jax.runtime.compile_counter import get_counter
from mrcnn_jax.runtime.trees import leaves_by_path
from mrcnn_jax.structures import Batch

_MAX_LISTED = 4  # changes in an error message

PyTree = Any
StepFunction = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]


class CompiledTrainStep:
    """A training step over all devices: `state, metrics = train_step(state, batch, key)`.

    `batch` is the result of `place_batch`; `state` is donated. `traces` is the number of times that the function was
    traced, once per batch shape. Raises RecompilationError if it is traced or compiled again for the same shape.
    """

    def __init__(self, step: StepFunction, devices: Sequence[jax.Device] | None = None):
        """Wrap `step(state, batch, key)`, which sees one device's part of the batch and may reduce over `AXIS_NAME`.

        `devices` are local devices (default: all); with several processes, they must be all local devices.
        """
        self.traces = 0
        self._compilations = get_counter()
        self._known_inputs: dict[PyTree, dict[str, str]] = {}  # batch shapes -> description of the first inputs

        def traced_step(state: PyTree, batch: PyTree, key_data: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
            self.traces += 1
            return step(state, batch, jax.random.wrap_key_data(key_data))

        self._call = jax.pmap(
            traced_step,
            axis_name=AXIS_NAME,
            in_axes=(None, 0, None),
            out_axes=None,  # type: ignore[arg-type]
            donate_argnums=(0,),
            # With explicit devices, pmap would reduce over these alone, even with several processes.
            devices=devices if jax.process_count() == 1 else None,
        )

    def __call__(self, state: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        before = self.traces, self._compilations.count
        # With several processes, pmap would send a typed key, but not its data, through the host.
        result = self._call(state, batch, jax.random.key_data(key))
        if (self.traces, self._compilations.count) != before:
            self._check_new_shape(state, batch, key)
        return result

    def lower(self, state: PyTree, batch: PyTree, key: jax.Array, platform: str | None = None) -> Any:
        """Lower the step for these arguments without compiling it.

        platform: "tpu", "cuda" or "cpu" (default: that of the devices). The arguments may be `jax.ShapeDtypeStruct`s;
        the first axis of the batch is that of the devices.
        """
        key_data = jax.eval_shape(jax.random.key_data, key)
        platforms = None if platform is None else (platform,)
        return jax.jit(self._call).trace(state, batch, key_data).lower(lowering_platforms=platforms)

    def _check_new_shape(self, state: PyTree, batch: PyTree, key: jax.Array) -> None:
        """Record the shapes of a batch after a compilation. Raises RecompilationError if they are recorded already."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        inputs = _describe_arrays({"state": state, "batch": batch, "key": key})
        if shapes in self._known_inputs:
            raise _recompilation_error(batch, format_changes(self._known_inputs[shapes], inputs))
        self._known_inputs[shapes] = inputs


def use_cpu_cores(batch_size: int, *, accumulate: int = 1) -> None:
    """Make each CPU core a JAX device, as many as divide the batch into parts that `accumulate` divides.

    Must be called before JAX initializes its backends. Has no effect on accelerators, or if the number of CPU devices
    is set by $JAX_NUM_CPU_DEVICES or in $XLA_FLAGS.

    XLA:CPU leaves cores idle in much of a step, data parallelism does not: a step of the quickstart on two cores takes
    0.69 s with two devices, 0.89 s with one.
    """
    configured = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if configured > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [n for n in range(1, cores + 1) if batch_size % (n * max(1, accumulate)) == 0]
    jax.config.update("jax_num_cpu_devices", max(counts, default=1))


def place_batch(batch: Batch, devices: Sequence[jax.Device]) -> Batch:
    """Split this process's part of a batch over its n devices: (B, ...) -> (n, B / n, ...).

    Raises ConfigError if n does not divide B.
    """
    count, size = len(devices), len(batch.valid)
    check_divisible(size, count)
    shares = jax.tree.map(lambda array: array.reshape(count, size // count, *array.shape[1:]), batch)
    placed: Batch = shard(shares, devices)
    return placed


def check_divisible(batch_size: int, devices: int, *, accumulate: int = 1) -> None:
    """Raise ConfigError unless `devices` divides the batch, and `accumulate` each device's part of it."""
    if batch_size % devices:
        raise ConfigError(
            f"train.batch_size: {batch_size} images do not divide over {devices} devices; give a multiple of {devices},"
            f" or use fewer devices (CUDA_VISIBLE_DEVICES)"
        )
    per_device = batch_size // devices
    if per_device % accumulate:
        raise ConfigError(
            f"train.accumulate={accumulate} does not divide the {per_device} images of each device"
            f" (train.batch_size={batch_size} on {devices} devices); give a divisor of {per_device}"
        )


def _describe_arrays(tree: PyTree) -> dict[str, str]:
    """Describe dtype, shape and sharding of each array, by path. Works for donated arrays, too."""

    def describe(leaf: Any) -> str:
        weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
        return f"{leaf.dtype}{list(leaf.shape)}{weak} on {getattr(leaf, 'sharding', 'the host')}"

    return {path: describe(leaf) for path, leaf in leaves_by_path(tree).items()}


def _recompilation_error(batch: PyTree, changes: list[str]) -> RecompilationError:
    shape = jax.tree.leaves(batch)[0].shape
    listed = format_list(changes, _MAX_LISTED) or "none; a cache or a setting of JAX has changed"
    return RecompilationError(
        f"the train step was compiled a second time for batches of shape {shape} (devices first). Each compilation"
        " takes as long as the first, so the run stops. This is a bug in the program, not in the data or the settings."
        f" Changed inputs: {listed}"
    )

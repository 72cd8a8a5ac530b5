"""Data parallelizm: the only file that knows `pmap`.

The state is not replicated by hand: it enters with `in_axes=None` and leaves with `out_axes=None`, one logical value
that every device holds. It must enter as NumPy or replicated arrays, because it is donated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.errors import ConfigError, RecompilationError
from mrcnn_jax.runtime.compile_counter import get_counter
from mrcnn_jax.structures import Batch

AXIS_NAME = "devices"
_SHOWN = 4  # changes in a message

PyTree = Any
StepFunction = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]


class CompiledTrainStep:
    """A train step over all devices: `state, metrics = step(state, batch, key)`.

    `batch` comes from `place_batch`; `state` is consumed. `traces` counts how often the function was traced, which is
    once for each shape of a batch. A trace or a compilation beyond that raises RecompilationError.
    """

    def __init__(self, step: StepFunction, devices: Sequence[jax.Device] | None = None):
        """`step(state, batch, key)` sees one device's share and may reduce over the axis "devices".

        `devices` are those of this process (default: all of them); where it is one of several, all of them must be.
        """
        self.traces = 0
        self._compilations = get_counter()
        self._first: dict[PyTree, dict[str, str]] = {}  # shapes of a batch -> what went in when they were new

        def counted(state: PyTree, batch: PyTree, key_data: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
            self.traces += 1
            return step(state, batch, jax.random.wrap_key_data(key_data))

        self._call = jax.pmap(
            counted,
            axis_name=AXIS_NAME,
            in_axes=(None, 0, None),
            out_axes=None,  # type: ignore[arg-type]
            donate_argnums=(0,),
            # With some devices named, pmap would reduce over them alone, even where there are several processes.
            devices=devices if jax.process_count() == 1 else None,
        )

    def __call__(self, state: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        before = self.traces, self._compilations.count
        # Where there are several processes, pmap would send a key, but not its data, through the host.
        result = self._call(state, batch, jax.random.key_data(key))
        # Two numbers to compare; what went in is looked at only when there was something to compile.
        if (self.traces, self._compilations.count) != before:
            self._check_new(state, batch, key)
        return result

    def lower(self, state: PyTree, batch: PyTree, key: jax.Array, platform: str | None = None) -> Any:
        """The program for these arguments, not compiled: for the devices, or another platform ("tpu", "cuda", "cpu").

        Shapes and types will do as arguments; those of a batch begin with the devices.
        """
        key_data = jax.eval_shape(jax.random.key_data, key)
        platforms = None if platform is None else (platform,)
        return jax.jit(self._call).trace(state, batch, key_data).lower(lowering_platforms=platforms)

    def _check_new(self, state: PyTree, batch: PyTree, key: jax.Array) -> None:
        """Remember the shape of a batch that was compiled for; raise RecompilationError if it is known already."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        inputs = _describe({"state": state, "batch": batch, "key": key})
        if shapes in self._first:
            first = self._first[shapes]
            changes = [
                f"{n} was {first.get(n, 'absent')}, is {now}" for n, now in inputs.items() if first.get(n) != now
            ]
            raise _recompiled(batch, changes)
        self._first[shapes] = inputs


def use_cpu_cores(batch_size: int, *, parts: int = 1) -> None:
    """Make every CPU core a device, as many as divide the batch and leave each a share that divides into `parts`.

    Call it before JAX starts its backends.

    XLA:CPU leaves cores idle in much of a step, data parallelizm does not: a step of the quickstart on two cores takes
    0.69 s with two devices, 0.89 s with one. $JAX_NUM_CPU_DEVICES, or a count in $XLA_FLAGS, comes first. Accelerators
    are not affected.
    """
    chosen = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if chosen > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [n for n in range(1, cores + 1) if batch_size % (n * max(1, parts)) == 0]
    jax.config.update("jax_num_cpu_devices", max(counts, default=1))


def compile_train_step(step: StepFunction, devices: Sequence[jax.Device] | None = None) -> CompiledTrainStep:
    """Spread `step` (made with `axis_name=AXIS_NAME`) over `devices`; compiled at the first batch of each shape."""
    return CompiledTrainStep(step, devices)


def place_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """Cut this process's part of a batch into one share a device, (B, ...) -> (n, B / n, ...), and send the shares.

    Raises ConfigError if n does not divide B.
    """
    devices = jax.local_devices() if devices is None else devices
    count, size = len(devices), len(batch.valid)
    check_divisible(size, count)
    shares = jax.tree.map(lambda array: array.reshape(count, size // count, *array.shape[1:]), batch)
    return jax.device_put(shares, NamedSharding(_mesh(devices), PartitionSpec(AXIS_NAME)))


def check_divisible(images: int, devices: int, *, parts: int = 1) -> None:
    """Raise ConfigError if a batch cannot be cut into equal shares, and each share into equal `parts`."""
    if images % devices:
        raise ConfigError(
            f"train.batch_size: {images} images do not divide over {devices} devices; give a multiple of {devices},"
            f" or use fewer devices (CUDA_VISIBLE_DEVICES)"
        )
    share = images // devices
    if share % parts:
        raise ConfigError(
            f"train.accumulate={parts}: train.batch_size={images} images over {devices} devices give each a share of"
            f" {share}, which does not divide into {parts} parts; give a divisor of {share}"
        )


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Copy a tree (state, key) to every device of this process, as `CompiledTrainStep` wants it."""
    devices = jax.local_devices() if devices is None else devices
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    # The name is pmap's own: a state on any other mesh would make its first step a second compiled program.
    return Mesh(np.asarray(devices), (AXIS_NAME,))


def _describe(tree: PyTree) -> dict[str, str]:
    """Shape, type and place of each array, by its path. Arrays that were donated still know theirs."""

    def one(leaf: Any) -> str:
        weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
        return f"{leaf.dtype}{list(leaf.shape)}{weak} on {getattr(leaf, 'sharding', 'the host')}"

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): one(leaf) for path, leaf in leaves}


def _recompiled(batch: PyTree, changes: list[str]) -> RecompilationError:
    shape = jax.tree.leaves(batch)[0].shape
    shown = "; ".join(changes[:_SHOWN]) + (f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    return RecompilationError(
        f"the train step was compiled a second time for batches of shape {shape} (devices first). Every such time"
        " takes as long as the first, so the run stops. This is a fault of the program, not of the data or the"
        " settings. What has changed since: " + (shown or "nothing that goes in; JAX's caches or settings have")
    )

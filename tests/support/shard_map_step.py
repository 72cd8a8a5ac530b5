"""The training step as `jit(shard_map)`, compared with `CompiledTrainStep` on the linear model.

`training/test_shard_map.py` calls `compare_steps`, and runs this file in each of several processes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.cli import common
from mrcnn_jax.distributed import cluster
from mrcnn_jax.inference.devices import AXIS_NAME, replicate
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import parallel
from support import linear

STEPS = 4  # the third is skipped, because its batch has a bad image


def pmap(
    function: Callable[..., Any],
    *,
    axis_name: str,
    in_axes: Sequence[int | None],
    out_axes: None,
    donate_argnums: Sequence[int],
    devices: Sequence[jax.Device] | None,
) -> Callable[..., Any]:
    """`jax.pmap` as `CompiledTrainStep` calls it, by `jit(shard_map)`. With several processes, inputs are global."""

    def on_device(*arguments: Any) -> Any:
        parts = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return function(*parts)

    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(axis_name) for axis in in_axes)
    mesh = Mesh(np.asarray(devices or jax.devices()), (axis_name,))
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(mapped, donate_argnums=donate_argnums)


def compare_steps() -> None:
    """Assert that both steps have the same states and metrics, to the bit, and keep the contracts of the class."""
    devices = jax.local_devices()
    key = jax.random.key(0)
    step = linear.make_step(max_skipped=1)
    by_pmap = parallel.CompiledTrainStep(step, devices)
    with mock.patch.object(jax, "pmap", pmap):
        by_shard_map = parallel.CompiledTrainStep(step, devices)
    state, key_copies = replicate((linear.start(), key), devices)
    other_state, global_key = place_globally((linear.start(), key), PartitionSpec())
    for batch in itertools.islice(linear.batches(poisoned=[2]), STEPS):
        share = part_of_process(batch)
        donated = state, other_state
        state, metrics = by_pmap(state, parallel.place_batch(share, devices), key_copies)
        parts = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), share)
        other_state, other_metrics = by_shard_map(
            other_state, place_globally(parts, PartitionSpec(AXIS_NAME)), global_key
        )
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
        assert_equal_bits((state, metrics), (other_state, other_metrics))
    assert by_pmap.traces == by_shard_map.traces == 2  # batches have two shapes
    assert int(state.skipped) == 1
    assert int(state.step) == STEPS
    assert float(state.params["weight"]) != 1


def part_of_process(batch: Batch) -> Batch:
    """Return the images of a global batch that this process loads."""
    count, index = jax.process_count(), jax.process_index()
    size = len(batch.valid) // count
    return jax.tree.map(lambda leaf: leaf[index * size : (index + 1) * size], batch)


def place_globally(tree: Any, spec: PartitionSpec) -> Any:
    """Place arrays on the devices of all processes; a process gives its part of them."""
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS_NAME,)), spec)
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), tree)


def assert_equal_bits(ours: Any, other: Any) -> None:
    """Compare the local copies of replicated arrays, on every device."""

    def check(a: jax.Array, b: jax.Array) -> None:
        copies = [np.asarray(shard.data) for shard in (*a.addressable_shards, *b.addressable_shards)]
        assert len({(copy.dtype, copy.shape, copy.tobytes()) for copy in copies}) == 1, copies

    jax.tree.map(check, ours, other)


def main() -> None:
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    common.initialize_distributed(parser.parse_args())
    compare_steps()
    print(f"process {jax.process_index()}: equal over {jax.device_count()} devices", flush=True)


if __name__ == "__main__":
    sys.exit(common.run(main))

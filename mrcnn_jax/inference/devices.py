"""Batches sharded over the devices of this process.

Each device computes its images without communication, so results do not depend on the number of devices, except for
the rounding of a program compiled for another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "devices"


def largest_divisor(devices: Sequence[jax.Device], images: int) -> tuple[jax.Device, ...]:
    """Return the most of `devices`, from the first on, that divide a batch of `images` evenly."""
    return tuple(devices[: max(n for n in range(1, len(devices) + 1) if images % n == 0)])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy `tree` to each device, as `shard_over_batch` takes its variables."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def shard_over_batch(function: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Compile `function(variables, *batch)` with the leading axis of `batch` and of the result sharded over `devices`.

    The compiled function takes the arrays of the batch from the host.
    """
    mesh, batch_spec = _mesh(devices), PartitionSpec(_AXIS)

    def on_shard(variables: Any, batch: tuple[Any, ...]) -> Any:
        return function(variables, *batch)

    # check_vma would need every loop in the model to declare what varies over the devices.
    program = jax.jit(
        jax.shard_map(
            on_shard, mesh=mesh, in_specs=(PartitionSpec(), batch_spec), out_specs=batch_spec, check_vma=False
        )
    )

    def on_all(variables: Any, *batch: Any) -> Any:
        return program(variables, jax.device_put(batch, NamedSharding(mesh, batch_spec)))

    return on_all


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (_AXIS,))

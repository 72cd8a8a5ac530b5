"""Batches sharded over the devices of this process, for training and inference.

In inference each device computes its images without communication, so results do not depend on the number of devices,
except for the rounding of a program compiled for another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Of the mesh, and of `pmap`: a state on a mesh with another name would cause a second compilation.
AXIS_NAME = "devices"


def largest_divisor(devices: Sequence[jax.Device], images: int) -> tuple[jax.Device, ...]:
    """Return the most of `devices`, from the first on, that divide a batch of `images` evenly."""
    return tuple(devices[: max(n for n in range(1, len(devices) + 1) if images % n == 0)])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy each array of `tree` to all `devices`."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def shard(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Divide each array of `tree` over `devices` along its first axis."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec(AXIS_NAME)))


def shard_over_batch(function: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Compile `function(variables, *batch)` with the leading axis of `batch` and of the result sharded over `devices`.

    The compiled function takes `variables` from `replicate`, and the arrays of the batch from the host.
    """

    def on_shard(variables: Any, batch: tuple[Any, ...]) -> Any:
        return function(variables, *batch)

    specs = PartitionSpec(), PartitionSpec(AXIS_NAME)
    # check_vma would need every loop in the model to declare what varies over the devices.
    program = jax.jit(jax.shard_map(on_shard, mesh=_mesh(devices), in_specs=specs, out_specs=specs[1], check_vma=False))
    return lambda variables, *batch: program(variables, shard(batch, devices))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (AXIS_NAME,))

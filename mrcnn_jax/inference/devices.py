"""Work on a batch, shared out over devices of this process.

Each device does with its images what it would do alone, and nothing passes between them: results do not depend on how
many there are, but for the rounding of a program for another number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "devices"


def largest_divisor(devices: Sequence[jax.Device], images: int) -> tuple[jax.Device, ...]:
    """The first of `devices`, as many as can take equal shares of a batch of `images`."""
    return tuple(devices[: max(n for n in range(1, len(devices) + 1) if images % n == 0)])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy on each device, as the variables that `shard_over_batch` wants."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def shard_over_batch(function: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """`function(variables, *batch)`, compiled; each device sees an equal share of every array of the batch.

    The arrays come from the host. What the shares give is joined along the first axis.
    """
    mesh, shares = _mesh(devices), PartitionSpec(_AXIS)

    def on_a_share(variables: Any, batch: tuple[Any, ...]) -> Any:
        return function(variables, *batch)

    # Without the check of what varies over devices: it would want every loop in the model to say so.
    program = jax.jit(
        jax.shard_map(on_a_share, mesh=mesh, in_specs=(PartitionSpec(), shares), out_specs=shares, check_vma=False)
    )

    def on_all(variables: Any, *batch: Any) -> Any:
        return program(variables, jax.device_put(batch, NamedSharding(mesh, shares)))

    return on_all


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (_AXIS,))

"""Losses of a batch and their gradients, summed over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mrcnn_jax import losses
from mrcnn_jax.config import Config
from mrcnn_jax.models.rcnn import MaskRCNN
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import Metrics, forward_losses


class Gradients(NamedTuple):
    """What a batch says about the parameters; the same on every device."""

    gradients: Any  # like the parameters
    losses: Metrics  # the mean of each loss over the global batch
    counts: Metrics
    statistics: dict[str, Any]  # the collections of running statistics after this batch


GradientFunction = Callable[[Any, dict[str, Any], Batch, jax.Array], Gradients]


def make_gradients(model: MaskRCNN, config: Config, axis_name: str | None) -> GradientFunction:
    """`gradients(params, model_state, batch, keys)`; keys: (B,), one for each image of this device's share."""

    def gradients(params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array) -> Gradients:
        def loss(params: Any) -> Any:
            variables = {"params": params, **model_state}
            sums, (statistics, counts) = forward_losses(model, config.model, variables, batch, keys)
            parts = {name: mean(part, axis_name) for name, part in sums.items()}
            return sum(parts.values()), (parts, counts, statistics)

        found, (parts, counts, statistics) = jax.grad(loss, has_aux=True)(params)
        found, parts, counts = sum_over_devices((found, parts, counts), axis_name)
        return Gradients(found, parts, counts, mean_over_devices(statistics, axis_name))

    return gradients


def mean(part: losses.Loss, axis_name: str | None) -> jax.Array:
    """This device's share of the global mean: its own sum over everybody's count."""
    total, count = part
    count = sum_over_devices(count, axis_name)
    return total / jax.numpy.maximum(count, 1).astype(total.dtype)


def sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The sum over all devices of the axis; `tree` itself without an axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean over all devices of the axis; `tree` itself without an axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

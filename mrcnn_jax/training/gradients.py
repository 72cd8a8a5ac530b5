"""Losses of a batch and their gradients, summed over devices and over the parts that a device's share is cut into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax import losses
from mrcnn_jax.config import Config
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import Metrics, draw_rois, forward_losses


class Gradients(NamedTuple):
    """What a batch says about the parameters; the same on every device."""

    gradients: Any  # like the parameters
    losses: Metrics  # the mean of each loss over the global batch
    counts: Metrics
    statistics: dict[str, Any]  # the collections of running statistics after this batch


GradientFunction = Callable[[Any, dict[str, Any], Batch, jax.Array], Gradients]


def make_gradients(model: MaskRCNN, config: Config, axis_name: str | None) -> GradientFunction:
    """`gradients(params, model_state, batch, keys)`; keys: (B,), one for each image of this device's share.

    With `config.train.accumulate` above 1 the share is worked on in that many parts, see `_in_parts`.
    """
    if config.train.accumulate > 1:
        return _in_parts(model, config, axis_name)

    def gradients(params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array) -> Gradients:
        def loss(params: Any) -> Any:
            variables = {"params": params, **model_state}
            sums, (statistics, counts) = forward_losses(model, config.model, variables, batch, keys)
            totals = sum_over_devices({name: count for name, (_, count) in sums.items()}, axis_name)
            parts = means(sums, totals)
            return sum(parts.values()), (parts, counts, statistics)

        found, (parts, counts, statistics) = jax.grad(loss, has_aux=True)(params)
        found, parts, counts = sum_over_devices((found, parts, counts), axis_name)
        return Gradients(found, parts, counts, mean_over_devices(statistics, axis_name))

    return gradients


def _in_parts(model: MaskRCNN, config: Config, axis_name: str | None) -> GradientFunction:
    """The same gradients, from one part of the share after the other: where parts are a loop (see `_loop`) only one
    part's activations are in memory.

    A loss is a sum over a count of the whole batch, and counts depend on the proposals. So a first pass only draws the
    RoIs and counts (without heads and gradients); a second one looks at the same RoIs with the counts known, and its
    gradients add up to those of the batch. Batch norm in training is the exception: its statistics are of a part (with
    `sync_bn` of that part on all devices), as if the batch were as small; running statistics go from part to part.
    """

    def gradients(params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array) -> Gradients:
        variables = {"params": params, **model_state}

        def draw(carry: None, part: Any) -> Any:
            return carry, draw_rois(model, config.model, variables, *part)

        shares = _cut((batch, keys), config.train.accumulate)
        _, (rois, counted) = _loop(draw, None, shares)
        totals = sum_over_devices(jax.tree.map(lambda count: jnp.sum(count, axis=0), counted), axis_name)

        def learn(carry: Any, part: Any) -> Any:
            (batch, keys), rois = part
            gradients, parts, statistics = carry

            def loss(params: Any) -> Any:
                before = {**variables, **statistics, "params": params}
                sums, (after, counts) = forward_losses(model, config.model, before, batch, keys, rois)
                parts = means(sums, totals)
                return sum(parts.values()), (parts, after, counts)

            found, (more, statistics, counts) = jax.grad(loss, has_aux=True)(params)
            gradients, parts = jax.tree.map(jnp.add, (gradients, parts), (found, more))
            return (gradients, parts, statistics), counts

        nothing = jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros(()) for name in totals}
        statistics = {name: tree for name, tree in model_state.items() if name != "frozen"}
        (found, parts, statistics), counts = _loop(learn, (*nothing, statistics), (shares, rois))
        counts = jax.tree.map(lambda count: jnp.sum(count, axis=0), counts)
        found, parts, counts = sum_over_devices((found, parts, counts), axis_name)
        return Gradients(found, parts, counts, mean_over_devices(statistics, axis_name))

    return gradients


def _cut(tree: Any, parts: int) -> Any:
    """(B, ...) -> (parts, B / parts, ...)."""
    return jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), tree)


def _loop(body: Callable[[Any, Any], Any], carry: Any, parts: Any) -> Any:
    """`lax.scan`; on CPU written out, because there convolutions in the body of a loop are many times slower.

    Written out, XLA:CPU mixes the parts, and no memory is spared (benchmarks/RESULTS.md).
    """
    scan = functools.partial(jax.lax.scan, body)
    return jax.lax.platform_dependent(carry, parts, cpu=functools.partial(scan, unroll=True), default=scan)


def means(sums: dict[str, losses.Loss], totals: Metrics) -> Metrics:
    """This share of the global means: its own sums over everybody's counts."""
    return {name: total / jnp.maximum(totals[name], 1).astype(total.dtype) for name, (total, _) in sums.items()}


def sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The sum over all devices of the axis; `tree` itself without an axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean over all devices of the axis; `tree` itself without an axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

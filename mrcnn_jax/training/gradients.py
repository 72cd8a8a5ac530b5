"""Losses of a batch and their gradients, reduced over devices, with optional gradient accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.config import Config
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import LossDict, Metrics, forward_losses, sample_batch_rois


class LossesAndGradients(NamedTuple):
    """Losses of the global batch and their gradients; the same on every device."""

    gradients: Any  # like the parameters
    losses: Metrics  # the mean of each loss over the global batch
    counts: Metrics
    statistics: dict[str, Any]  # the collections of running statistics after this batch


GradientFunction = Callable[[Any, dict[str, Any], Batch, jax.Array], LossesAndGradients]


def make_gradient_function(model: MaskRCNN, config: Config, axis_name: str | None) -> GradientFunction:
    """Return `compute_gradients(params, model_state, batch, keys) -> LossesAndGradients`.

    `batch` is the part of this device, keys has one PRNG key per image, (B,). With `axis_name`, results are reduced
    over that `pmap` axis. With `config.train.accumulate` above 1, the batch is processed in that many micro-batches.
    """
    if config.train.accumulate > 1:
        return _make_accumulating_function(model, config, axis_name)

    def compute_gradients(
        params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array
    ) -> LossesAndGradients:
        def total_loss(params: Any) -> Any:
            variables = {"params": params, **model_state}
            loss_dict, (statistics, counts) = forward_losses(model, variables, batch, keys)
            totals = sum_over_devices({name: count for name, (_, count) in loss_dict.items()}, axis_name)
            means = normalize_losses(loss_dict, totals)
            return sum(means.values()), (means, counts, statistics)

        gradients, (means, counts, statistics) = jax.grad(total_loss, has_aux=True)(params)
        gradients, means, counts = sum_over_devices((gradients, means, counts), axis_name)
        return LossesAndGradients(gradients, means, counts, mean_over_devices(statistics, axis_name))

    return compute_gradients


def _make_accumulating_function(model: MaskRCNN, config: Config, axis_name: str | None) -> GradientFunction:
    """Return a function that computes the same gradients with the activations of one micro-batch in memory at a time.

    A loss is divided by a count over the whole batch, which depends on the sampled RoIs. A first pass therefore samples
    the RoIs and counts, without heads and gradients; a second pass reuses these RoIs with the counts known, and its
    gradients add up to those of the batch.

    Batch norm in training mode is the exception. It normalizes by the statistics of a micro-batch (with "sync_bn", of
    the micro-batch on all devices), and running statistics are updated once per micro-batch.
    """

    def compute_gradients(
        params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array
    ) -> LossesAndGradients:
        variables = {"params": params, **model_state}

        def sample(carry: None, micro_batch: Any) -> Any:
            return carry, sample_batch_rois(model, variables, *micro_batch)

        micro_batches = _split((batch, keys), config.train.accumulate)
        _, (rois, loss_counts) = _scan(sample, None, micro_batches)
        totals = sum_over_devices(jax.tree.map(lambda count: jnp.sum(count, axis=0), loss_counts), axis_name)

        def accumulate(carry: Any, inputs: Any) -> Any:
            (batch, keys), rois = inputs
            gradients, means, statistics = carry

            def total_loss(params: Any) -> Any:
                current = {**variables, **statistics, "params": params}
                loss_dict, (updated, counts) = forward_losses(model, current, batch, keys, rois)
                means = normalize_losses(loss_dict, totals)
                return sum(means.values()), (means, updated, counts)

            new_gradients, (new_means, statistics, counts) = jax.grad(total_loss, has_aux=True)(params)
            gradients, means = jax.tree.map(jnp.add, (gradients, means), (new_gradients, new_means))
            return (gradients, means, statistics), counts

        zeros = jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros(()) for name in totals}
        statistics = {name: tree for name, tree in model_state.items() if name != "frozen"}
        (gradients, means, statistics), counts = _scan(accumulate, (*zeros, statistics), (micro_batches, rois))
        counts = jax.tree.map(lambda count: jnp.sum(count, axis=0), counts)
        gradients, means, counts = sum_over_devices((gradients, means, counts), axis_name)
        return LossesAndGradients(gradients, means, counts, mean_over_devices(statistics, axis_name))

    return compute_gradients


def _split(tree: Any, count: int) -> Any:
    """Split a batch into micro-batches: (B, ...) -> (count, B / count, ...)."""
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)


def _scan(body: Callable[[Any, Any], Any], carry: Any, inputs: Any) -> Any:
    """Run `lax.scan`, unrolled on CPU, where convolutions inside of a loop are many times slower.

    XLA:CPU interleaves the unrolled micro-batches, so accumulation saves no memory there (benchmarks/RESULTS.md).
    """
    scan = functools.partial(jax.lax.scan, body)
    return jax.lax.platform_dependent(carry, inputs, cpu=functools.partial(scan, unroll=True), default=scan)


def normalize_losses(loss_dict: LossDict, totals: Metrics) -> Metrics:
    """Divide each loss sum of this device by the count over all devices."""
    return {name: total / jnp.maximum(totals[name], 1).astype(total.dtype) for name, (total, _) in loss_dict.items()}


def sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Sum over all devices of the axis; return `tree` itself if `axis_name` is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Average over all devices of the axis; return `tree` itself if `axis_name` is None."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

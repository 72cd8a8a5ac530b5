"""Maximum over the samples or cells of a bin, and its gradient, which goes to the first of equal values.

Iteration k of the loop takes the k-th sample of every bin, from up to four cells, and updates the largest value of each
channel and the index of its sample. The gradient repeats the loop and adds to the cells of the winning samples. On CPU
each RoI has a loop of its own, of the length that it needs, with all data in the cache; elsewhere all RoIs share one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi.axis import AxisSamples
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs
from mrcnn_jax.ops.roi.vmap_rule import flatten_batch

Axes = Callable[[RoIs, FeatureMaps], tuple[AxisSamples, AxisSamples]]


class RoISamples(NamedTuple):
    """Samples of R RoIs."""

    start: jax.Array  # (R,) int32, index of the first cell of the RoI's map among the cells of all maps
    y: AxisSamples
    x: AxisSamples


def make_max_pool(axes: Axes, *, samples: int) -> Callable[[FeatureMaps, RoIs], jax.Array]:
    """Differentiable max pooling of RoIs in a batch: maps (B, H_l, W_l, Ch) of each level and R RoIs -> (R, h, w, Ch).

    Args:
        axes: function that returns the samples of RoIs along y and x.
        samples: number of bilinear samples in a bin; samples outside of the map are 0. 0: the samples are whole cells,
            whose number differs between bins, and a bin without any is 0.
    """
    whole_cells = samples == 0

    @functools.partial(flatten_batch, per_roi=True)
    def run_forward(features: FeatureMaps, rois: RoIs) -> tuple[jax.Array, jax.Array]:
        max_samples = max(f.shape[1] * f.shape[2] for f in features) if whole_cells else samples
        index_type = jnp.uint16 if max_samples < 2**16 else jnp.int32  # small: it is stored for the gradient
        return forward(features, _roi_samples(features, rois, axes), whole_cells, index_type)

    @functools.partial(flatten_batch, per_roi=False)
    def run_backward(like: FeatureMaps, rois: RoIs, winner: jax.Array, cotangent: jax.Array) -> FeatureMaps:
        return backward(like, _roi_samples(like, rois, axes), winner, cotangent, whole_cells)

    @jax.custom_vjp
    def pool(features: FeatureMaps, rois: RoIs) -> jax.Array:
        return run_forward(features, rois)[0]

    def pool_fwd(features: FeatureMaps, rois: RoIs) -> tuple[jax.Array, Any]:
        value, winner = run_forward(features, rois)
        # The gradient needs only shapes and dtypes of the maps; arrays without channels store them.
        return value, (tuple(f[..., :0] for f in features), rois, winner)

    def pool_bwd(residuals: Any, cotangent: jax.Array) -> tuple[FeatureMaps, None]:
        return run_backward(*residuals, cotangent), None

    pool.defvjp(pool_fwd, pool_bwd)
    return pool


def forward(features: FeatureMaps, rois: RoISamples, whole_cells: bool, index_type: Any) -> tuple[jax.Array, jax.Array]:
    """Largest values (R, h, w, Ch) in the maps' dtype, and the index of their sample, from 1; 0 if there is none."""
    channels = features[0].shape[-1]
    flat = jnp.concatenate([f.reshape(-1, channels) for f in features])
    pool = functools.partial(_largest, whole_cells=whole_cells, index_type=index_type)

    def one_by_one(flat: jax.Array, rois: RoISamples) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda roi: jax.tree.map(_drop_axis, pool(flat, jax.tree.map(_add_axis, roi))), rois)

    return jax.lax.platform_dependent(flat, rois, cpu=one_by_one, default=pool)


def backward(
    like: FeatureMaps, rois: RoISamples, winner: jax.Array, cotangent: jax.Array, whole_cells: bool
) -> FeatureMaps:
    """Transpose of `forward` at its winners. `like`: maps of the same shapes, except channels, and dtypes."""
    channels = cotangent.shape[-1]
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in like]
    scatter = functools.partial(_scatter, whole_cells=whole_cells)

    def one_by_one(total: jax.Array, *arrays: Any) -> jax.Array:
        def add(total: jax.Array, roi: Any) -> tuple[jax.Array, None]:
            return scatter(total, *jax.tree.map(_add_axis, roi)), None

        return jax.lax.scan(add, total, arrays)[0]

    total = jnp.zeros((sum(sizes), channels), jnp.float32)
    total = jax.lax.platform_dependent(total, rois, winner, cotangent, cpu=one_by_one, default=scatter)
    parts = jnp.split(total, np.cumsum(sizes)[:-1].tolist())
    return tuple(p.reshape((*f.shape[:-1], channels)).astype(f.dtype) for p, f in zip(parts, like, strict=True))


def _largest(flat: jax.Array, rois: RoISamples, *, whole_cells: bool, index_type: Any) -> tuple[jax.Array, jax.Array]:
    shape = (rois.start.shape[0], rois.y.first.shape[1], rois.x.first.shape[1], flat.shape[-1])
    steps, samples = _sample_loop(rois, whole_cells)

    def update(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, winner = state
        value = jnp.zeros(shape, jnp.float32)
        taps, exists = samples(k)
        for cells, weights in taps:
            part = flat.at[cells].get(mode="promise_in_bounds").astype(jnp.float32)
            value = part if whole_cells else value + part * weights[..., None]
        value = jnp.where(exists[..., None], value, -jnp.inf)
        winner = jnp.where(value > best, (k + 1).astype(index_type), winner)  # of equal values the first wins
        return jnp.maximum(best, value), winner

    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, index_type)
    best, winner = jax.lax.fori_loop(0, steps, update, start)
    not_empty = (rois.y.number > 0)[:, :, None, None] & (rois.x.number > 0)[:, None, :, None]
    return jnp.where(not_empty, best, 0.0).astype(flat.dtype), winner


def _scatter(
    total: jax.Array, rois: RoISamples, winner: jax.Array, cotangent: jax.Array, *, whole_cells: bool
) -> jax.Array:
    """Add the gradients of winning samples to the cells (N, Ch) float32 of all maps."""
    steps, samples = _sample_loop(rois, whole_cells)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        update = jnp.where(winner == (k + 1).astype(winner.dtype), cotangent.astype(jnp.float32), 0.0)
        for cells, weights in samples(k)[0]:
            part = update if whole_cells else update * weights[..., None]
            total = total.at[cells].add(part, mode="promise_in_bounds")
        return total

    return jax.lax.fori_loop(0, steps, add, total)


Taps = list[tuple[jax.Array, jax.Array]]  # cells (R, h, w) int32 among those of all maps, and their weights float32


def _sample_loop(
    rois: RoISamples, whole_cells: bool
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Taps, jax.Array]]]:
    """Largest number of samples in a bin, and a function from k to the cells of each bin's k-th sample.

    The function also returns whether the bins have a k-th sample. Samples are in row-major order of each RoI's own
    grid, so that thin boxes do not multiply the number of steps.
    """
    counts = [jnp.max(axis.number, axis=1, keepdims=True).astype(jnp.int32) for axis in (rois.y, rois.x)]
    columns = jnp.maximum(counts[1], 1)

    def samples(k: jax.Array) -> tuple[Taps, jax.Array]:
        y_taps, y_exists = _sample(rois.y, k // columns, whole_cells)
        x_taps, x_exists = _sample(rois.x, k % columns, whole_cells)
        start, width = rois.start[:, None, None], rois.x.extent[:, :, None]
        taps = [
            (start + y_cell[:, :, None] * width + x_cell[:, None, :], y_weight[:, :, None] * x_weight[:, None, :])
            for y_cell, y_weight in y_taps
            for x_cell, x_weight in x_taps
        ]
        # Without the barrier XLA would recompute the weights for every channel.
        return jax.lax.optimization_barrier((taps, y_exists[:, :, None] & x_exists[:, None, :]))

    return jnp.max(counts[0] * counts[1]), samples


def _sample(axis: AxisSamples, k: jax.Array, whole_cells: bool) -> tuple[Taps, jax.Array]:
    """Cells (R, bins) and weights of each bin's k-th sample along one axis, and whether the bin has one."""
    sample = k.astype(jnp.float32)
    end = axis.extent.astype(jnp.float32) - 1.0
    position = jnp.clip(axis.first + sample * axis.step, 0.0, end)
    exists = jnp.broadcast_to(sample < axis.number, position.shape)
    weight = ((sample >= axis.begin) & (sample < axis.end)).astype(jnp.float32)
    low = jnp.floor(position)
    if whole_cells:
        return [(low.astype(jnp.int32), weight)], exists
    fraction, high = position - low, jnp.minimum(low + 1.0, end)
    return [(low.astype(jnp.int32), weight * (1.0 - fraction)), (high.astype(jnp.int32), weight * fraction)], exists


def _roi_samples(features: FeatureMaps, rois: RoIs, axes: Axes) -> RoISamples:
    """Samples of the RoIs, with the start of their maps in the concatenation of all levels."""
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in features]
    start = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[rois.levels]
    y, x = axes(rois, features)
    return RoISamples(start + rois.images * y.extent[:, 0] * x.extent[:, 0], y, x)


def _add_axis(leaf: jax.Array) -> jax.Array:
    return leaf[None]


def _drop_axis(leaf: jax.Array) -> jax.Array:
    return leaf[0]

"""The maximum over a bin's samples or cells, and its gradient, which goes to the first of the largest.

A turn of the loop takes the k-th sample of every bin, from up to four cells, and keeps the largest value of each
channel and which sample it was. The gradient walks the same samples and adds to the cells of those that won. On a CPU
each RoI is walked by itself, with as many turns as it needs and everything in the cache; elsewhere all at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi.axis import Axis
from mrcnn_jax.ops.roi.kernels import Maps, RoIs
from mrcnn_jax.ops.roi.vmap_rule import flatten_batch

Axes = Callable[[RoIs, Maps], tuple[Axis, Axis]]


class Rows(NamedTuple):
    """What R RoIs need of themselves."""

    start: jax.Array  # (R,) int32, the first cell of their map among the cells of all maps
    y: Axis
    x: Axis


def make_core(axes: Axes, *, samples: int) -> Callable[[Maps, RoIs], jax.Array]:
    """Pooling of RoIs in a batch of images by the maximum: (B, H_l, W_l, Ch) for each level -> (R, h, w, Ch).

    Args:
        axes: the samples of RoIs along y and x.
        samples: of a bin, if these are bilinear; a sample off the map is 0. 0: a bin's samples are whole cells, each
            bin with its own number of them, and a bin without any is 0.
    """
    whole = samples == 0

    def pool(features: Maps, rois: RoIs) -> tuple[jax.Array, jax.Array]:
        most = max(f.shape[1] * f.shape[2] for f in features) if whole else samples
        index_type = jnp.uint16 if most < 2**16 else jnp.int32  # of the winners, which wait for the gradient
        return forward(features, _rows(features, rois, axes), whole, index_type)

    def spread(like: Maps, rois: RoIs, winner: jax.Array, cotangent: jax.Array) -> Maps:
        return backward(like, _rows(like, rois, axes), winner, cotangent, whole)

    batched_pool, batched_spread = flatten_batch(pool, per_roi=True), flatten_batch(spread, per_roi=False)

    @jax.custom_vjp
    def core(features: Maps, rois: RoIs) -> jax.Array:
        return batched_pool(features, rois)[0]

    def core_forward(features: Maps, rois: RoIs) -> tuple[jax.Array, Any]:
        value, winner = batched_pool(features, rois)
        # The gradient needs the maps' shapes and dtypes only; arrays without channels carry them.
        return value, (tuple(f[..., :0] for f in features), rois, winner)

    def core_backward(residuals: Any, cotangent: jax.Array) -> tuple[Maps, None]:
        return batched_spread(*residuals, cotangent), None

    core.defvjp(core_forward, core_backward)
    return core


def forward(features: Maps, rows: Rows, whole: bool, index_type: Any) -> tuple[jax.Array, jax.Array]:
    """The largest values (R, h, w, Ch) in the maps' dtype, and which sample they are of, counted from 1; 0: of none."""
    channels = features[0].shape[-1]
    flat = jnp.concatenate([f.reshape(-1, channels) for f in features])
    pool = functools.partial(_largest, whole=whole, index_type=index_type)

    def one_by_one(flat: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda row: jax.tree.map(_without, pool(flat, jax.tree.map(_alone, row))), rows)

    return jax.lax.platform_dependent(flat, rows, cpu=one_by_one, default=pool)


def backward(like: Maps, rows: Rows, winner: jax.Array, cotangent: jax.Array, whole: bool) -> Maps:
    """The transpose of `forward` at its winners; of `like`, only shapes (but for the channels) and dtypes are used."""
    channels = cotangent.shape[-1]
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in like]
    spread = functools.partial(_spread, whole=whole)

    def one_by_one(total: jax.Array, *rows: Any) -> jax.Array:
        def add(total: jax.Array, row: Any) -> tuple[jax.Array, None]:
            return spread(total, *jax.tree.map(_alone, row)), None

        return jax.lax.scan(add, total, rows)[0]

    total = jnp.zeros((sum(sizes), channels), jnp.float32)
    total = jax.lax.platform_dependent(total, rows, winner, cotangent, cpu=one_by_one, default=spread)
    parts = jnp.split(total, np.cumsum(sizes)[:-1].tolist())
    return tuple(p.reshape((*f.shape[:-1], channels)).astype(f.dtype) for p, f in zip(parts, like, strict=True))


def _largest(flat: jax.Array, rows: Rows, *, whole: bool, index_type: Any) -> tuple[jax.Array, jax.Array]:
    shape = (rows.start.shape[0], rows.y.first.shape[1], rows.x.first.shape[1], flat.shape[-1])
    turns, samples = _walk(rows, whole)

    def look(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, winner = state
        value = jnp.zeros(shape, jnp.float32)
        taps, exists = samples(k)
        for cells, weights in taps:
            part = flat.at[cells].get(mode="promise_in_bounds").astype(jnp.float32)
            value = part if whole else value + part * weights[..., None]
        value = jnp.where(exists[..., None], value, -jnp.inf)
        winner = jnp.where(value > best, (k + 1).astype(index_type), winner)  # the first of equal ones stays
        return jnp.maximum(best, value), winner

    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, index_type)
    best, winner = jax.lax.fori_loop(0, turns, look, start)
    some = (rows.y.number > 0)[:, :, None, None] & (rows.x.number > 0)[:, None, :, None]
    return jnp.where(some, best, 0.0).astype(flat.dtype), winner


def _spread(total: jax.Array, rows: Rows, winner: jax.Array, cotangent: jax.Array, *, whole: bool) -> jax.Array:
    """Add to the cells (N, Ch) float32 of all maps what the winning samples hand them."""
    turns, samples = _walk(rows, whole)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        update = jnp.where(winner == (k + 1).astype(winner.dtype), cotangent.astype(jnp.float32), 0.0)
        for cells, weights in samples(k)[0]:
            part = update if whole else update * weights[..., None]
            total = total.at[cells].add(part, mode="promise_in_bounds")
        return total

    return jax.lax.fori_loop(0, turns, add, total)


Taps = list[tuple[jax.Array, jax.Array]]  # cells (R, h, w) int32 among those of all maps, and their weights float32


def _walk(rows: Rows, whole: bool) -> tuple[jax.Array, Callable[[jax.Array], tuple[Taps, jax.Array]]]:
    """The most samples in a bin, and a function from k to the cells of each bin's k-th one, and whether there is one.

    Samples come row by row. Each RoI walks its own, so the number of turns is bounded by an area and thin boxes do not
    multiply.
    """
    counts = [jnp.max(axis.number, axis=1, keepdims=True).astype(jnp.int32) for axis in (rows.y, rows.x)]
    columns = jnp.maximum(counts[1], 1)

    def samples(k: jax.Array) -> tuple[Taps, jax.Array]:
        y_taps, y_exists = _sample(rows.y, k // columns, whole)
        x_taps, x_exists = _sample(rows.x, k % columns, whole)
        start, width = rows.start[:, None, None], rows.x.extent[:, :, None]
        taps = [
            (start + y_cell[:, :, None] * width + x_cell[:, None, :], y_weight[:, :, None] * x_weight[:, None, :])
            for y_cell, y_weight in y_taps
            for x_cell, x_weight in x_taps
        ]
        # Without the barrier XLA would compute the weights again for every channel.
        return jax.lax.optimization_barrier((taps, y_exists[:, :, None] & x_exists[:, None, :]))

    return jnp.max(counts[0] * counts[1]), samples


def _sample(axis: Axis, k: jax.Array, whole: bool) -> tuple[Taps, jax.Array]:
    """Along one axis the cells (R, bins) of each bin's k-th sample with their weights, and whether the bin has one."""
    sample = k.astype(jnp.float32)
    end = axis.extent.astype(jnp.float32) - 1.0
    position = jnp.clip(axis.first + sample * axis.step, 0.0, end)
    exists = jnp.broadcast_to(sample < axis.number, position.shape)
    weight = ((sample >= axis.begin) & (sample < axis.end)).astype(jnp.float32)
    low = jnp.floor(position)
    if whole:
        return [(low.astype(jnp.int32), weight)], exists
    fraction, high = position - low, jnp.minimum(low + 1.0, end)
    return [(low.astype(jnp.int32), weight * (1.0 - fraction)), (high.astype(jnp.int32), weight * fraction)], exists


def _rows(features: Maps, rois: RoIs, axes: Axes) -> Rows:
    """Samples of the RoIs, and where their maps begin if all are laid out in one array, level after level."""
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in features]
    start = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[rois.levels]
    y, x = axes(rois, features)
    return Rows(start + rois.images * y.extent[:, 0] * x.extent[:, 0], y, x)


def _alone(leaf: jax.Array) -> jax.Array:
    return leaf[None]


def _without(leaf: jax.Array) -> jax.Array:
    return leaf[0]

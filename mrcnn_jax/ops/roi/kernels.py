"""ROIAlign and its gradient as loops over cells: one formulation for CPUs, one for GPUs.

All functions take RoIs of a batch of images: maps (B, H_l, W_l, Ch) of each level, and R RoIs with the index of their
image and level. Sums are taken in float32; results have the maps' dtype.

CPU: a loop over RoIs, each with as many steps as it needs and all data in the cache. The forward pass adds a few
neighboring cells to all bins at a time; the gradient distributes bins over square tiles by two small matrix products.
XLA's scatter would be several times slower.

GPU: each step takes a square of cells of every bin of every RoI, by gathers from, or one scatter to, all levels
concatenated in one array. Each step also reads and writes the sums of all bins, or reads all their gradients, which
costs more than the cells; hence the squares.

TPU: products of whole windows, see `window_products`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi import window_products
from mrcnn_jax.ops.roi.axis import AxisSamples, cell_range, cell_weights, roi_range
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs

NEIGHBORS = 4  # cells of a row that one step of the forward pass on CPU adds
TILE = 16  # side of the tiles of the gradient on CPU, see benchmarks/RESULTS.md
SQUARE = 4  # side of the squares of cells on GPUs: most bins have no more rows and columns


def forward(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples) -> jax.Array:
    """Pooled features (R, h, w, Ch) from maps and the samples along both axes."""
    return jax.lax.platform_dependent(
        features, rois, y, x, cpu=_forward_cpu, tpu=window_products.forward, default=_forward_wide
    )


def backward(like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array) -> FeatureMaps:
    """Transpose of `forward`. `like`: maps of the same shapes, except channels, and dtypes."""
    return jax.lax.platform_dependent(
        like, rois, y, x, cotangent, cpu=_backward_cpu, tpu=window_products.backward, default=_backward_wide
    )


def _forward_wide(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, side: int = SQUARE) -> jax.Array:
    channels = features[0].shape[-1]
    flat = jnp.concatenate([f.reshape(-1, channels) for f in features])
    steps, squares = _square_loop(features, rois, y, x, side)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        # Without the barrier XLA would recompute the weights for every channel.
        edges = jax.lax.optimization_barrier([squares(k, i) for i in range(side)])
        for ((y_start, y_weights), _), (_, (x_cell, x_weights)) in itertools.product(edges, edges):
            index = y_start[:, :, None] + x_cell[:, None, :]
            weight = y_weights[:, :, None] * x_weights[:, None, :]
            total = total + _take(flat, index) * weight[..., None]
        return total

    shape = (*y.first.shape, x.first.shape[1], channels)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros(shape, jnp.float32)).astype(flat.dtype)


def _backward_wide(
    like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array, side: int = SQUARE
) -> FeatureMaps:
    channels = cotangent.shape[-1]
    sizes = _num_cells(like)
    steps, squares = _square_loop(like, rois, y, x, side)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        edges = jax.vmap(functools.partial(squares, k), out_axes=-1)(jnp.arange(side, dtype=jnp.int32))
        (y_start, y_weights), (x_cell, x_weights) = jax.lax.optimization_barrier(edges)
        index = y_start[:, :, None, :, None] + x_cell[:, None, :, None, :]
        weight = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        index = jnp.where(weight == 0, sum(sizes), index)  # out of bounds, so that the scatter drops it
        update = cotangent[:, :, :, None, None].astype(jnp.float32) * weight[..., None]
        return total.at[index].add(update, mode="drop")

    total = jax.lax.fori_loop(0, steps, add, jnp.zeros((sum(sizes), channels), jnp.float32))
    parts = jnp.split(total, np.cumsum(sizes)[:-1].tolist())
    return tuple(p.reshape((*f.shape[:-1], channels)).astype(f.dtype) for p, f in zip(parts, like, strict=True))


Cells = tuple[jax.Array, jax.Array]  # indices of cells int32, and their weights float32


def _square_loop(
    features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, side: int
) -> tuple[jax.Array, Callable[[jax.Array, jax.Array | int], tuple[Cells, Cells]]]:
    """Largest number of squares in a bin, and a function from (k, i) to the i-th edges of the k-th square of every bin.

    The function returns rows (R, h) and columns (R, w); a row is the index of its first cell in the concatenation of
    all levels. Squares are in row-major order of each RoI's own grid, so that thin boxes do not multiply the number of
    steps.
    """
    start = jnp.asarray(np.cumsum([0, *_num_cells(features)[:-1]]), jnp.int32)[rois.levels]
    start = (start + rois.images * y.extent[:, 0] * x.extent[:, 0])[:, None]
    y_range, x_range = cell_range(y), cell_range(x)
    rows, columns = (-(-_max_cells(*span) // side)[:, None] for span in (y_range, x_range))

    def squares(k: jax.Array, i: jax.Array | int) -> tuple[Cells, Cells]:
        y_cell, y_weights = _cell_and_weight(y, y_range, k // jnp.maximum(columns, 1) * side + i)
        x_cell, x_weights = _cell_and_weight(x, x_range, k % jnp.maximum(columns, 1) * side + i)
        return (start + y_cell * x.extent, y_weights), (x_cell, x_weights)

    return jnp.max(rows * columns), squares


def _forward_cpu(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples) -> jax.Array:
    shape = (y.first.shape[1], x.first.shape[1], features[0].shape[-1])
    y_range, x_range = cell_range(y), cell_range(x)
    rows, groups = _max_cells(*y_range), -(-_max_cells(*x_range) // NEIGHBORS)

    def pool(feature: jax.Array, roi: jax.Array, result: jax.Array) -> jax.Array:
        _, height, width, channels = feature.shape
        flat = feature.reshape(-1, channels)
        start = rois.images[roi] * (height * width)
        (y_axis, y_span), (x_axis, x_span) = _select((y, y_range), roi), _select((x, x_range), roi)
        x_axis, x_span = jax.tree.map(lambda leaf: leaf[None, :], (x_axis, x_span))

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            neighbors = step % groups[roi] * NEIGHBORS + jnp.arange(NEIGHBORS, dtype=jnp.int32)
            y_cell, y_weight = _cell_and_weight(y_axis, y_span, step // groups[roi])
            x_cell, x_weight = _cell_and_weight(x_axis, x_span, neighbors[:, None])
            for cell, weight in zip(x_cell, x_weight, strict=True):
                index = start + y_cell[:, None] * width + cell[None, :]
                total = total + _take(flat, index) * (y_weight[:, None] * weight[None, :])[..., None]
            return total

        total = jax.lax.fori_loop(0, rows[roi] * groups[roi], add, jnp.zeros(shape, jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(result, total.astype(result.dtype), roi, 0)

    result = jnp.zeros((rois.boxes.shape[0], *shape), features[0].dtype)
    loop = _loop_over_level(rois, len(features))
    for level, feature in enumerate(features):
        result = loop(level, functools.partial(pool, feature), result)
    return result


def _backward_cpu(like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array) -> FeatureMaps:
    y_spans, x_spans = roi_range(y), roi_range(x)
    channels = cotangent.shape[-1]

    def add_roi(roi: jax.Array, gradient: jax.Array) -> jax.Array:
        _, height, width, _ = gradient.shape
        tile = (1, min(TILE, height), min(TILE, width), channels)
        (y_axis, y_low, y_high), (x_axis, x_low, x_high) = _select((y, *y_spans), roi), _select((x, *x_spans), roi)
        rows, columns = (y_high - y_low) // tile[1] + 1, (x_high - x_low) // tile[2] + 1
        bins = _select(cotangent, roi).astype(jnp.float32)  # (h, w, Ch)

        def add(step: jax.Array, gradient: jax.Array) -> jax.Array:
            y_start, y_weights = _tile_weights(y_axis, y_low + step // columns * tile[1], tile[1], height)
            x_start, x_weights = _tile_weights(x_axis, x_low + step % columns * tile[2], tile[2], width)
            wide = jnp.einsum("hxw,hwc->hxc", jnp.broadcast_to(x_weights.T, (len(bins), *x_weights.T.shape)), bins)
            part = (y_weights.T @ wide.reshape(len(bins), -1)).reshape(tile)
            corner = (rois.images[roi], y_start, x_start, jnp.int32(0))
            return jax.lax.dynamic_update_slice(gradient, jax.lax.dynamic_slice(gradient, corner, tile) + part, corner)

        return jax.lax.fori_loop(0, jnp.maximum(rows, 0) * jnp.maximum(columns, 0), add, gradient)

    loop = _loop_over_level(rois, len(like))
    # A zero that depends on the cotangent: otherwise XLA would allocate the maps early, before the forward pass.
    bits = jax.lax.bitcast_convert_type(cotangent[0, 0, 0, 0].astype(jnp.float32), jnp.int32)
    zero = jax.lax.clamp(jnp.int32(0), bits, jnp.int32(0)).astype(jnp.float32)
    totals = (jnp.full((*f.shape[:-1], channels), zero) for f in like)
    return tuple(loop(level, add_roi, total).astype(like[level].dtype) for level, total in enumerate(totals))


def _loop_over_level(rois: RoIs, levels: int) -> Callable[[int, Callable[[jax.Array, Any], Any], Any], Any]:
    """Return a function (level, step, carry) that runs `step(roi, carry) -> carry` over the RoIs of one level."""
    order = jnp.argsort(rois.levels).astype(jnp.int32)
    begin = jnp.searchsorted(rois.levels[order], jnp.arange(levels + 1, dtype=jnp.int32))

    def run(level: int, step: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        return jax.lax.fori_loop(begin[level], begin[level + 1], lambda k, c: step(order[k], c), carry)

    return run


def _cell_and_weight(axis: AxisSamples, span: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k-th cell of each bin and its weight, which is 0 past the end of the bin."""
    low, high = span
    cell = jnp.minimum(low + k, axis.extent - 1)
    return cell, jnp.where(low + k <= high, cell_weights(axis, cell), 0.0)


def _tile_weights(axis: AxisSamples, start: jax.Array, size: int, extent: int) -> tuple[jax.Array, jax.Array]:
    """First cell of a tile, and weights (bins, size) of its cells, for one RoI.

    The tile has the cells start..start + size - 1. If it would leave the map it is moved inside, and cells that it then
    shares with the previous tile have weight 0.
    """
    begin = jnp.minimum(start, extent - size)
    cells = (begin + jnp.arange(size, dtype=jnp.int32))[None, :]
    weights = cell_weights(AxisSamples(*(leaf[:, None] for leaf in axis)), cells)
    return begin, jnp.where(cells >= start, weights, 0.0)


def _max_cells(low: jax.Array, high: jax.Array) -> jax.Array:
    """Largest number of cells (R,) in a bin of each RoI."""
    return jnp.max(high - low + 1, axis=1)


def _num_cells(features: FeatureMaps) -> list[int]:
    """Number of cells of each level."""
    return [f.shape[0] * f.shape[1] * f.shape[2] for f in features]


def _take(flat: jax.Array, index: jax.Array) -> jax.Array:
    return flat.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _select(tree: Any, roi: jax.Array) -> Any:
    """Select one RoI in every leaf."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, roi, keepdims=False), tree)

"""The loops of ROIAlign and of its gradient: one formulation for CPUs, one for machines with wide vectors.

All take RoIs of a batch of images: maps (B, H_l, W_l, Ch) for each level, and R RoIs that each know their image and
level. Sums are taken in float32; the result has the maps' dtype.

On a CPU a loop over the RoIs works best, each with as many steps as it needs and everything in the cache: the forward
pass adds cells to the bins, a few neighbors at a time; the gradient spreads the bins over square tiles by two small
matrix products. XLA's scatter is several times slower there. Elsewhere a square of cells of every bin of every RoI is
taken at a time, by gathers or one scatter over all levels laid out in one array: each turn reads and writes the sums of
all bins, or reads all their gradients, which costs more than the cells do. On a TPU the squares are single cells: XLA
may lay out in memory there what a scatter adds, and nobody has looked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi.axis import Axis, cell_range, cell_weights

NEIGHBORS = 4  # cells of a row added in one step of the CPU's forward pass
TILE = 16  # side of the tiles of the CPU's gradient; see benchmarks/RESULTS.md
SQUARE = 4  # side of the squares of cells on a GPU: most bins have no more rows and columns

Maps = tuple[jax.Array, ...]  # (B, H_l, W_l, Ch) for each level


class RoIs(NamedTuple):
    """R RoIs in a batch of images."""

    boxes: jax.Array  # (R, 4) float32
    levels: jax.Array  # (R,) int32, index of the feature map
    images: jax.Array  # (R,) int32, index of the image


def forward(features: Maps, rois: RoIs, y: Axis, x: Axis) -> jax.Array:
    """(R, h, w, Ch) from the maps and the samples along both axes."""
    one_cell = functools.partial(_forward_wide, side=1)
    return jax.lax.platform_dependent(features, rois, y, x, cpu=_forward_cpu, tpu=one_cell, default=_forward_wide)


def backward(like: Maps, rois: RoIs, y: Axis, x: Axis, cotangent: jax.Array) -> Maps:
    """The transpose of `forward`; of `like`, only shapes (but for the channels) and dtypes are used."""
    one_cell = functools.partial(_backward_wide, side=1)
    return jax.lax.platform_dependent(
        like, rois, y, x, cotangent, cpu=_backward_cpu, tpu=one_cell, default=_backward_wide
    )


def _forward_wide(features: Maps, rois: RoIs, y: Axis, x: Axis, side: int = SQUARE) -> jax.Array:
    channels = features[0].shape[-1]
    flat = jnp.concatenate([f.reshape(-1, channels) for f in features])
    turns, squares = _walk(features, rois, y, x, side)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        (y_start, y_weights), (x_cell, x_weights) = squares(k)
        for i, j in np.ndindex(side, side):
            index = y_start[:, :, None, i] + x_cell[:, None, :, j]
            weight = y_weights[:, :, None, i] * x_weights[:, None, :, j]
            total = total + _take(flat, index) * weight[..., None]
        return total

    shape = (*y.first.shape, x.first.shape[1], channels)
    return jax.lax.fori_loop(0, turns, add, jnp.zeros(shape, jnp.float32)).astype(flat.dtype)


def _backward_wide(like: Maps, rois: RoIs, y: Axis, x: Axis, cotangent: jax.Array, side: int = SQUARE) -> Maps:
    channels = cotangent.shape[-1]
    sizes = _cells(like)
    turns, squares = _walk(like, rois, y, x, side)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        (y_start, y_weights), (x_cell, x_weights) = squares(k)
        index = y_start[:, :, None, :, None] + x_cell[:, None, :, None, :]
        weight = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        index = jnp.where(weight == 0, sum(sizes), index)  # out of bounds, where nothing is read or written
        update = cotangent[:, :, :, None, None].astype(jnp.float32) * weight[..., None]
        return total.at[index].add(update, mode="drop")

    total = jax.lax.fori_loop(0, turns, add, jnp.zeros((sum(sizes), channels), jnp.float32))
    parts = jnp.split(total, np.cumsum(sizes)[:-1].tolist())
    return tuple(p.reshape((*f.shape[:-1], channels)).astype(f.dtype) for p, f in zip(parts, like, strict=True))


Cells = tuple[jax.Array, jax.Array]  # cells int32 and their weights float32


def _walk(
    features: Maps, rois: RoIs, y: Axis, x: Axis, side: int
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Cells, Cells]]]:
    """The largest number of squares in a bin, and a function from k to the k-th square of every bin.

    The function returns rows (R, h, side) and columns (R, w, side) of the squares; a row is the index of its first
    cell among the maps' cells, level after level. Each RoI walks its own squares, so the number of turns is bounded by
    an area and thin boxes do not multiply.
    """
    start = jnp.asarray(np.cumsum([0, *_cells(features)[:-1]]), jnp.int32)[rois.levels]
    start = (start + rois.images * y.extent[:, 0] * x.extent[:, 0])[:, None, None]
    y_range, x_range = cell_range(y), cell_range(x)
    rows, columns = (-(-_longest(*span) // side)[:, None] for span in (y_range, x_range))

    def squares(k: jax.Array) -> tuple[Cells, Cells]:
        y_cell, y_weights = _edge(y, y_range, k // jnp.maximum(columns, 1), side)
        x_cell, x_weights = _edge(x, x_range, k % jnp.maximum(columns, 1), side)
        edges = (start + y_cell * x.extent[..., None], y_weights), (x_cell, x_weights)
        # Without the barrier XLA would compute the weights again for every channel.
        return jax.lax.optimization_barrier(edges)

    return jnp.max(rows * columns), squares


def _edge(axis: Axis, span: tuple[jax.Array, jax.Array], square: jax.Array, side: int) -> Cells:
    """Along one axis the cells of a square (R, 1) of each bin, (R, bins, side)."""
    axis, span = jax.tree.map(lambda leaf: leaf[..., None], (axis, span))
    return _tap(axis, span, square[..., None] * side + jnp.arange(side, dtype=jnp.int32)[None, None])


def _forward_cpu(features: Maps, rois: RoIs, y: Axis, x: Axis) -> jax.Array:
    shape = (y.first.shape[1], x.first.shape[1], features[0].shape[-1])
    y_range, x_range = cell_range(y), cell_range(x)
    rows, groups = _longest(*y_range), -(-_longest(*x_range) // NEIGHBORS)

    def pool(feature: jax.Array, roi: jax.Array, result: jax.Array) -> jax.Array:
        _, height, width, channels = feature.shape
        flat = feature.reshape(-1, channels)
        start = rois.images[roi] * (height * width)
        (y_axis, y_span), (x_axis, x_span) = _select((y, y_range), roi), _select((x, x_range), roi)
        x_axis, x_span = jax.tree.map(lambda leaf: leaf[None, :], (x_axis, x_span))

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            neighbors = step % groups[roi] * NEIGHBORS + jnp.arange(NEIGHBORS, dtype=jnp.int32)
            y_cell, y_weight = _tap(y_axis, y_span, step // groups[roi])
            x_cell, x_weight = _tap(x_axis, x_span, neighbors[:, None])
            for cell, weight in zip(x_cell, x_weight, strict=True):
                index = start + y_cell[:, None] * width + cell[None, :]
                total = total + _take(flat, index) * (y_weight[:, None] * weight[None, :])[..., None]
            return total

        total = jax.lax.fori_loop(0, rows[roi] * groups[roi], add, jnp.zeros(shape, jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(result, total.astype(result.dtype), roi, 0)

    result = jnp.zeros((rois.boxes.shape[0], *shape), features[0].dtype)
    members = _members(rois, len(features))
    for level, feature in enumerate(features):
        result = members(level, functools.partial(pool, feature), result)
    return result


def _backward_cpu(like: Maps, rois: RoIs, y: Axis, x: Axis, cotangent: jax.Array) -> Maps:
    y_spans, x_spans = _bounds(*cell_range(y)), _bounds(*cell_range(x))
    channels = cotangent.shape[-1]

    def spread(roi: jax.Array, gradient: jax.Array) -> jax.Array:
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

    members = _members(rois, len(like))
    # A zero that has to wait for the gradient: XLA would clear the maps early, and hold them through the forward pass.
    bits = jax.lax.bitcast_convert_type(cotangent[0, 0, 0, 0].astype(jnp.float32), jnp.int32)
    zero = jax.lax.clamp(jnp.int32(0), bits, jnp.int32(0)).astype(jnp.float32)
    totals = (jnp.full((*f.shape[:-1], channels), zero) for f in like)
    return tuple(members(level, spread, total).astype(like[level].dtype) for level, total in enumerate(totals))


def _members(rois: RoIs, levels: int) -> Callable[[int, Callable[[jax.Array, Any], Any], Any], Any]:
    """A function that runs `step(roi, carry) -> carry` over the RoIs of one level."""
    order = jnp.argsort(rois.levels).astype(jnp.int32)
    begin = jnp.searchsorted(rois.levels[order], jnp.arange(levels + 1, dtype=jnp.int32))

    def run(level: int, step: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        return jax.lax.fori_loop(begin[level], begin[level + 1], lambda k, c: step(order[k], c), carry)

    return run


def _tap(axis: Axis, span: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k-th cell of each bin and its weight: 0 past the bin's end."""
    low, high = span
    cell = jnp.minimum(low + k, axis.extent - 1)
    return cell, jnp.where(low + k <= high, cell_weights(axis, cell), 0.0)


def _tile_weights(axis: Axis, start: jax.Array, size: int, extent: int) -> tuple[jax.Array, jax.Array]:
    """Weights (bins, size) of the cells start..start + size - 1 of one RoI, and where the tile begins in the map.

    A tile that would leave the map is moved inside; the cells that it then shares with its neighbor weigh nothing.
    """
    begin = jnp.minimum(start, extent - size)
    cells = (begin + jnp.arange(size, dtype=jnp.int32))[None, :]
    weights = cell_weights(Axis(*(leaf[:, None] for leaf in axis)), cells)
    return begin, jnp.where(cells >= start, weights, 0.0)


def _longest(low: jax.Array, high: jax.Array) -> jax.Array:
    """(R,) the most cells that a bin of each RoI has."""
    return jnp.max(high - low + 1, axis=1)


def _bounds(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(R,) the first and the last cell of all bins of a RoI; last < first where no bin has any."""
    some = high >= low
    first = jnp.min(jnp.where(some, low, jnp.iinfo(jnp.int32).max // 2), axis=1)
    return first, jnp.max(jnp.where(some, high, -1), axis=1)


def _cells(features: Maps) -> list[int]:
    return [f.shape[0] * f.shape[1] * f.shape[2] for f in features]


def _take(flat: jax.Array, index: jax.Array) -> jax.Array:
    return flat.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _select(tree: Any, roi: jax.Array) -> Any:
    """Leaf by leaf, the row of one RoI."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, roi, keepdims=False), tree)

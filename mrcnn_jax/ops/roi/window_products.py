"""ROIAlign and its gradient as products of windows of the maps with the weights of their cells, for TPUs.

A TPU copies windows at the speed of its memory and multiplies matrices fast, but takes a microsecond for any operation,
however small. Each step therefore takes many windows. Larger RoIs have several. `forward` gathers one window of every
RoI of a large block, sorted by their number of windows, so that few wait for others. `backward` adds the windows of one
map, whose sum stays on the chip, one after the other.

Results equal those of `kernels` up to rounding, except that infinities and NaNs spread: to all RoIs whose windows
contain them, and those of a gradient to other maps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi.axis import AxisSamples, cell_weights, roi_range
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs

ROWS, COLUMNS = 24, 32  # of a window; two thirds of the RoIs of a pyramid fit in one
TILE = 8  # rows of a tile of TPU memory: windows begin at a multiple in x, and bins are padded to a multiple
FORWARD_BINS = 8192  # bins in a block: its windows and sums fit in the memory on the chip
WINDOWS = 16  # of a turn of the gradient


class Windows(NamedTuple):
    """Windows of K RoIs in the array of all levels: (K,) int32 each."""

    image: jax.Array
    start: jax.Array  # first row of the level in the array
    row: jax.Array  # first row of the windows, in the level
    column: jax.Array  # first column of the windows
    columns: jax.Array  # number of windows along x
    number: jax.Array  # of windows


class Block(NamedTuple):
    """K RoIs and their windows."""

    position: jax.Array  # (K,) int32, the RoI's before sorting
    y: AxisSamples
    x: AxisSamples
    windows: Windows


def forward(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples) -> jax.Array:
    """Pooled features, see `kernels.forward`."""
    channels, num_bins = features[0].shape[-1], (y.first.shape[1], x.first.shape[1])
    shape, starts = joined_shape(features)
    joined = join(features).reshape(*shape[:2], -1, TILE, channels)  # so that windows are whole tiles
    blocks = _blocks(rois, y, pad_bins(x), starts, FORWARD_BINS)

    def pool(block: Block) -> jax.Array:
        def add(turn: jax.Array, total: jax.Array) -> jax.Array:
            corners, weights = _windows(block, turn, shape)
            sizes = (1, ROWS, COLUMNS // TILE, TILE, channels)
            windows = jax.vmap(lambda corner: jax.lax.dynamic_slice(joined, (*corner, 0, 0), sizes))(corners)
            cells = windows.reshape(len(corners), -1, channels)
            return total + jax.vmap(functools.partial(product, axis=1))(weights, cells)

        zeros = jnp.zeros((len(block.position), num_bins[0] * _up(num_bins[1]), channels), jnp.float32)
        return jax.lax.fori_loop(0, jnp.max(block.windows.number), add, zeros).astype(joined.dtype)

    pooled = jax.lax.map(pool, blocks).reshape(-1, num_bins[0], _up(num_bins[1]), channels)
    return pooled[jnp.argsort(blocks.position.reshape(-1)[: len(rois.boxes)])][:, :, : num_bins[1]]


def backward(like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array) -> FeatureMaps:
    """Transpose of `forward`, see `kernels.backward`.

    Each level of each image has its own sum in float32, which fits in the memory on the chip; there the product of a
    window is added in place. The finest level has a loop of its own, all others share one.
    """
    windows = roi_windows(rois, y, x, [0] * len(like))
    bins = cotangent.shape[:3]
    y = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, :, None], bins).reshape(len(leaf), -1), y)
    x = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], bins).reshape(len(leaf), -1), x)
    values = cotangent.reshape(len(cotangent), -1, cotangent.shape[-1])

    def gradients(first_level: int, maps: FeatureMaps) -> list[jax.Array]:
        num_images = maps[0].shape[0]
        shape = joined_shape(maps[:1])[0]

        def gradient(index: jax.Array) -> jax.Array:
            level, image = first_level + index // num_images, index % num_images
            number = jnp.where((rois.levels == level) & (rois.images == image), windows.number, 0)
            return _sum_windows(shape, windows._replace(number=number), y, x, values).astype(maps[0].dtype)

        stacked = jax.lax.map(gradient, jnp.arange(len(maps) * num_images, dtype=jnp.int32))
        levels = stacked.reshape(len(maps), num_images, *stacked.shape[1:])
        return [level[:, : f.shape[1], : f.shape[2]] for level, f in zip(levels, maps, strict=True)]

    return (*gradients(0, like[:1]), *(gradients(1, like[1:]) if like[1:] else ()))


def _sum_windows(
    shape: tuple[int, int, int], windows: Windows, y: AxisSamples, x: AxisSamples, values: jax.Array
) -> jax.Array:
    """Sum (H, W, Ch) in float32 of the windows of RoIs with samples (R, bins) and values (R, bins, Ch)."""
    ends, channels = jnp.cumsum(windows.number), values.shape[-1]

    def add_windows(turn: jax.Array, total: jax.Array) -> jax.Array:
        index = turn * WINDOWS + jnp.arange(WINDOWS, dtype=jnp.int32)
        roi = jnp.minimum(jnp.sum(ends[None] <= index[:, None], axis=1, dtype=jnp.int32), len(ends) - 1)
        own, own_y, own_x = jax.tree.map(lambda leaf: leaf[roi], (windows, y, x))
        own_turn = index - ends[roi] + own.number
        row, column, corner_row, corner_column = window_corner(own, own_turn, shape)
        y_weights = _weights_of_bins(own_y, row, corner_row, ROWS)
        x_weights = _weights_of_bins(own_x, column, corner_column, COLUMNS)
        y_weights = jnp.where((own_turn < own.number)[:, None, None], y_weights, 0.0)
        weights = (y_weights[:, :, None] * x_weights[:, None]).reshape(WINDOWS, ROWS * COLUMNS, -1)

        values_of_rois = values[roi].astype(jnp.float32)
        for window in range(WINDOWS):
            update = jnp.dot(weights[window], values_of_rois[window], precision=jax.lax.Precision.HIGHEST)
            update = update.reshape(ROWS, COLUMNS // TILE, TILE, channels)
            corner = corner_row[window], corner_column[window] // TILE, 0, 0
            update += jax.lax.dynamic_slice(total, corner, update.shape)
            total = jax.lax.dynamic_update_slice(total, update, corner)
        return total

    zeros = jnp.zeros((shape[1], shape[2] // TILE, TILE, channels), jnp.float32)
    return jax.lax.fori_loop(0, -(-ends[-1] // WINDOWS), add_windows, zeros).reshape(*shape[1:], channels)


def _weights_of_bins(axis: AxisSamples, first: jax.Array, corner: jax.Array, size: int) -> jax.Array:
    """Weights (K, size, bins) of the cells from a corner (K,) on; see `window_weights`."""
    cells = corner[:, None, None] + jnp.arange(size, dtype=jnp.int32)[None, :, None]
    return window_weights(AxisSamples(*(leaf[:, None] for leaf in axis)), cells, first[:, None, None])


def _up(number: int) -> int:
    """The next multiple of TILE."""
    return -(-number // TILE) * TILE


def joined_shape(features: FeatureMaps) -> tuple[tuple[int, int, int], list[int]]:
    """Shape (B, H, W) of an array with the levels below each other, and the first row of each level."""
    *starts, height = np.cumsum([0, *(f.shape[1] for f in features)]).tolist()
    width = _up(max(f.shape[2] for f in features))
    return (features[0].shape[0], max(height, ROWS), max(width, COLUMNS)), starts


def join(features: FeatureMaps) -> jax.Array:
    """Array (B, H, W, Ch) of all levels, see `joined_shape`."""
    (_, height, width), _ = joined_shape(features)
    joined = jnp.concatenate([jnp.pad(f, ((0, 0), (0, 0), (0, width - f.shape[2]), (0, 0))) for f in features], axis=1)
    return jnp.pad(joined, ((0, 0), (0, height - joined.shape[1]), (0, 0), (0, 0)))


def pad_bins(axis: AxisSamples) -> AxisSamples:
    """Add bins without samples, up to a multiple of TILE."""

    def pad(leaf: jax.Array) -> jax.Array:
        leaf = jnp.broadcast_to(leaf, axis.first.shape)
        return jnp.pad(leaf, ((0, 0), (0, -leaf.shape[1] % TILE)))

    first, begin, end, number = map(pad, (axis.first, axis.begin, axis.end, axis.number))
    return axis._replace(first=first, begin=begin, end=end, number=number)


def roi_windows(rois: RoIs, y: AxisSamples, x: AxisSamples, starts: list[int]) -> Windows:
    """Windows of RoIs, none of those whose bins are all empty."""
    (row, last_row), (column, last_column) = roi_range(y), roi_range(x)
    column = column // TILE * TILE
    rows, columns = -((row - 1 - last_row) // ROWS), -((column - 1 - last_column) // COLUMNS)
    number = jnp.maximum(rows, 0) * jnp.maximum(columns, 0)
    start = jnp.asarray(starts, jnp.int32)[rois.levels]
    return Windows(rois.images, start, row, column, jnp.maximum(columns, 1), number)


def window_corner(windows: Windows, turn: jax.Array, shape: tuple[int, int, int]) -> tuple[jax.Array, ...]:
    """First row (in its level) and column of a window with an index, and the row and column of its corner.

    A window that would leave the array is moved inside: its corner is above or to the left of the first row and column.
    """
    row = windows.row + jax.lax.div(turn, windows.columns) * ROWS
    column = windows.column + jax.lax.rem(turn, windows.columns) * COLUMNS
    corner_row = jnp.minimum(row + windows.start, shape[1] - ROWS)
    return row, column, corner_row, jnp.minimum(column, shape[2] - COLUMNS)


def window_weights(axis: AxisSamples, cells: jax.Array, first: jax.Array) -> jax.Array:
    """Weights of cells from `first` on, 0 for others and outside of the map; see `cell_weights`.

    Cells before the first are in other windows too.
    """
    inside = (cells >= first) & (cells < axis.extent)
    return jnp.where(inside, cell_weights(axis, jnp.where(inside, cells, 0)), 0.0)


def product(weights: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """Product of weights (M, N) and values (M or N, Ch), summed over an axis of the weights in float32."""
    dot = functools.partial(
        jax.lax.dot_general, dimension_numbers=(((axis,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    if values.dtype != jnp.bfloat16:
        return dot(weights, values, precision=jax.lax.Precision.HIGHEST)
    # Two parts hold 16 bits of a weight, as many as are exact in coordinates beyond cell 128.
    high = jax.lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    low = weights - high
    return dot(high.astype(values.dtype), values) + dot(low.astype(values.dtype), values)


def _blocks(rois: RoIs, y: AxisSamples, x: AxisSamples, starts: list[int], max_bins: int) -> Block:
    """Blocks (N, K, ...) of RoIs, sorted by their number of windows. Those that pad the last block have none."""
    windows = roi_windows(rois, y, x, starts)
    block = Block(jnp.arange(len(rois.boxes), dtype=jnp.int32), y, x, windows)
    number = -(-len(rois.boxes) * y.first.shape[1] * x.first.shape[1] // max_bins)
    size = -(-len(rois.boxes) // number)
    order = jnp.argsort(windows.number)

    def to_blocks(leaf: jax.Array) -> jax.Array:
        padding = ((0, number * size - len(order)), *((0, 0) for _ in leaf.shape[1:]))
        return jnp.pad(leaf[order], padding).reshape(number, size, *leaf.shape[1:])

    return jax.tree.map(to_blocks, block)


def _windows(block: Block, turn: jax.Array, shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """Corners (K, 3) of the windows with an index, as image, row and tile, and weights (K, bins, cells)."""
    row, column, corner_row, corner_column = window_corner(block.windows, turn, shape)
    cells = jnp.arange(ROWS * COLUMNS, dtype=jnp.int32)[None, None]

    def weights(axis: AxisSamples, first: jax.Array, corner: jax.Array, offsets: jax.Array) -> jax.Array:
        axis = AxisSamples(*(leaf[..., None] for leaf in axis))
        return window_weights(axis, corner[:, None, None] + offsets, first[:, None, None])

    y_weights = weights(block.y, row, corner_row - block.windows.start, cells // COLUMNS)
    x_weights = weights(block.x, column, corner_column, cells % COLUMNS)
    y_weights = jnp.where((turn < block.windows.number)[:, None, None], y_weights, 0.0)
    # Without the barrier XLA would compute the weights again for every pair of bins.
    y_weights, x_weights = jax.lax.optimization_barrier((y_weights, x_weights))
    products = y_weights[:, :, None] * x_weights[:, None]
    corners = jnp.stack([block.windows.image, corner_row, corner_column // TILE], axis=1)
    return corners, products.reshape(len(corners), -1, cells.size)

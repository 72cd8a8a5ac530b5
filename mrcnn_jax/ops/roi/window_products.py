"""ROIAlign and its gradient as products of windows of the maps with the weights of their cells, for TPUs.

A TPU copies windows at the speed of its memory and multiplies matrices fast, but takes a microsecond for any operation,
however small. Each step therefore takes one window of every RoI of a large block: one gather or scatter of windows, and
a product with the weights of their cells in all bins. Larger RoIs have several windows. RoIs are sorted by their number
of windows, so that few wait for others.

Results equal those of `kernels` up to rounding, except that infinities and NaNs spread to all RoIs whose windows
contain them.
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
FORWARD_BINS, BACKWARD_BINS = 8192, 4096  # bins in a block: its windows and sums fit in the memory on the chip


class Block(NamedTuple):
    """K RoIs and their windows."""

    position: jax.Array  # (K,) int32, the RoI's before sorting
    y: AxisSamples
    x: AxisSamples
    image: jax.Array  # (K,) int32
    start: jax.Array  # (K,) int32, first row of the level in the array of all levels
    row: jax.Array  # (K,) int32, first row of the windows, in the level
    column: jax.Array  # (K,) int32, first column of the windows
    columns: jax.Array  # (K,) int32, number of windows along x
    windows: jax.Array  # (K,) int32, number of windows


def forward(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples) -> jax.Array:
    """Pooled features, see `kernels.forward`."""
    channels, num_bins = features[0].shape[-1], (y.first.shape[1], x.first.shape[1])
    shape, starts = _joined_shape(features)
    joined = jnp.concatenate(
        [jnp.pad(f, ((0, 0), (0, 0), (0, shape[2] - f.shape[2]), (0, 0))) for f in features], axis=1
    )
    joined = jnp.pad(joined, ((0, 0), (0, shape[1] - joined.shape[1]), (0, 0), (0, 0)))
    joined = joined.reshape(*shape[:2], -1, TILE, channels)  # so that windows are whole tiles
    blocks = _blocks(rois, y, _pad_bins(x), starts, FORWARD_BINS)

    def pool(block: Block) -> jax.Array:
        def add(turn: jax.Array, total: jax.Array) -> jax.Array:
            corners, weights = _windows(block, turn, shape)
            sizes = (1, ROWS, COLUMNS // TILE, TILE, channels)
            windows = jax.vmap(lambda corner: jax.lax.dynamic_slice(joined, (*corner, 0, 0), sizes))(corners)
            return total + _product(weights, windows.reshape(len(corners), -1, channels), axis=2)

        zeros = jnp.zeros((len(block.windows), num_bins[0] * _up(num_bins[1]), channels), jnp.float32)
        return jax.lax.fori_loop(0, jnp.max(block.windows), add, zeros).astype(joined.dtype)

    pooled = jax.lax.map(pool, blocks).reshape(-1, num_bins[0], _up(num_bins[1]), channels)
    return pooled[jnp.argsort(blocks.position.reshape(-1)[: len(rois.boxes)])][:, :, : num_bins[1]]


def backward(like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array) -> FeatureMaps:
    """Transpose of `forward`, see `kernels.backward`."""
    channels = cotangent.shape[-1]
    shape, starts = _joined_shape(like)
    bins = jnp.pad(cotangent, ((0, 0), (0, 0), (0, -cotangent.shape[2] % TILE), (0, 0)))
    bins = bins.reshape(len(bins), -1, channels)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3, 4), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1, 2)
    )

    def add_block(total: jax.Array, block: Block) -> tuple[jax.Array, None]:
        values = bins[block.position]

        def add(turn: jax.Array, total: jax.Array) -> jax.Array:
            corners, weights = _windows(block, turn, shape)
            windows = _product(weights, values, axis=1).reshape(-1, ROWS, COLUMNS // TILE, TILE, channels)
            return jax.lax.scatter_add(total, corners, windows, dimensions, mode="promise_in_bounds")

        return jax.lax.fori_loop(0, jnp.max(block.windows), add, total), None

    zeros = jnp.zeros((*shape[:2], shape[2] // TILE, TILE, channels), jnp.float32)
    blocks = _blocks(rois, y, _pad_bins(x), starts, BACKWARD_BINS)
    total = jax.lax.scan(add_block, zeros, blocks)[0].reshape(*shape, channels)
    return tuple(
        total[:, start : start + f.shape[1], : f.shape[2]].astype(f.dtype)
        for start, f in zip(starts, like, strict=True)
    )


def _up(number: int) -> int:
    """The next multiple of TILE."""
    return -(-number // TILE) * TILE


def _joined_shape(features: FeatureMaps) -> tuple[tuple[int, int, int], list[int]]:
    """Shape (B, H, W) of an array with the levels below each other, and the first row of each level."""
    *starts, height = np.cumsum([0, *(f.shape[1] for f in features)]).tolist()
    width = _up(max(f.shape[2] for f in features))
    return (features[0].shape[0], max(height, ROWS), max(width, COLUMNS)), starts


def _pad_bins(axis: AxisSamples) -> AxisSamples:
    """Add bins without samples, up to a multiple of TILE."""

    def pad(leaf: jax.Array) -> jax.Array:
        leaf = jnp.broadcast_to(leaf, axis.first.shape)
        return jnp.pad(leaf, ((0, 0), (0, -leaf.shape[1] % TILE)))

    first, begin, end, number = map(pad, (axis.first, axis.begin, axis.end, axis.number))
    return axis._replace(first=first, begin=begin, end=end, number=number)


def _blocks(rois: RoIs, y: AxisSamples, x: AxisSamples, starts: list[int], max_bins: int) -> Block:
    """Blocks (N, K, ...) of RoIs, sorted by their number of windows. Those that pad the last block have none."""
    (row, last_row), (column, last_column) = roi_range(y), roi_range(x)
    column = column // TILE * TILE
    rows, columns = -((row - 1 - last_row) // ROWS), -((column - 1 - last_column) // COLUMNS)
    count = jnp.maximum(rows, 0) * jnp.maximum(columns, 0)
    start = jnp.asarray(starts, jnp.int32)[rois.levels]
    index = jnp.arange(len(count), dtype=jnp.int32)
    block = Block(index, y, x, rois.images, start, row, column, jnp.maximum(columns, 1), count)
    number = -(-len(count) * y.first.shape[1] * x.first.shape[1] // max_bins)
    size = -(-len(count) // number)
    order = jnp.argsort(count)

    def split(leaf: jax.Array) -> jax.Array:
        padding = ((0, number * size - len(order)), *((0, 0) for _ in leaf.shape[1:]))
        return jnp.pad(leaf[order], padding).reshape(number, size, *leaf.shape[1:])

    return jax.tree.map(split, block)


def _windows(block: Block, turn: jax.Array, shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """Corners (K, 3) of the windows with an index, as image, row and tile, and weights (K, bins, cells) of their cells.

    A window that would leave the array is moved inside, and cells that it then shares with other windows have weight 0.
    """
    cells = jnp.arange(ROWS * COLUMNS, dtype=jnp.int32)[None]
    row = block.row + turn // block.columns * ROWS
    column = block.column + turn % block.columns * COLUMNS
    corner_row = jnp.minimum(row + block.start, shape[1] - ROWS)
    corner_column = jnp.minimum(column, shape[2] - COLUMNS)
    y_weights = _cell_weights(block.y, (corner_row - block.start)[:, None] + cells // COLUMNS, row)
    x_weights = _cell_weights(block.x, corner_column[:, None] + cells % COLUMNS, column)
    y_weights = jnp.where((turn < block.windows)[:, None, None], y_weights, 0.0)
    # Without the barrier XLA would compute the weights again for every pair of bins.
    y_weights, x_weights = jax.lax.optimization_barrier((y_weights, x_weights))
    weights = y_weights[:, :, None] * x_weights[:, None]
    corners = jnp.stack([block.image, corner_row, corner_column // TILE], axis=1)
    return corners, weights.reshape(len(corners), -1, cells.size)


def _cell_weights(axis: AxisSamples, cells: jax.Array, first: jax.Array) -> jax.Array:
    """Weights (K, bins, cells) of cells (K, cells) from `first` (K,) on, 0 for others and outside of the map."""
    inside = (cells >= first[:, None]) & (cells < axis.extent)
    cells = jnp.where(inside, cells, 0)[:, None]
    weights = cell_weights(AxisSamples(*(leaf[..., None] for leaf in axis)), cells)
    return jnp.where(inside[:, None], weights, 0.0)


def _product(weights: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """Product of weights (K, M, N) and values (K, M or N, Ch), summed over an axis of the weights in float32."""
    product = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=(((axis,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    if values.dtype != jnp.bfloat16:
        return product(weights, values, precision=jax.lax.Precision.HIGHEST)
    # Two parts hold 16 bits of a weight, as many as are exact in coordinates beyond cell 128.
    high = jax.lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    low = weights - high
    return product(high.astype(values.dtype), values) + product(low.astype(values.dtype), values)

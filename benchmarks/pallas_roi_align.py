"""ROIAlign and its gradient by windows as Pallas kernels for TPUs. No TPU has run them yet, so no model uses them.

The kernels take windows and weights of `mrcnn_jax/ops/roi/window_products.py`, RoI after RoI and window after window.
While a window is multiplied, the next one is copied from HBM. The gradient reads a window of the map, adds its product
and writes it back, in order; it reads the next one at the same time only if the two do not overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mrcnn_jax.ops.roi import window_products
from mrcnn_jax.ops.roi.axis import AxisSamples
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs
from mrcnn_jax.ops.roi.window_products import COLUMNS, ROWS, TILE, Windows

NUM_SCALARS = len(Windows._fields)  # of each RoI, in the memory of the scalar unit


def forward(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, *, interpret: Any = False) -> jax.Array:
    """Pooled features, see `mrcnn_jax/ops/roi/kernels.py`. `interpret`: of `pl.pallas_call`, to run on a CPU."""
    joined, x_padded = window_products.join(features), window_products.pad_bins(x)
    bins = y.first.shape[1], x_padded.first.shape[1]
    result = jax.ShapeDtypeStruct((len(rois.boxes), bins[0] * bins[1], joined.shape[-1]), joined.dtype)
    pooled = _call(
        _forward_kernel, (_windows(features, rois, y, x), _pack(y), _pack(x_padded), joined), result, interpret
    )
    return pooled.reshape(-1, *bins, joined.shape[-1])[:, :, : x.first.shape[1]]


def backward(
    like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array, *, interpret: Any = False
) -> FeatureMaps:
    """Transpose of `forward`."""
    (shape, _), bins = window_products.joined_shape(like), window_products.flat_bins(cotangent)
    zeros = jnp.zeros((*shape, cotangent.shape[-1]), jnp.float32)
    x_padded = window_products.pad_bins(x)
    arguments = _windows(like, rois, y, x), _pack(y), _pack(x_padded), bins, zeros
    return window_products.split(_call(_backward_kernel, arguments, zeros, interpret), like)


def _windows(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples) -> Windows:
    """Windows of all RoIs, at least one each, and of one RoI more, which is never read but compared."""
    windows = window_products.roi_windows(rois, y, x, window_products.joined_shape(features)[1])
    windows = windows._replace(number=jnp.maximum(windows.number, 1))
    return jax.tree.map(lambda leaf: jnp.pad(leaf, (0, 1)), windows)


def _pack(axis: AxisSamples) -> jax.Array:
    """Array (R, bins, fields)."""
    return jnp.stack([jnp.broadcast_to(leaf, axis.first.shape).astype(jnp.float32) for leaf in axis], axis=-1)


def _call(kernel: Callable[..., None], arguments: Any, result: Any, interpret: Any) -> jax.Array:
    """Run a kernel for one RoI after the other. The last argument stays in HBM; the gradient is added to it."""
    windows, *per_roi, maps = arguments
    in_place = result is maps

    def block(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, *array.shape[1:]), lambda roi, *_: (roi, 0, 0))

    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    if not interpret:  # the compiler would place a small map in VMEM
        maps = pltpu.with_memory_space_constraint(maps, pltpu.HBM)
    return pl.pallas_call(
        functools.partial(kernel, shape=maps.shape[:3]),
        out_shape=jax.ShapeDtypeStruct(result.shape, result.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=NUM_SCALARS,
            grid=(len(per_roi[0]),),
            in_specs=[*map(block, per_roi), in_hbm],
            out_specs=in_hbm if in_place else block(result),
            scratch_shapes=[
                pltpu.VMEM((2, ROWS, COLUMNS, maps.shape[-1]), maps.dtype),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((3,)),
            ],
        ),
        input_output_aliases={NUM_SCALARS + len(per_roi): 0} if in_place else {},
        interpret=interpret,
    )(*windows, *per_roi, maps)


def _forward_kernel(*refs: Any, shape: tuple[int, int, int]) -> None:
    """Pool one RoI."""
    *windows, y, x, maps, result, buffers, slot, semaphores = refs
    windows, roi, num_rois = Windows(*windows), pl.program_id(0), pl.num_programs(0)
    read = _reader(windows, roi, maps, buffers, slot, semaphores, shape)

    def add(turn: jax.Array, total: jax.Array) -> jax.Array:
        buffer, following = slot[0], _following(windows, roi, turn)
        pl.when(following[0] < num_rois)(lambda: read(*following, 1 - buffer).start())
        weights = _weights(y, x, windows, roi, turn, shape)
        read(roi, turn, buffer).wait()
        slot[0] = 1 - buffer
        return total + window_products.product(weights, buffers[buffer].reshape(ROWS * COLUMNS, -1), axis=1)

    total = jax.lax.fori_loop(0, windows.number[roi], add, jnp.zeros(result.shape[1:], jnp.float32))
    result[0] = total.astype(result.dtype)


def _backward_kernel(*refs: Any, shape: tuple[int, int, int]) -> None:
    """Add the gradient of one RoI to the map."""
    *windows, y, x, bins, _, maps, buffers, slot, semaphores = refs
    windows, roi, num_rois = Windows(*windows), pl.program_id(0), pl.num_programs(0)
    read = _reader(windows, roi, maps, buffers, slot, semaphores, shape)

    def add(turn: jax.Array, _: None) -> None:
        buffer, following = slot[0], _following(windows, roi, turn)
        exists, early = following[0] < num_rois, _disjoint(windows, (roi, turn), following, shape)
        pl.when(exists & early)(lambda: read(*following, 1 - buffer).start())
        update = window_products.product(_weights(y, x, windows, roi, turn, shape), bins[0], axis=0)
        read(roi, turn, buffer).wait()
        buffers[buffer] += update.reshape(buffers.shape[1:])
        target = maps.at[_corner(windows, roi, turn, shape)]
        write = pltpu.make_async_copy(buffers.at[buffer], target, semaphores.at[2])
        write.start()
        write.wait()
        pl.when(exists & ~early)(lambda: read(*following, 1 - buffer).start())
        slot[0] = 1 - buffer

    jax.lax.fori_loop(0, windows.number[roi], add, None)


def _reader(
    windows: Windows, roi: jax.Array, maps: Any, buffers: Any, slot: Any, semaphores: Any, shape: tuple[int, int, int]
) -> Callable[..., Any]:
    """Function from RoI, index of the window and buffer to a copy. The very first one is started here.

    `slot` has the index of the buffer with the present window, or with its unfinished copy.
    """

    def read(roi: jax.Array, turn: jax.Array, buffer: jax.Array) -> Any:
        source = maps.at[_corner(windows, roi, turn, shape)]
        return pltpu.make_async_copy(source, buffers.at[buffer], semaphores.at[buffer])

    @pl.when(roi == 0)
    def _() -> None:
        slot[0] = 0
        read(roi, 0, 0).start()

    return read


def _following(windows: Windows, roi: jax.Array, turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """RoI and index of the next window."""
    last = turn + 1 == windows.number[roi]
    return jnp.where(last, roi + 1, roi), jnp.where(last, 0, turn + 1)


def _corner(windows: Windows, roi: jax.Array, turn: jax.Array, shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """Index of a window in the array of all levels."""
    own = Windows(*(field[roi] for field in windows))
    _, _, row, column = window_products.window_corner(own, turn, shape)
    return own.image, pl.ds(row, ROWS), pl.ds(pl.multiple_of(column, TILE), COLUMNS)


def _disjoint(windows: Windows, a: Any, b: Any, shape: tuple[int, int, int]) -> jax.Array:
    """Whether two windows have no cell in common."""
    (image, rows, columns), (other_image, other_rows, other_columns) = (_corner(windows, *w, shape) for w in (a, b))
    apart = abs(rows.start - other_rows.start) >= ROWS
    return (image != other_image) | apart | (abs(columns.start - other_columns.start) >= COLUMNS)


def _weights(
    y: Any, x: Any, windows: Windows, roi: jax.Array, turn: jax.Array, shape: tuple[int, int, int]
) -> jax.Array:
    """Weights (bins, cells) of a window, from the samples of its RoI along both axes."""
    own = Windows(*(field[roi] for field in windows))
    row, column, corner_row, corner_column = window_products.window_corner(own, turn, shape)
    cells = jax.lax.broadcasted_iota(jnp.int32, (1, ROWS * COLUMNS), 1)

    def weights(packed: Any, cells: jax.Array, first: jax.Array) -> jax.Array:
        axis = AxisSamples(*(packed[0, :, field : field + 1] for field in range(len(AxisSamples._fields))))
        return window_products.window_weights(axis._replace(extent=axis.extent.astype(jnp.int32)), cells, first)

    y_weights = weights(y, corner_row - own.start + jax.lax.div(cells, COLUMNS), row)
    x_weights = weights(x, corner_column + jax.lax.rem(cells, COLUMNS), column)
    return jnp.concatenate([y_weights[i : i + 1] * x_weights for i in range(len(y_weights))])

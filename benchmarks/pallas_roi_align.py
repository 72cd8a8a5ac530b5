"""ROIAlign and its gradient by windows as Pallas kernels for TPUs. No TPU has run them yet, so no model uses them.

    .venv-tpu/bin/python -m benchmarks.pallas_roi_align    # compiles for three chips, see benchmarks/tpu_env.sh
    python -m benchmarks.pallas_roi_align --run            # on a TPU: differences from the products of windows, times

The kernels take windows and weights of `mrcnn_jax/ops/roi/window_products.py`, RoI after RoI and window after window.
While a window is multiplied, the next one is copied from HBM. The gradient reads a window of the map, adds its product
and writes it back, in order; it reads the next one at the same time only if the two do not overlap.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from benchmarks import cases
from benchmarks.tpu_compile import TOPOLOGIES
from benchmarks.tpu_costs import CHIPS
from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops.roi import window_products
from mrcnn_jax.ops.roi.axis import AxisSamples
from mrcnn_jax.ops.roi.pooling import _axes, roi_levels
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs
from mrcnn_jax.ops.roi.window_products import COLUMNS, ROWS, TILE, Windows

CASES = ((1, 1000, 7), (1, 100, 14), (2, 512, 7), (2, 128, 14))  # images, RoIs of each, bins
STRIDES = cases.STRIDES[:4]
Program, Shape = Callable[..., Any], tuple[int, int, int]  # shape (B, H, W) of the array of all levels
NUM_SCALARS = len(Windows._fields)  # of each RoI, in the memory of the scalar unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="on a TPU")
    if parser.parse_args().run:
        print("| RoIs | kernel, ms | products of windows, ms | largest difference |\n|---|---|---|---|")
        for name, ours, products, arguments, _ in programs():
            (seconds, result), (other_seconds, other) = (measure(side, arguments) for side in (ours, products))
            difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), result, other)
            largest = max(jax.tree.leaves(difference))
            print(f"| {name} | {1000 * seconds:.2f} | {1000 * other_seconds:.2f} | {largest:.2g} |")
        return
    # Before libtpu is loaded, which would otherwise look for the TPUs of the machine.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    jax.config.update("jax_platforms", "cpu")
    print("The kernels compile. Their copies take at least, at the bandwidth:\n")
    print(f"| RoIs | windows | GB | {', '.join(TOPOLOGIES)}, ms |\n|---|---|---|---|")
    for name, ours, _, arguments, (windows, num_bytes) in programs():
        for topology in TOPOLOGIES.values():
            devices = topologies.get_topology_desc(topology, platform="tpu").devices
            sharding = jax.sharding.SingleDeviceSharding(devices[0])
            jax.jit(ours, in_shardings=sharding, out_shardings=sharding).lower(*arguments).compile()
        times = ", ".join(f"{1000 * num_bytes / CHIPS[chip].bandwidth:.2f}" for chip in TOPOLOGIES)
        print(f"| {name} | {windows} | {num_bytes / 1e9:.2f} | {times} |", flush=True)


def programs() -> Iterator[tuple[str, Program, Program, tuple[Any, ...], tuple[int, int]]]:
    """Name, kernel, products of windows, arguments, and the kernel's windows and bytes copied, in bfloat16."""
    for images, count, size in CASES:
        case = cases.Case("roi_align", images)
        maps = tuple(level.astype(jnp.bfloat16) for level in cases.feature_maps(case)[: len(STRIDES)])
        boxes = cases.rois(case, count).reshape(-1, 4)
        rois = RoIs(boxes, roi_levels(boxes) - 2, np.repeat(np.arange(images, dtype=np.int32), count))
        shape = (len(boxes), size, size, cases.CHANNELS)
        cotangent = np.random.default_rng(0).standard_normal(shape, np.float32).astype(jnp.bfloat16)
        windows = int(jnp.sum(_pool(_windows, size, maps, rois).number[:-1]))
        values = windows * ROWS * COLUMNS * cases.CHANNELS
        for name, functions, arguments, num_bytes in (
            ("", (forward, window_products.forward), (maps, rois), 2 * values),
            (", gradient", (backward, window_products.backward), (maps, rois, cotangent), 2 * 4 * values),
        ):
            ours, products = (functools.partial(_pool, function, size) for function in functions)
            yield f"{len(boxes)}, {size}x{size}{name}", ours, products, arguments, (windows, num_bytes)


def _pool(function: Callable[..., Any], size: int, maps: FeatureMaps, rois: RoIs, *cotangent: jax.Array) -> Any:
    scales = tuple(1 / stride for stride in STRIDES)
    return function(maps, rois, *_axes(rois, maps, scales=scales, bins=(size, size), config=RoIConfig()), *cotangent)


def measure(program: Program, arguments: tuple[Any, ...]) -> tuple[float, Any]:
    """Median seconds, without those of compilation, and the result."""
    run = functools.partial(jax.jit(program), *jax.device_put(arguments))
    result = jax.block_until_ready(run())
    return statistics.median(timeit.repeat(lambda: jax.block_until_ready(run()), number=1, repeat=20)), result


def forward(features: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, *, interpret: Any = False) -> jax.Array:
    """Pooled features, see `mrcnn_jax/ops/roi/kernels.py`. `interpret`: of `pl.pallas_call`, to run on a CPU."""
    joined, x_padded = window_products.join(features), window_products.pad_bins(x)
    bins = y.first.shape[1], x_padded.first.shape[1]
    result = jax.ShapeDtypeStruct((len(rois.boxes), bins[0] * bins[1], joined.shape[-1]), joined.dtype)
    arguments = _windows(features, rois, y, x), _pack(y), _pack(x_padded), joined
    pooled = _call(_forward_kernel, arguments, result, interpret)
    return pooled.reshape(-1, *bins, joined.shape[-1])[:, :, : x.first.shape[1]]


def backward(
    like: FeatureMaps, rois: RoIs, y: AxisSamples, x: AxisSamples, cotangent: jax.Array, *, interpret: Any = False
) -> FeatureMaps:
    """Transpose of `forward`."""
    shape, starts = window_products.joined_shape(like)
    zeros = jnp.zeros((*shape, cotangent.shape[-1]), jnp.float32)
    bins = jnp.pad(cotangent, ((0, 0), (0, 0), (0, -cotangent.shape[2] % TILE), (0, 0)))
    bins = bins.reshape(len(bins), -1, bins.shape[-1])
    arguments = _windows(like, rois, y, x), _pack(y), _pack(window_products.pad_bins(x)), bins, zeros
    joined = _call(_backward_kernel, arguments, zeros, interpret)
    levels = zip(starts, like, strict=True)
    return tuple(joined[:, s : s + f.shape[1], : f.shape[2]].astype(f.dtype) for s, f in levels)


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


def _forward_kernel(*refs: Any, shape: Shape) -> None:
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


def _backward_kernel(*refs: Any, shape: Shape) -> None:
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
    windows: Windows, roi: jax.Array, maps: Any, buffers: Any, slot: Any, semaphores: Any, shape: Shape
) -> Callable[..., Any]:
    """Function from RoI, index of a window and buffer to a copy. Starts the very first one.

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


def _corner(windows: Windows, roi: jax.Array, turn: jax.Array, shape: Shape) -> tuple[Any, ...]:
    """Index of a window in the array of all levels."""
    own = Windows(*(field[roi] for field in windows))
    *_, row, column = window_products.window_corner(own, turn, shape)
    return own.image, pl.ds(row, ROWS), pl.ds(pl.multiple_of(column, TILE), COLUMNS)


def _disjoint(windows: Windows, a: Any, b: Any, shape: Shape) -> jax.Array:
    """Whether two windows have no cell in common."""
    (image, rows, columns), (other_image, other_rows, other_columns) = (_corner(windows, *w, shape) for w in (a, b))
    apart = abs(rows.start - other_rows.start) >= ROWS
    return (image != other_image) | apart | (abs(columns.start - other_columns.start) >= COLUMNS)


def _weights(y: Any, x: Any, windows: Windows, roi: jax.Array, turn: jax.Array, shape: Shape) -> jax.Array:
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


if __name__ == "__main__":
    main()

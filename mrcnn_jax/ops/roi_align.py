"""ROIAlign (He et al. 2017, section 3) over one feature map or a pyramid, with its gradient.

A bin of a RoI is the mean of bilinear samples on a regular grid. Both the samples and the rule for samples outside of
the map are separable, so a bin is `sum_yx wy[y] wx[x] feature[y, x]`, where the weight of a cell is the sum of the
hat functions of the samples of one axis. The samples of a bin are an arithmetic progression, hence that sum has a
closed form (`cell_weights`): adaptive sampling costs no more than a fixed number of samples and needs no cap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

# Garbage in padding slots must not overflow; float32 has no fractions of a pixel left at such coordinates.
MAX_COORDINATE = 1e7
TINY = 1e-30  # stands for a step of zero

LevelRule = Literal["detectron2", "torchvision"]


class Axis(NamedTuple):
    """The samples of R RoIs along one axis of a feature map with `extent` cells; cell i has its centre at i.

    Sample s of bin b lies at `first[:, b] + s * step`, for 0 <= s < count. Those outside of begin..end count nothing.
    """

    first: jax.Array  # (R, bins) float32, the lowest sample of each bin
    step: jax.Array  # (R, 1) float32, >= 0
    begin: jax.Array  # (R, bins) float32, the first sample that lies on the map or at most one cell away
    end: jax.Array  # (R, bins) float32, one past the last such sample
    count: jax.Array  # (R, 1) float32, samples in a bin; a whole number >= 0
    extent: jax.Array  # (R, 1) int32


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    *,
    scale: float,
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> jax.Array:
    """Pool each box from one feature map.

    Args:
        features: (H, W, Ch) float32 or bfloat16.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image. NaN counts as 0. They get no gradient.
        scale: cells of the feature map per pixel, for example 1 / 16.
        output_size: bins, one number or (height, width).
        sampling_ratio: samples per bin and direction; 0: adaptive, as many as the bin has cells.
        aligned: True shifts by half a cell, so that cell centres are sampled where they lie (Detectron2); False is
            the original rule, which also takes boxes smaller than a cell as one cell (torchvision's default).

    Returns:
        (R, height, width, Ch) in the features' dtype; sums are taken in float32.
    """
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    return _pool((features,), boxes, levels, (scale,), output_size, sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    *,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    level_rule: LevelRule = "detectron2",
) -> jax.Array:
    """Pool each box from the level of the pyramid that suits its size (Lin et al. 2017, equation 1).

    Args:
        features: one (H_l, W_l, Ch) map for each level, finest first; strides must be consecutive powers of two.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image.
        strides: pixels of the image per cell of each level.
        output_size: as in `roi_align`, as are sampling_ratio and aligned.
        sampling_ratio: see there.
        aligned: see there.
        level_rule: whose epsilon the level formula has, see `roi_levels`.

    Returns:
        (R, height, width, Ch) in the features' dtype.
    """
    min_level = int(np.log2(strides[0]))
    if len(features) != len(strides) or any(s != 2 ** (min_level + i) for i, s in enumerate(strides)):
        raise ValueError(f"{len(features)} feature maps need as many strides, consecutive powers of two: {strides}")
    max_level = min_level + len(strides) - 1
    levels = roi_levels(boxes, level_rule=level_rule, min_level=min_level, max_level=max_level) - min_level
    scales = tuple(1.0 / stride for stride in strides)
    return _pool(tuple(features), boxes, levels, scales, output_size, sampling_ratio, aligned)


def roi_levels(
    boxes: jax.Array,
    *,
    level_rule: LevelRule = "detectron2",
    min_level: int = 2,
    max_level: int = 5,
    canonical_size: int = 224,
    canonical_level: int = 4,
) -> jax.Array:
    """Level of the pyramid for each box: floor(canonical_level + log2(sqrt(area) / canonical_size)), clamped.

    Args:
        boxes: (R, 4) float32.
        level_rule: "detectron2" adds 1e-8 to the ratio of sizes, "torchvision" 1e-6 to the level. They differ where
            the size is a power of two times the canonical one, up to rounding.
        min_level: the lowest level there is.
        max_level: the highest.
        canonical_size: side in pixels of a box that belongs to `canonical_level`.
        canonical_level: see there.

    Returns:
        (R,) int32, min_level..max_level. Boxes of zero, negative or non-finite area get min_level.
    """
    size = jnp.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if level_rule == "detectron2":
        level = jnp.floor(canonical_level + jnp.log2(size / canonical_size + 1e-8))
    else:
        level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    level = jnp.where(jnp.isfinite(level), level, min_level)
    return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def sample_axis(
    low: jax.Array, high: jax.Array, extent: jax.Array, *, bins: int, sampling_ratio: int, aligned: bool
) -> Axis:
    """Where the samples of each bin lie along one axis.

    Args:
        low: (R,) float32, start of the RoI in cells (continuous, cell i covers [i, i + 1]).
        high: (R,) float32, its end.
        extent: (R,) int32, cells of the map.
        bins: bins along this axis.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
    size = high - low if aligned else jnp.maximum(high - low, 1.0)
    bin_size = (size / bins)[:, None]
    count = jnp.full_like(bin_size, sampling_ratio) if sampling_ratio else jnp.maximum(jnp.ceil(bin_size), 0.0)
    divisor = jnp.maximum(count, 1.0)
    # The barrier keeps the compiler from a fused multiply-add, so that a sample that hits the border of the map
    # exactly is judged as the peers' compiled code judges it, with and without jit.
    edges = low[:, None] + jax.lax.optimization_barrier(jnp.arange(bins, dtype=jnp.float32)[None, :] * bin_size)

    def position(sample: jax.Array) -> jax.Array:
        return edges + (sample + 0.5) * bin_size / divisor

    # A RoI of negative size (possible with a fixed number of samples) is walked from its other end.
    negative = bin_size < 0
    step = jnp.abs(bin_size) / divisor
    first = position(jnp.where(negative, count - 1.0, 0.0))

    def before(limit: jax.Array | float, inclusive: bool) -> jax.Array:
        """How many samples lie below the limit (or on it): an estimate, put right by looking at its neighbours."""
        guess = jnp.clip(jnp.ceil((limit - first) / jnp.maximum(step, TINY)), 0.0, count)
        total = jnp.maximum(guess - 1.0, 0.0)
        for sample in (guess - 1.0, guess):
            at = position(jnp.where(negative, count - 1.0 - sample, sample))
            hit = (at <= limit) if inclusive else (at < limit)
            total = total + (hit & (sample >= 0.0) & (sample < count))
        return total

    extents = extent[:, None]
    begin = before(-1.0, inclusive=False)
    end = before(extents.astype(jnp.float32), inclusive=True)
    return Axis(first, step, begin, end, count, extents)


def cell_weights(axis: Axis, cells: jax.Array) -> jax.Array:
    """Weight of cells in the bins: the mean over the bin's samples of each sample's bilinear weight at the cell.

    A sample between -1 and 0, or between extent - 1 and extent, belongs wholly to the border cell; further out it
    counts nothing but still divides. Samples per bin enter in closed form, at the same cost whatever their number.

    Args:
        axis: leaves (R, ...) that broadcast against `cells`.
        cells: int32, 0 <= cell < extent.

    Returns:
        float32 of the shape that `cells` and `axis.first` broadcast to.
    """
    start = axis.first - cells.astype(jnp.float32)  # the first sample, seen from the cell
    # Where all samples coincide, dividing by a tiny step counts all or none of them, as it should. Rounding may count
    # a sample on the wrong side of a cell's centre, which moves the result by rounding only: the hat is continuous.
    inverse = 1.0 / jnp.maximum(axis.step, TINY)
    is_first, is_last = cells == 0, cells == axis.extent - 1
    below = jnp.clip(jnp.ceil((-1.0 - start) * inverse), axis.begin, axis.end)  # samples before the cell on the left
    below = jnp.where(is_first, axis.begin, below)
    middle = jnp.clip(jnp.ceil(-start * inverse), below, axis.end)  # samples before this cell's centre
    above = jnp.clip(jnp.ceil((1.0 - start) * inverse), middle, axis.end)  # samples before the cell on the right
    above = jnp.where(is_last, axis.end, above)

    def total(begin: jax.Array, end: jax.Array) -> jax.Array:
        """Sum of the positions of samples begin..end-1, seen from the cell."""
        return (end - begin) * (start + axis.step * 0.5 * (begin + end - 1.0))

    left = (middle - below) + jnp.where(is_first, 0.0, total(below, middle))
    right = (above - middle) - jnp.where(is_last, 0.0, total(middle, above))
    return (left + right) / jnp.maximum(axis.count, 1.0)


def cell_range(axis: Axis) -> tuple[jax.Array, jax.Array]:
    """First and last cell (both included) that can have weight in each bin; two (R, bins) int32 within the map.

    A bin whose samples all lie outside of the map, or that has none, gets an empty range (last < first).
    """
    extent = axis.extent.astype(jnp.float32)
    low = jnp.clip(jnp.floor(axis.first + axis.begin * axis.step), 0.0, extent - 1.0).astype(jnp.int32)
    high = jnp.clip(jnp.floor(axis.first + (axis.end - 1.0) * axis.step) + 1.0, 0.0, extent - 1.0).astype(jnp.int32)
    return low, jnp.where(axis.begin < axis.end, high, low - 1)


class _RoIs(NamedTuple):
    """R RoIs of a batch of images."""

    boxes: jax.Array  # (R, 4) float32
    levels: jax.Array  # (R,) int32, index of the feature map
    images: jax.Array  # (R,) int32, index of the image


Maps = tuple[jax.Array, ...]  # (B, H_l, W_l, Ch) for each level


def _pool(
    features: Maps,
    boxes: jax.Array,
    levels: jax.Array,
    scales: tuple[float, ...],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> jax.Array:
    """Add the image axis that the core has, and hand over to it."""
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    boxes = jnp.nan_to_num(jax.lax.stop_gradient(boxes.astype(jnp.float32)))
    boxes = jnp.clip(boxes, -MAX_COORDINATE, MAX_COORDINATE)
    rois = _RoIs(boxes, levels, jnp.zeros_like(levels))
    core = _make_core(scales, (height, width), sampling_ratio, aligned)
    return core(tuple(f[None] for f in features), rois)


@functools.lru_cache(maxsize=None)
def _make_core(
    scales: tuple[float, ...], output_size: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Callable[[Maps, _RoIs], jax.Array]:
    """ROIAlign of RoIs in a batch of images: (B, H_l, W_l, Ch) for each level and R RoIs -> (R, h, w, Ch).

    `vmap` makes the batch longer (`_merge`) instead of batching the loops inside, which would run every image for as
    long as the slowest one, on copies.
    """
    axes = functools.partial(_axes, scales=scales, bins=output_size, sampling_ratio=sampling_ratio, aligned=aligned)

    @custom_vmap
    def forward(features: Maps, rois: _RoIs) -> jax.Array:
        return _forward(features, rois, *axes(rois, features))

    @forward.def_vmap
    def _(size: int, batched: Any, features: Maps, rois: _RoIs) -> tuple[jax.Array, bool]:
        if not any(batched[0]):  # many sets of boxes on the same maps
            shared = _broadcast(size, batched[1], rois)
            result = forward(features, jax.tree.map(_join, shared))
        else:
            result = forward(*_merge(size, batched, features, rois))
        return _split(size, result), True

    @custom_vmap
    def backward(like: Maps, rois: _RoIs, cotangent: jax.Array) -> Maps:
        return _backward(like, rois, *axes(rois, like), cotangent)

    @backward.def_vmap
    def _(size: int, batched: Any, like: Maps, rois: _RoIs, cotangent: jax.Array) -> tuple[Maps, Any]:
        cotangent = _broadcast(size, batched[2], cotangent)
        result = backward(*_merge(size, batched, like, rois), _join(cotangent))
        return tuple(_split(size, g) for g in result), tuple(True for _ in result)

    @jax.custom_vjp
    def core(features: Maps, rois: _RoIs) -> jax.Array:
        return forward(features, rois)

    def core_forward(features: Maps, rois: _RoIs) -> tuple[jax.Array, tuple[Maps, _RoIs]]:
        # The gradient needs the maps' shapes and dtypes only; arrays without channels carry them.
        return forward(features, rois), (tuple(f[..., :0] for f in features), rois)

    def core_backward(residuals: tuple[Maps, _RoIs], cotangent: jax.Array) -> tuple[Maps, None]:
        return backward(*residuals, cotangent), None

    core.defvjp(core_forward, core_backward)
    return core


def _broadcast(size: int, batched: Any, tree: Any) -> Any:
    """Give every leaf the axis that `vmap` maps."""
    return jax.tree.map(lambda b, x: x if b else jnp.broadcast_to(x[None], (size, *x.shape)), batched, tree)


def _join(x: jax.Array) -> jax.Array:
    """(V, B, ...) -> (V * B, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _split(size: int, x: jax.Array) -> jax.Array:
    """The inverse of `_join`."""
    return x.reshape(size, x.shape[0] // size, *x.shape[1:])


def _merge(size: int, batched: Any, features: Maps, rois: _RoIs) -> tuple[Maps, _RoIs]:
    """Turn V batches of B images, each with R RoIs, into one batch of V * B images with V * R RoIs."""
    features = _broadcast(size, batched[0], features)
    rois = _broadcast(size, batched[1], rois)
    offsets = jnp.arange(size, dtype=jnp.int32)[:, None] * features[0].shape[1]
    rois = rois._replace(images=rois.images + offsets)
    return tuple(_join(f) for f in features), jax.tree.map(_join, rois)


def _axes(
    rois: _RoIs,
    features: Maps,
    *,
    scales: tuple[float, ...],
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Axis, Axis]:
    """Samples of the RoIs along y and x, each on its own level."""
    extents = jnp.asarray([f.shape[1:3] for f in features], jnp.int32)[rois.levels]
    boxes = rois.boxes * jnp.asarray(scales, jnp.float32)[rois.levels][:, None]
    options: dict[str, Any] = {"sampling_ratio": sampling_ratio, "aligned": aligned}
    return (
        sample_axis(boxes[:, 1], boxes[:, 3], extents[:, 0], bins=bins[0], **options),
        sample_axis(boxes[:, 0], boxes[:, 2], extents[:, 1], bins=bins[1], **options),
    )


def _forward(features: Maps, rois: _RoIs, y: Axis, x: Axis) -> jax.Array:
    """Add up the cells of the bins, one cell of every bin at a time, from all levels laid out in one array."""
    channels = features[0].shape[-1]
    flat = jnp.concatenate([f.reshape(-1, channels) for f in features])
    steps, taps = _walk(features, rois, y, x)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        index, weight = taps(k)
        return total + flat[index].astype(jnp.float32) * weight[..., None]

    shape = (*y.first.shape, x.first.shape[1], channels)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros(shape, jnp.float32)).astype(flat.dtype)


def _backward(like: Maps, rois: _RoIs, y: Axis, x: Axis, cotangent: jax.Array) -> Maps:
    """The transpose of `_forward`."""
    channels = cotangent.shape[-1]
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in like]
    steps, taps = _walk(like, rois, y, x)
    cotangent = cotangent.astype(jnp.float32)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        index, weight = taps(k)
        return total.at[index].add(cotangent * weight[..., None])

    total = jax.lax.fori_loop(0, steps, add, jnp.zeros((sum(sizes), channels), jnp.float32))
    parts = jnp.split(total, np.cumsum(sizes)[:-1].tolist())
    return tuple(p.reshape(f.shape[:-1] + (channels,)).astype(f.dtype) for p, f in zip(parts, like, strict=True))


def _walk(
    features: Maps, rois: _RoIs, y: Axis, x: Axis
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, jax.Array]]]:
    """The largest number of cells in a bin, and a function from k to the k-th cell of every bin.

    The function returns (index, weight), both (R, h, w); index is into the maps' cells, level after level.
    """
    sizes = [f.shape[0] * f.shape[1] * f.shape[2] for f in features]
    start = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[rois.levels]
    start = start[:, None] + rois.images[:, None] * y.extent * x.extent
    (y_low, y_high), (x_low, x_high) = cell_range(y), cell_range(x)
    rows = jnp.max(y_high - y_low + 1, axis=1, keepdims=True)
    columns = jnp.max(x_high - x_low + 1, axis=1, keepdims=True)

    def along(axis: Axis, low: jax.Array, high: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        cell = jnp.minimum(low + k, axis.extent - 1)
        return cell, jnp.where(low + k <= high, cell_weights(axis, cell), 0.0)

    def taps(k: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, column = k // jnp.maximum(columns, 1), k % jnp.maximum(columns, 1)
        y_cell, y_weight = along(y, y_low, y_high, row)
        x_cell, x_weight = along(x, x_low, x_high, column)
        index = (start + y_cell * x.extent)[:, :, None] + x_cell[:, None, :]
        return index, y_weight[:, :, None] * x_weight[:, None, :]

    return jnp.max(rows * columns, initial=0), taps

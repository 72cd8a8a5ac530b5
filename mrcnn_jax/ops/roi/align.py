"""ROIAlign (He et al. 2017, section 3) over one feature map or a pyramid, with its gradient.

Where the samples lie is in `roi_axis`, the loops that add them up are in `roi_kernels`, and what `vmap` does with them
is in `roi_batch`. The alternatives to it (`roi_pooling`) share all of this but the loops of a maximum, `roi_max`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.roi import kernels, max_pool
from mrcnn_jax.ops.roi.axis import Axis, sample_axis
from mrcnn_jax.ops.roi.kernels import Maps, RoIs
from mrcnn_jax.ops.roi.quantized import cell_axis, quantized_rois
from mrcnn_jax.ops.roi.vmap_rule import flatten_batch

# Garbage in padding slots must not overflow; float32 has no fractions of a pixel left at such coordinates.
MAX_COORDINATE = 1e7

LevelRule = Literal["detectron2", "torchvision"]
Pooling = Literal["align", "warp", "pool"]
Reduction = Literal["average", "max"]


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
        aligned: True shifts by half a cell, so that cell centers are sampled where they lie (Detectron2); False is
            the original rule, which also takes boxes smaller than a cell as one cell (torchvision's default).

    Returns:
        (R, height, width, Ch) in the features' dtype; sums are taken in float32.
    """
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    return pool((features,), boxes, levels, (scale,), output_size, sampling_ratio, aligned)


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
    levels, scales = choose_levels(features, boxes, strides, level_rule)
    return pool(tuple(features), boxes, levels, scales, output_size, sampling_ratio, aligned)


def choose_levels(
    features: Sequence[jax.Array], boxes: jax.Array, strides: Sequence[int], level_rule: LevelRule
) -> tuple[jax.Array, tuple[float, ...]]:
    """Index (R,) int32 of the map that each box is pooled from, and the maps' scales. Arguments as of the pooling."""
    min_level = int(np.log2(strides[0]))
    if len(features) != len(strides) or any(s != 2 ** (min_level + i) for i, s in enumerate(strides)):
        raise ValueError(f"{len(features)} feature maps need as many strides, consecutive powers of two: {strides}")
    max_level = min_level + len(strides) - 1
    levels = roi_levels(boxes, level_rule=level_rule, min_level=min_level, max_level=max_level) - min_level
    return levels, tuple(1.0 / stride for stride in strides)


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


def pool(
    features: Maps,
    boxes: jax.Array,
    levels: jax.Array,
    scales: tuple[float, ...],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    pooling: Pooling = "align",
    reduce: Reduction = "average",
) -> jax.Array:
    """Add the image axis that the core has, and hand over to it. Arguments as of `roi_pooling`."""
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    boxes = jnp.nan_to_num(jax.lax.stop_gradient(boxes.astype(jnp.float32)))
    boxes = jnp.clip(boxes, -MAX_COORDINATE, MAX_COORDINATE)
    if boxes.shape[0] == 0:
        return jnp.zeros((0, height, width, features[0].shape[-1]), features[0].dtype)
    rois = RoIs(boxes, levels, jnp.zeros_like(levels))
    core = _make_core(scales, (height, width), sampling_ratio, aligned, pooling, reduce)
    return core(tuple(f[None] for f in features), rois)


@functools.cache
def _make_core(
    scales: tuple[float, ...],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    pooling: Pooling,
    reduce: Reduction,
) -> Callable[[Maps, RoIs], jax.Array]:
    """Pooling of RoIs in a batch of images: (B, H_l, W_l, Ch) for each level and R RoIs -> (R, h, w, Ch)."""
    options: dict[str, Any] = {"sampling_ratio": sampling_ratio, "aligned": aligned, "pooling": pooling}
    axes: max_pool.Axes = functools.partial(_axes, scales=scales, bins=output_size, **options)
    if reduce == "max":
        return max_pool.make_core(axes, samples=0 if pooling == "pool" else sampling_ratio**2)

    @functools.partial(flatten_batch, per_roi=True)
    def forward(features: Maps, rois: RoIs) -> jax.Array:
        return kernels.forward(features, rois, *axes(rois, features))

    @functools.partial(flatten_batch, per_roi=False)
    def backward(like: Maps, rois: RoIs, cotangent: jax.Array) -> Maps:
        return kernels.backward(like, rois, *axes(rois, like), cotangent)

    @jax.custom_vjp
    def core(features: Maps, rois: RoIs) -> jax.Array:
        return forward(features, rois)

    def core_forward(features: Maps, rois: RoIs) -> tuple[jax.Array, tuple[Maps, RoIs]]:
        # The gradient needs the maps' shapes and dtypes only; arrays without channels carry them.
        return forward(features, rois), (tuple(f[..., :0] for f in features), rois)

    def core_backward(residuals: tuple[Maps, RoIs], cotangent: jax.Array) -> tuple[Maps, None]:
        return backward(*residuals, cotangent), None

    core.defvjp(core_forward, core_backward)
    return core


def _axes(
    rois: RoIs,
    features: Maps,
    *,
    scales: tuple[float, ...],
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    pooling: Pooling = "align",
) -> tuple[Axis, Axis]:
    """Samples of the RoIs along y and x, each on its own level."""
    extents = jnp.asarray([f.shape[1:3] for f in features], jnp.int32)[rois.levels]
    boxes = rois.boxes * jnp.asarray(scales, jnp.float32)[rois.levels][:, None]

    def along(axis: int) -> Axis:
        low, high, extent = boxes[:, 1 - axis], boxes[:, 3 - axis], extents[:, axis]
        if pooling == "pool":
            return cell_axis(low, high, extent, bins=bins[axis])
        if pooling == "warp":
            start, size = quantized_rois(low, high)
            low, high = start, start + size
        half_pixel = aligned or pooling == "warp"
        return sample_axis(low, high, extent, bins=bins[axis], sampling_ratio=sampling_ratio, aligned=half_pixel)

    return along(0), along(1)

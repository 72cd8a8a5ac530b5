"""RoI pooling: ROIAlign (He et al. 2017, section 3) and the alternatives that the paper compares it with.

`RoIConfig.pooling` (tables 2c, 2d and 6) is one of

- "align": bilinear samples in the exact RoI (ROIAlign).
- "warp": the RoI is rounded to whole cells, then sampled like ROIAlign with the half-pixel shift (RoIWarp).
- "pool": the RoI is rounded to whole cells, and a bin consists of the cells that it touches (RoIPool).

Each bin is the average or the maximum (`RoIConfig.reduce`) of its samples or cells. Samples more than a cell outside of
the map are 0; cells outside of the map are left out, and a bin without cells is 0. The gradient of a maximum goes to
the first of equal values in row-major order, for each channel separately.

Sample positions are computed in `axis` and `quantized`, sums over samples in `kernels`, maxima in `max_pool`;
`vmap_rule` batches them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops.roi import kernels, max_pool
from mrcnn_jax.ops.roi.axis import AxisSamples, axis_samples
from mrcnn_jax.ops.roi.quantized import bin_cells, quantize
from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs
from mrcnn_jax.ops.roi.vmap_rule import flatten_batch

# Limit of box coordinates, so that garbage in padding does not overflow. At this size float32 has no fractions.
MAX_COORDINATE = 1e7

Size = int | tuple[int, int]  # number of bins, or (height, width)


def roi_align(
    features: jax.Array, boxes: jax.Array, *, scale: float, output_size: Size, sampling_ratio: int, aligned: bool
) -> jax.Array:
    """ROIAlign of boxes on one feature map.

    Args:
        features: (H, W, Ch) float32 or bfloat16.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image. NaN counts as 0. They get no gradient.
        scale: cells of the feature map per pixel, for example 1 / 16.
        output_size: number of bins, an int or (height, width).
        sampling_ratio: samples per bin and direction; 0 is adaptive, as many as the bin has cells, rounded up.
        aligned: shift boxes by half a cell, so that cell i has its center at i + 1/2 (Detectron2). Without the shift,
            sides of boxes are at least one cell (torchvision's default).

    Returns:
        (R, height, width, Ch) in the features' dtype; sums are taken in float32.
    """
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    return _pool(
        (features,), boxes, levels, (scale,), output_size, RoIConfig(sampling_ratio=sampling_ratio, aligned=aligned)
    )


def multilevel_roi_pooling(
    features: Sequence[jax.Array], boxes: jax.Array, config: RoIConfig, *, strides: Sequence[int], output_size: Size
) -> jax.Array:
    """Pool each box from the pyramid level that matches its size (Lin et al. 2017, equation 1).

    Args:
        features: one (..., H_l, W_l, Ch) map for each level, finest first. Leading axes, if any, are images.
        boxes: (..., R, 4) float32, see `roi_align`.
        config: how to choose levels and to pool.
        strides: pixels of the image per cell of each level, consecutive powers of two.
        output_size: see `roi_align`.

    Returns:
        (..., R, height, width, Ch) in the features' dtype; sums are taken in float32.

    Raises:
        ValueError: if strides are not consecutive powers of two, one for each map; if maps and boxes differ in their
            leading axes; for a maximum of samples with an adaptive number of them.
    """
    min_level = int(np.log2(strides[0]))
    if len(features) != len(strides) or any(s != 2 ** (min_level + i) for i, s in enumerate(strides)):
        raise ValueError(f"{len(features)} feature maps need as many strides, consecutive powers of two, got {strides}")
    max_level = min_level + len(strides) - 1
    levels = roi_levels(boxes, level_rule=config.level_rule, min_level=min_level, max_level=max_level) - min_level
    scales = tuple(1.0 / stride for stride in strides)
    return _pool(tuple(features), boxes, levels, scales, output_size, config)


def roi_levels(
    boxes: jax.Array, *, level_rule: str = "detectron2", min_level: int = 2, max_level: int = 5
) -> jax.Array:
    """Pyramid level of each box: floor(4 + log2(sqrt(area) / 224)), clamped (Lin et al. 2017, equation 1).

    Args:
        boxes: (..., R, 4) float32.
        level_rule: "detectron2" adds 1e-8 to the ratio of sizes, "torchvision" adds 1e-6 to the level. They differ
            where the size is, up to rounding, 224 times a power of two.
        min_level: lowest level.
        max_level: highest level.

    Returns:
        (..., R) int32, min_level..max_level. Boxes of zero, negative or non-finite area get min_level.
    """
    size = jnp.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
    if level_rule == "detectron2":
        level = jnp.floor(4 + jnp.log2(size / 224 + 1e-8))
    else:
        level = jnp.floor(4 + jnp.log2(size / 224) + 1e-6)
    level = jnp.where(jnp.isfinite(level), level, min_level)
    return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def _pool(
    features: FeatureMaps,
    boxes: jax.Array,
    levels: jax.Array,
    scales: tuple[float, ...],
    output_size: Size,
    config: RoIConfig,
) -> jax.Array:
    """Pool boxes (..., R, 4) from maps (..., H_l, W_l, Ch), each from the map with index `levels` (..., R)."""
    if any(f.shape[:-3] != boxes.shape[:-2] for f in features):
        raise ValueError(f"feature maps {[f.shape for f in features]} and boxes {boxes.shape} have other leading axes")
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    boxes = jnp.nan_to_num(jax.lax.stop_gradient(boxes.astype(jnp.float32)))
    boxes = jnp.clip(boxes, -MAX_COORDINATE, MAX_COORDINATE)
    if boxes.size == 0:
        return jnp.zeros((*boxes.shape[:-1], *bins, features[0].shape[-1]), features[0].dtype)
    count = math.prod(boxes.shape[:-2])
    images = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[:, None], (count, boxes.shape[-2]))
    rois = RoIs(boxes.reshape(-1, 4), levels.reshape(-1), images.reshape(-1))
    pooled = _make_pool(scales, bins, config)(tuple(f.reshape(-1, *f.shape[-3:]) for f in features), rois)
    return pooled.reshape(*boxes.shape[:-1], *pooled.shape[1:])


@functools.cache
def _make_pool(
    scales: tuple[float, ...], bins: tuple[int, int], config: RoIConfig
) -> Callable[[FeatureMaps, RoIs], jax.Array]:
    """Differentiable pooling of RoIs in a batch: maps (B, H_l, W_l, Ch) of each level and R RoIs -> (R, h, w, Ch)."""
    axes: max_pool.Axes = functools.partial(_axes, scales=scales, bins=bins, config=config)
    if config.reduce == "max":
        if config.pooling != "pool" and config.sampling_ratio < 1:
            raise ValueError(
                f"a maximum needs a fixed number of samples, but sampling_ratio is {config.sampling_ratio}"
            )
        return max_pool.make_max_pool(axes, samples=0 if config.pooling == "pool" else config.sampling_ratio**2)

    @functools.partial(flatten_batch, per_roi=True)
    def forward(features: FeatureMaps, rois: RoIs) -> jax.Array:
        return kernels.forward(features, rois, *axes(rois, features))

    @functools.partial(flatten_batch, per_roi=False)
    def backward(like: FeatureMaps, rois: RoIs, cotangent: jax.Array) -> FeatureMaps:
        return kernels.backward(like, rois, *axes(rois, like), cotangent)

    @jax.custom_vjp
    def pool(features: FeatureMaps, rois: RoIs) -> jax.Array:
        return forward(features, rois)

    def pool_fwd(features: FeatureMaps, rois: RoIs) -> tuple[jax.Array, tuple[FeatureMaps, RoIs]]:
        # The gradient needs only shapes and dtypes of the maps; arrays without channels store them.
        return forward(features, rois), (tuple(f[..., :0] for f in features), rois)

    def pool_bwd(residuals: tuple[FeatureMaps, RoIs], cotangent: jax.Array) -> tuple[FeatureMaps, None]:
        return backward(*residuals, cotangent), None

    pool.defvjp(pool_fwd, pool_bwd)
    return pool


def _axes(
    rois: RoIs, features: FeatureMaps, *, scales: tuple[float, ...], bins: tuple[int, int], config: RoIConfig
) -> tuple[AxisSamples, AxisSamples]:
    """Samples of the RoIs along y and x, on the level of each."""
    extents = jnp.asarray([f.shape[1:3] for f in features], jnp.int32)[rois.levels]
    boxes = rois.boxes * jnp.asarray(scales, jnp.float32)[rois.levels][:, None]
    aligned = config.aligned or config.pooling == "warp"

    def along(axis: int) -> AxisSamples:
        low, high, extent = boxes[:, 1 - axis], boxes[:, 3 - axis], extents[:, axis]
        if config.pooling == "pool":
            return bin_cells(low, high, extent, bins=bins[axis])
        if config.pooling == "warp":
            start, size = quantize(low, high)
            low, high = start, start + size
        return axis_samples(low, high, extent, bins=bins[axis], sampling_ratio=config.sampling_ratio, aligned=aligned)

    return along(0), along(1)

"""RoI pooling: ROIAlign and the alternatives that He et al. 2017 compare it with (tables 2c, 2d and 6).

- "align": bilinear samples in the exact RoI (ROIAlign).
- "warp": the RoI is rounded to whole cells, then sampled like ROIAlign with the half-pixel shift (RoIWarp).
- "pool": the RoI is rounded to whole cells, and a bin consists of the cells that it touches (RoIPool).

Each bin is the average or the maximum of its samples or cells. The gradient of a maximum goes to the first of equal
values in row-major order, for each channel separately. "align" with "average" is `roi_align`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.align import LevelRule, Pooling, Reduction, assign_levels, pool_boxes


def roi_pooling(
    features: jax.Array,
    boxes: jax.Array,
    *,
    scale: float,
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    pooling: Pooling,
    reduce: Reduction,
) -> jax.Array:
    """Pool boxes from one feature map.

    Args:
        features: (H, W, Ch) float32 or bfloat16.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image. NaN counts as 0. They get no gradient.
        scale: cells of the feature map per pixel, for example 1 / 16.
        output_size: number of bins, an int or (height, width).
        sampling_ratio: samples per bin and direction; 0 is adaptive. At least 1 for a maximum of samples; not used by
            "pool".
        aligned: see `roi_align`; used by "align" only.
        pooling: "align", "warp" or "pool", see above.
        reduce: "average" or "max". In both, samples more than a cell outside of the map are 0, and cells outside of
            the map are left out. A bin without cells is 0.

    Returns:
        (R, height, width, Ch) in the features' dtype; sums are taken in float32.

    Raises:
        ValueError: for a maximum of samples with an adaptive number of them.
    """
    _check(sampling_ratio, pooling, reduce)
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    return pool_boxes((features,), boxes, levels, (scale,), output_size, sampling_ratio, aligned, pooling, reduce)


def multilevel_roi_pooling(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    *,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    level_rule: LevelRule = "detectron2",
    pooling: Pooling,
    reduce: Reduction,
) -> jax.Array:
    """Pool each box from the pyramid level that matches its size; the level does not depend on rounding to cells.

    Args:
        features: see `multilevel_roi_align`.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image.
        strides: see `multilevel_roi_align`.
        output_size: see `roi_pooling`.
        sampling_ratio: see `roi_pooling`.
        aligned: see `roi_pooling`.
        level_rule: see `roi_levels`.
        pooling: see `roi_pooling`.
        reduce: see `roi_pooling`.

    Returns:
        (R, height, width, Ch) in the features' dtype.
    """
    _check(sampling_ratio, pooling, reduce)
    levels, scales = assign_levels(features, boxes, strides, level_rule)
    return pool_boxes(tuple(features), boxes, levels, scales, output_size, sampling_ratio, aligned, pooling, reduce)


def _check(sampling_ratio: int, pooling: Pooling, reduce: Reduction) -> None:
    if reduce == "max" and pooling != "pool" and sampling_ratio < 1:
        raise ValueError(f"a maximum of samples needs a fixed number of them, but sampling_ratio is {sampling_ratio}")

"""ROIAlign and the alternatives that He et al. 2017 compare it with (tables 2c, 2d and 6), behind one switch.

- "align": bilinear samples in the RoI as it is (ROIAlign).
- "warp": the RoI is rounded to whole cells, then sampled as ROIAlign does it, with the half-pixel shift (RoIWarp).
- "pool": the RoI is rounded to whole cells, and a bin is made of the cells that it touches (RoIPool).

Each takes the average or the maximum of a bin's samples or cells. The gradient of a maximum goes to the first of the
largest, row by row, separately for each channel. Average and align together are `roi_align`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.align import LevelRule, Pooling, Reduction, choose_levels, pool


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
    """Pool each box from one feature map.

    Args:
        features: (H, W, Ch) float32 or bfloat16.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image. NaN counts as 0. They get no gradient.
        scale: cells of the feature map per pixel, for example 1 / 16.
        output_size: bins, one number or (height, width).
        sampling_ratio: samples per bin and direction, at least 1 for a maximum of samples; 0: adaptive. Cells are not
            sampled: "pool" has no use for it.
        aligned: see `roi_align`; of "align" only.
        pooling: "align", "warp" or "pool", see above.
        reduce: "average" or "max". Samples more than a cell off the map count as 0 in both; cells off the map do not
            count. A bin that has no cell is 0.

    Returns:
        (R, height, width, Ch) in the features' dtype; sums are taken in float32.
    """
    _check(sampling_ratio, pooling, reduce)
    levels = jnp.zeros(boxes.shape[:1], jnp.int32)
    return pool((features,), boxes, levels, (scale,), output_size, sampling_ratio, aligned, pooling, reduce)


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
    """Pool each box from the level of the pyramid that suits its size.

    Args:
        features: as in `multilevel_roi_align`, as are strides and level_rule: a box has its level before it is rounded.
        boxes: (R, 4) float32, x0 y0 x1 y1 in pixels of the image.
        strides: see `features`.
        output_size: as in `roi_pooling`, as are sampling_ratio, aligned, pooling and reduce.
        sampling_ratio: see there.
        aligned: see there.
        level_rule: see `features`.
        pooling: see `output_size`.
        reduce: see there.

    Returns:
        (R, height, width, Ch) in the features' dtype.
    """
    _check(sampling_ratio, pooling, reduce)
    levels, scales = choose_levels(features, boxes, strides, level_rule)
    return pool(tuple(features), boxes, levels, scales, output_size, sampling_ratio, aligned, pooling, reduce)


def _check(sampling_ratio: int, pooling: Pooling, reduce: Reduction) -> None:
    if reduce == "max" and pooling != "pool" and sampling_ratio < 1:
        raise ValueError(f"a maximum of samples needs a fixed number of them, sampling_ratio={sampling_ratio}")

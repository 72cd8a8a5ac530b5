"""RoIs rounded to whole cells (Girshick 2015, RoIPool), and the cells of their bins.

RoIWarp (Dai et al. 2016, as He et al. 2017 compare it) rounds the RoI in the same way and then samples it as ROIAlign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.axis import Axis


def quantized_rois(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """RoIs in whole cells along one axis, as torchvision's `roi_pool` rounds them.

    Args:
        low: (R,) float32, start of the RoI in cells (continuous, cell i covers [i, i + 1]).
        high: (R,) float32, its end.

    Returns:
        (start, size), two (R,) float32 of whole numbers: the RoI covers [start, start + size). Both ends are rounded,
        halves away from zero, and the last cell is included, so that the size is at least 1.
    """
    start, last = (jax.lax.round(edge, jax.lax.RoundingMethod.AWAY_FROM_ZERO) for edge in (low, high))
    return start, jnp.maximum(last - start + 1.0, 1.0)


def cell_axis(low: jax.Array, high: jax.Array, extent: jax.Array, *, bins: int) -> Axis:
    """The cells of each bin of RoIPool along one axis, as samples at their centers.

    Bin i has the cells floor(i * size / bins) to ceil((i + 1) * size / bins), one past the last, counted from the
    RoI's start: neighbors overlap where their edge cuts a cell. Cells outside of the map are left out, and do not
    divide in a mean; a bin may have none.

    Args:
        low: as of `quantized_rois`.
        high: see there.
        extent: (R,) int32, cells of the map.
        bins: bins along this axis.
    """
    start, size = (edge[:, None] for edge in quantized_rois(low, high))
    # In float32, in torchvision's order: a product that rounds across a whole number does so there as well. Without the
    # barriers the compiler would multiply by the inverse of a constant instead of dividing, or change the order.
    bin_size = size / jax.lax.optimization_barrier(jnp.full_like(size, bins))
    index = jnp.arange(bins, dtype=jnp.float32)[None, :]
    extents = extent[:, None].astype(jnp.float32)
    begin, end = jax.lax.optimization_barrier((index * bin_size, (index + 1.0) * bin_size))
    first = jnp.clip(jnp.floor(begin) + start, 0.0, extents)
    number = jnp.maximum(jnp.clip(jnp.ceil(end) + start, 0.0, extents) - first, 0.0)
    step = jnp.ones_like(bin_size)
    return Axis(first, step, jnp.zeros_like(first), number, number, extent[:, None])

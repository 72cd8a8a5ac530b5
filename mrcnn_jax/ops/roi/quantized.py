"""RoIs quantized to whole cells (RoIPool, Girshick 2015), and the cells of their bins.

RoIWarp (Dai et al. 2016, as compared in He et al. 2017) quantizes RoIs in the same way, then samples like ROIAlign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.axis import AxisSamples


def quantize(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """RoIs rounded to whole cells along one axis, as in torchvision's `roi_pool`.

    Args:
        low: (R,) float32, start of the RoI in cells (continuous, cell i covers [i, i + 1]).
        high: (R,) float32, end of the RoI.

    Returns:
        start and size (R,) float32, integers: the RoI covers [start, start + size). Both ends are rounded, halves away
        from zero, and the last cell is included, so that the size is at least 1.
    """
    start, last = (jax.lax.round(edge, jax.lax.RoundingMethod.AWAY_FROM_ZERO) for edge in (low, high))
    return start, jnp.maximum(last - start + 1.0, 1.0)


def bin_cells(low: jax.Array, high: jax.Array, extent: jax.Array, *, bins: int) -> AxisSamples:
    """Cells of each bin of RoIPool along one axis, as samples at their centers.

    Bin i has the cells from floor(i * size / bins) to ceil((i + 1) * size / bins), exclusive, relative to the start of
    the RoI; neighboring bins share a cell if their edge is inside of it. Cells outside of the map are left out and do
    not count in a mean; a bin may be empty.

    Args:
        low: see `quantize`.
        high: see `quantize`.
        extent: (R,) int32, number of cells of the map.
        bins: number of bins.
    """
    start, size = (edge[:, None] for edge in quantize(low, high))
    # The same float32 operations in the same order as in torchvision, so that floor and ceil give the same cells. The
    # barriers keep the compiler from multiplying by the inverse of a constant, and from reordering.
    bin_size = size / jax.lax.optimization_barrier(jnp.full_like(size, bins))
    index = jnp.arange(bins, dtype=jnp.float32)[None, :]
    extents = extent[:, None].astype(jnp.float32)
    begin, end = jax.lax.optimization_barrier((index * bin_size, (index + 1.0) * bin_size))
    first = jnp.clip(jnp.floor(begin) + start, 0.0, extents)
    number = jnp.maximum(jnp.clip(jnp.ceil(end) + start, 0.0, extents) - first, 0.0)
    step = jnp.ones_like(bin_size)
    return AxisSamples(first, step, jnp.zeros_like(first), number, number, extent[:, None])

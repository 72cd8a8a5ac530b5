"""Samples of ROIAlign along one axis, and the weights of feature map cells that follow from them.

A bin of a RoI is the mean of bilinear samples on a regular grid. Samples are separable, and so is the rule for those
outside of the map. A bin is therefore `sum_yx wy[y] wx[x] feature[y, x]`, where each weight is the mean of the hat
functions of the samples of one axis. The samples of a bin are equidistant, so this mean has a closed form
(`cell_weights`): adaptive sampling costs no more than a fixed number of samples, and needs no upper limit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

TINY = 1e-30  # replaces a step of zero


class AxisSamples(NamedTuple):
    """Samples of R RoIs along one axis of a feature map with `extent` cells; cell i has its center at i.

    Sample s of bin b is at `first[:, b] + s * step`, for 0 <= s < number. Samples outside of begin..end are zero.
    """

    first: jax.Array  # (R, bins) float32, the lowest sample of each bin
    step: jax.Array  # (R, 1) float32, >= 0
    begin: jax.Array  # (R, bins) float32, index of the first sample on the map or at most one cell outside
    end: jax.Array  # (R, bins) float32, one past the index of the last such sample
    number: jax.Array  # (R, 1) or (R, bins) float32, number of samples in a bin, an integer >= 0
    extent: jax.Array  # (R, 1) int32


def axis_samples(
    low: jax.Array, high: jax.Array, extent: jax.Array, *, bins: int, sampling_ratio: int, aligned: bool
) -> AxisSamples:
    """Samples of each bin along one axis.

    Args:
        low: (R,) float32, start of the RoI in cells (continuous, cell i covers [i, i + 1]).
        high: (R,) float32, end of the RoI.
        extent: (R,) int32, number of cells of the map.
        bins: number of bins.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
    size = high - low if aligned else jnp.maximum(high - low, 1.0)
    bin_size = (size / bins)[:, None]
    count = jnp.full_like(bin_size, sampling_ratio) if sampling_ratio else jnp.maximum(jnp.ceil(bin_size), 0.0)
    divisor = jnp.maximum(count, 1.0)
    # The barrier prevents a fused multiply-add, so that samples exactly on the border of the map are inside or outside
    # as in the reference implementations, with and without jit.
    edges = low[:, None] + jax.lax.optimization_barrier(jnp.arange(bins, dtype=jnp.float32)[None, :] * bin_size)

    def position(sample: jax.Array) -> jax.Array:
        return edges + (sample + 0.5) * bin_size / divisor

    # A RoI of negative size (possible with a fixed number of samples) is sampled from its other end.
    negative = bin_size < 0
    step = jnp.abs(bin_size) / divisor
    first = position(jnp.where(negative, count - 1.0, 0.0))

    def count_below(limit: jax.Array | float, inclusive: bool) -> jax.Array:
        """Number of samples below the limit, or at it if `inclusive`."""
        if sampling_ratio:
            total, candidates = jnp.zeros_like(first), [jnp.float32(sample) for sample in range(sampling_ratio)]
        else:  # adaptive samples are at least half a cell apart, so the estimate is off by at most one
            guess = jnp.clip(jnp.ceil((limit - first) / jnp.maximum(step, TINY)), 0.0, count)
            total, candidates = jnp.maximum(guess - 1.0, 0.0), [guess - 1.0, guess]
        for sample in candidates:
            sample_position = position(jnp.where(negative, count - 1.0 - sample, sample))
            below = (sample_position <= limit) if inclusive else (sample_position < limit)
            total = total + (below & (sample >= 0.0) & (sample < count))
        return total

    extents = extent[:, None]
    begin = count_below(-1.0, inclusive=False)
    end = count_below(extents.astype(jnp.float32), inclusive=True)
    return AxisSamples(first, step, begin, end, count, extents)


def cell_weights(axis: AxisSamples, cells: jax.Array) -> jax.Array:
    """Weight of cells in bins: the mean over the samples of a bin of their bilinear weights at the cell.

    A sample between -1 and 0, or between extent - 1 and extent, belongs to the border cell alone; further outside it is
    zero, but counts in the mean. The cost does not depend on the number of samples.

    Args:
        axis: fields (R, ...) that broadcast against `cells`.
        cells: int32, 0 <= cell < extent.

    Returns:
        float32 of the shape that `cells` and `axis.first` broadcast to.
    """
    start = axis.first - cells.astype(jnp.float32)  # the first sample, relative to the cell
    # If all samples coincide, dividing by a tiny step counts all or none of them, which is right. Rounding may put a
    # sample on the wrong side of a cell's center; that changes the result by rounding only, as the hat is continuous.
    inverse = 1.0 / jnp.maximum(axis.step, TINY)
    is_first, is_last = cells == 0, cells == axis.extent - 1
    below = jnp.clip(jnp.ceil((-1.0 - start) * inverse), axis.begin, axis.end)  # samples before the cell on the left
    below = jnp.where(is_first, axis.begin, below)
    middle = jnp.clip(jnp.ceil(-start * inverse), below, axis.end)  # samples before this cell's center
    above = jnp.clip(jnp.ceil((1.0 - start) * inverse), middle, axis.end)  # samples before the cell on the right
    above = jnp.where(is_last, axis.end, above)

    def total(begin: jax.Array, end: jax.Array) -> jax.Array:
        """Sum of the positions of samples begin..end-1, relative to the cell."""
        return (end - begin) * (start + axis.step * 0.5 * (begin + end - 1.0))

    left = (middle - below) + jnp.where(is_first, 0.0, total(below, middle))
    right = (above - middle) - jnp.where(is_last, 0.0, total(middle, above))
    return (left + right) / jnp.maximum(axis.number, 1.0)


def cell_range(axis: AxisSamples) -> tuple[jax.Array, jax.Array]:
    """First and last cell (inclusive) with weight in each bin: two (R, bins) int32 within the map.

    The range is empty (last < first) if a bin has no samples, or all are outside of the map.
    """
    extent = axis.extent.astype(jnp.float32)
    low = jnp.clip(jnp.floor(axis.first + axis.begin * axis.step), 0.0, extent - 1.0).astype(jnp.int32)
    high = jnp.clip(jnp.floor(axis.first + (axis.end - 1.0) * axis.step) + 1.0, 0.0, extent - 1.0).astype(jnp.int32)
    return low, jnp.where(axis.begin < axis.end, high, low - 1)


def roi_range(axis: AxisSamples) -> tuple[jax.Array, jax.Array]:
    """First and last cell (R,) of all bins of a RoI; last < first if all are empty."""
    low, high = cell_range(axis)
    not_empty = high >= low
    first = jnp.min(jnp.where(not_empty, low, jnp.iinfo(jnp.int32).max // 2), axis=1)
    return first, jnp.max(jnp.where(not_empty, high, -1), axis=1)

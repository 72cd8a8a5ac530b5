"""The samples of ROIAlign along one axis, and the weight that they give to each cell of the feature map.

A bin of a RoI is the mean of bilinear samples on a regular grid. The samples and the rule for those outside of the
map are separable, so a bin is `sum_yx wy[y] wx[x] feature[y, x]`, where a weight is the mean of the hat functions of
the samples of one axis. The samples of a bin are an arithmetic progression, hence that mean has a closed form
(`cell_weights`): adaptive sampling costs no more than a fixed number of samples, and needs no cap.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

TINY = 1e-30  # stands for a step of zero


class Axis(NamedTuple):
    """The samples of R RoIs along one axis of a feature map with `extent` cells; cell i has its center at i.

    Sample s of bin b lies at `first[:, b] + s * step`, for 0 <= s < number. Those outside of begin..end count nothing.
    """

    first: jax.Array  # (R, bins) float32, the lowest sample of each bin
    step: jax.Array  # (R, 1) float32, >= 0
    begin: jax.Array  # (R, bins) float32, the first sample that lies on the map or at most one cell away
    end: jax.Array  # (R, bins) float32, one past the last such sample
    number: jax.Array  # (R, 1) or (R, bins) float32, samples in a bin; a whole number >= 0
    extent: jax.Array  # (R, 1) int32


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
        """How many samples lie below the limit, or on it."""
        if sampling_ratio:
            total, candidates = jnp.zeros_like(first), [jnp.float32(sample) for sample in range(sampling_ratio)]
        else:  # adaptive samples are at least half a cell apart: an estimate is off by one at most
            guess = jnp.clip(jnp.ceil((limit - first) / jnp.maximum(step, TINY)), 0.0, count)
            total, candidates = jnp.maximum(guess - 1.0, 0.0), [guess - 1.0, guess]
        for sample in candidates:
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
    # a sample on the wrong side of a cell's center, which moves the result by rounding only: the hat is continuous.
    inverse = 1.0 / jnp.maximum(axis.step, TINY)
    is_first, is_last = cells == 0, cells == axis.extent - 1
    below = jnp.clip(jnp.ceil((-1.0 - start) * inverse), axis.begin, axis.end)  # samples before the cell on the left
    below = jnp.where(is_first, axis.begin, below)
    middle = jnp.clip(jnp.ceil(-start * inverse), below, axis.end)  # samples before this cell's center
    above = jnp.clip(jnp.ceil((1.0 - start) * inverse), middle, axis.end)  # samples before the cell on the right
    above = jnp.where(is_last, axis.end, above)

    def total(begin: jax.Array, end: jax.Array) -> jax.Array:
        """Sum of the positions of samples begin..end-1, seen from the cell."""
        return (end - begin) * (start + axis.step * 0.5 * (begin + end - 1.0))

    left = (middle - below) + jnp.where(is_first, 0.0, total(below, middle))
    right = (above - middle) - jnp.where(is_last, 0.0, total(middle, above))
    return (left + right) / jnp.maximum(axis.number, 1.0)


def cell_range(axis: Axis) -> tuple[jax.Array, jax.Array]:
    """First and last cell (both included) that can have weight in each bin; two (R, bins) int32 within the map.

    A bin whose samples all lie outside of the map, or that has none, gets an empty range (last < first).
    """
    extent = axis.extent.astype(jnp.float32)
    low = jnp.clip(jnp.floor(axis.first + axis.begin * axis.step), 0.0, extent - 1.0).astype(jnp.int32)
    high = jnp.clip(jnp.floor(axis.first + (axis.end - 1.0) * axis.step) + 1.0, 0.0, extent - 1.0).astype(jnp.int32)
    return low, jnp.where(axis.begin < axis.end, high, low - 1)

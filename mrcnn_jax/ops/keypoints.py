"""Keypoint heat maps: training targets, and decoding of predictions.

A heat map divides a RoI into S x S cells (He et al. 2017, section 5). It is decoded as in torchvision and Detectron2:
resize it to the size of the box in pixels (bicubic, a = -0.75) and take the highest pixel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.config import ScoreRule
from mrcnn_jax.ops.image import bicubic_weights

TILE = 64  # side of the tiles in which resized maps are computed
TILES_PER_STEP = 16
_NO_INDEX = jnp.iinfo(jnp.int32).max


def heatmap_targets(keypoints: jax.Array, rois: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Cell of its RoI's heat map that each keypoint falls into; keypoints on the far edge belong to the last cell.

    Args:
        keypoints: (R, K, 3) float32, the keypoints of each RoI's instance: x, y, visibility (0: not labeled).
        rois: (R, 4) float32. A RoI without area contains only its far corner.
        size: side S of a heat map.

    Returns:
        index (R, K) int32, row * S + column, 0 where not valid; and valid (R, K) bool, labeled and inside the RoI.
    """
    points, low, high = keypoints[..., :2], rois[:, None, :2], rois[:, None, 2:]
    cells = jnp.floor((points - low) * (size / (high - low)))
    cells = jnp.where(points == high, size - 1.0, cells)
    valid = jnp.all((cells >= 0) & (cells < size), axis=-1) & (keypoints[..., 2] > 0)
    cells = jnp.where(valid[..., None], cells, 0.0).astype(jnp.int32)
    return cells[..., 1] * size + cells[..., 0], valid


def decode(heatmaps: jax.Array, boxes: jax.Array, valid: jax.Array, *, score: ScoreRule) -> jax.Array:
    """Decode heat maps to keypoints, as torchvision and Detectron2 do.

    The resized maps are computed tile by tile, in one loop over the tiles of all RoIs. Time is proportional to the
    area of the valid boxes, memory does not depend on it. Pass the RoIs of all images at once: under `vmap` every image
    would take as long as the one with the largest boxes.

    Args:
        heatmaps: (R, S, S, K) logits.
        boxes: (R, 4) float32 in pixels of the image. Sides below one pixel count as one.
        valid: (R,) bool.
        score: "probability" is the softmax over the S x S cells at the peak (Detectron2), "logit" the value of the
            peak (torchvision).

    Returns:
        (R, K, 3) float32: x, y, score; zeros where not valid.
    """
    corner = boxes[:, :2]
    extent = jnp.where(valid[:, None], jnp.maximum(boxes[:, 2:] - corner, 1.0), 1.0)
    pixels = jnp.ceil(extent)
    grids = pixels.astype(jnp.int32)
    heatmaps = jnp.asarray(heatmaps, jnp.float32)
    peaks, index = _peaks(heatmaps.transpose(0, 1, 3, 2), grids, valid)
    columns = grids[:, :1]
    cells = jnp.stack([index % columns, index // columns], axis=-1).astype(jnp.float32)
    points = (cells + 0.5) * (extent / pixels)[:, None] + corner[:, None]
    if score == "probability":
        peaks = jnp.exp(peaks - jax.nn.logsumexp(heatmaps, axis=(1, 2)))
    return jnp.where(valid[:, None, None], jnp.concatenate([points, peaks[..., None]], axis=-1), 0.0)


def _peaks(maps: jax.Array, grids: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Highest pixel of each resized map; of equal pixels the first in row-major order.

    maps: (R, S, K, S), rows first, columns last; grids: (R, 2) int32, columns and rows of the resized map.
    Returns values (R, K) float32 and indices (R, K) int32, row * columns + column.
    """
    shape = (maps.shape[0], maps.shape[2])
    tile_grids = -(-grids // TILE)
    ends = jnp.cumsum(jnp.where(valid, tile_grids[:, 0] * tile_grids[:, 1], 0))
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])

    def next_tiles(first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """RoI (G,) of each of the G tiles from `first` on, and the tile's first column and row (G, 2)."""
        tile = first + jnp.arange(TILES_PER_STEP, dtype=jnp.int32)
        # Tiles past the end lie outside of the last map, or belong to one that is not valid: they change no peak.
        roi = jnp.minimum(jnp.sum(ends[None, :] <= tile[:, None], axis=1), shape[0] - 1)
        local, columns = tile - starts[roi], tile_grids[roi, 0]
        return roi, TILE * jnp.stack([local % columns, local // columns], axis=1)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, best, index = state
        roi, origin = next_tiles(first)
        peak, position = _tile_peaks(maps[roi], grids[roi], origin)
        new_best = best.at[roi].max(peak)
        position = jnp.where(peak == new_best[roi], position, _NO_INDEX)
        index = jnp.where(new_best > best, _NO_INDEX, index).at[roi].min(position)
        return first + TILES_PER_STEP, new_best, index

    init = (jnp.int32(0), jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    _, best, index = jax.lax.while_loop(lambda state: state[0] < ends[-1], step, init)
    return best, index


def _tile_peaks(maps: jax.Array, grids: jax.Array, origins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_peaks` in G tiles: maps (G, S, K, S), grids (G, 2), origins (G, 2) -> values and indices (G, K)."""
    count, size, keypoints, _ = maps.shape
    pixels = origins[:, :, None] + jnp.arange(TILE, dtype=jnp.int32)[None, None, :]
    weights = bicubic_weights(pixels, size, grids[:, :, None])
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.matmul(weights[:, 1], maps.reshape(count, size, -1), precision=highest)
    resized = jnp.einsum("gys,gxs->gyx", rows.reshape(count, -1, size), weights[:, 0], precision=highest)
    resized = resized.reshape(count, TILE, keypoints, TILE)
    inside = pixels < grids[:, :, None]
    resized = jnp.where(inside[:, 1, :, None, None] & inside[:, 0, None, None, :], resized, -jnp.inf)
    # Find the row, then the column in it: an argmax over the whole tile is many times slower on CPU.
    row = jnp.argmax(jnp.max(resized, axis=3), axis=1)
    row_values = jnp.take_along_axis(resized, row[:, None, :, None], axis=1)[:, 0]
    column = jnp.argmax(row_values, axis=-1)
    index = (origins[:, 1:] + row) * grids[:, :1] + origins[:, :1] + column
    return jnp.max(row_values, axis=-1), index.astype(jnp.int32)

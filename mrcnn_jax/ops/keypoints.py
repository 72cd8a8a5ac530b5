"""Keypoints: the cell of a heat map that each one falls into, and positions read from predicted heat maps.

A heat map is S x S cells laid over a RoI (He et al. 2017, section 5). Both peers read a prediction in the same way:
resize the map to the size of the box in pixels (bicubic, a = -0.75), and take the highest pixel.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.image import cubic_weights

ScoreRule = Literal["probability", "logit"]

TILE = 64  # side of the part of a resized map that is computed at a time
CHUNK = 16  # tiles computed together
_NEVER = jnp.iinfo(jnp.int32).max


def heatmap_targets(keypoints: jax.Array, rois: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array]:
    """The cell of its RoI's heat map that each keypoint falls into; one on the far edge belongs to the last cell.

    Args:
        keypoints: (R, K, 3) float32, the keypoints of each RoI's instance: x, y, visibility (0: not labeled).
        rois: (R, 4) float32. One without area holds only what lies exactly on its far corner.
        size: side S of a heat map.

    Returns:
        index (R, K) int32, row * S + column, 0 where not valid; and valid (R, K) bool: labeled and inside.
    """
    points, low, high = keypoints[..., :2], rois[:, None, :2], rois[:, None, 2:]
    cells = jnp.floor((points - low) * (size / (high - low)))
    cells = jnp.where(points == high, size - 1.0, cells)
    valid = jnp.all((cells >= 0) & (cells < size), axis=-1) & (keypoints[..., 2] > 0)
    cells = jnp.where(valid[..., None], cells, 0.0).astype(jnp.int32)
    return cells[..., 1] * size + cells[..., 0], valid


def decode(heatmaps: jax.Array, boxes: jax.Array, valid: jax.Array, *, score: ScoreRule) -> jax.Array:
    """Where the heat maps see each keypoint, as torchvision and Detectron2 read them.

    Work is proportional to the area of the valid boxes, and memory does not depend on it: the resized maps are
    computed tile by tile, tiles of all detections in one list. So hand it the detections of all images at once; under
    `vmap` every image would wait for the one with the largest boxes.

    Args:
        heatmaps: (R, S, S, K) logits, as the keypoint head gives them.
        boxes: (R, 4) float32 in pixels of the image. Sides below one pixel are taken as one.
        valid: (R,) bool.
        score: "probability" is the softmax over the S x S cells, taken at the peak (Detectron2); "logit" the height of
            the peak (torchvision).

    Returns:
        (R, K, 3) float32: x, y, score; zeros where not valid.
    """
    corner = boxes[:, :2]
    extent = jnp.where(valid[:, None], jnp.maximum(boxes[:, 2:] - corner, 1.0), 1.0)
    pixels = jnp.ceil(extent)
    grids = pixels.astype(jnp.int32)
    heatmaps = jnp.asarray(heatmaps, jnp.float32)
    height, index = _peaks(heatmaps.transpose(0, 1, 3, 2), grids, valid)
    columns = grids[:, :1]
    cells = jnp.stack([index % columns, index // columns], axis=-1).astype(jnp.float32)
    points = (cells + 0.5) * (extent / pixels)[:, None] + corner[:, None]
    if score == "probability":
        height = jnp.exp(height - jax.nn.logsumexp(heatmaps, axis=(1, 2)))
    return jnp.where(valid[:, None, None], jnp.concatenate([points, height[..., None]], axis=-1), 0.0)


def _peaks(maps: jax.Array, grids: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Highest pixel of each resized map, the first in reading order among equals.

    maps: (R, S, K, S), rows first, columns last; grids: (R, 2) int32, columns and rows of the resized map.
    Returns heights (R, K) float32 and indices (R, K) int32, row * columns + column.
    """
    shape = (maps.shape[0], maps.shape[2])
    across = -(-grids // TILE)
    ends = jnp.cumsum(jnp.where(valid, across[:, 0] * across[:, 1], 0))
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])

    def tiles(first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The detections (G,) of the next tiles of the list, and their first columns and rows (G, 2)."""
        item = first + jnp.arange(CHUNK, dtype=jnp.int32)
        # Past the end of the list come tiles beyond the last map, or of one that is not valid: they change no peak.
        owner = jnp.minimum(jnp.sum(ends[None, :] <= item[:, None], axis=1), shape[0] - 1)
        local, columns = item - starts[owner], across[owner, 0]
        return owner, TILE * jnp.stack([local % columns, local // columns], axis=1)

    def advance(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, best, index = state
        owner, origin = tiles(first)
        height, position = _tile_peaks(maps[owner], grids[owner], origin)
        best_now = best.at[owner].max(height)
        position = jnp.where(height == best_now[owner], position, _NEVER)
        index = jnp.where(best_now > best, _NEVER, index).at[owner].min(position)
        return first + CHUNK, best_now, index

    start = (jnp.int32(0), jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    _, best, index = jax.lax.while_loop(lambda state: state[0] < ends[-1], advance, start)
    return best, index


def _tile_peaks(maps: jax.Array, grids: jax.Array, origins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for G tiles: maps (G, S, K, S), grids (G, 2), origins (G, 2) -> (G, K) heights and indices."""
    count, size, keypoints, _ = maps.shape
    pixels = origins[:, :, None] + jnp.arange(TILE, dtype=jnp.int32)[None, None, :]
    weights = cubic_weights(pixels, size, grids[:, :, None])
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.matmul(weights[:, 1], maps.reshape(count, size, -1), precision=highest)
    resized = jnp.einsum("gys,gxs->gyx", rows.reshape(count, -1, size), weights[:, 0], precision=highest)
    resized = resized.reshape(count, TILE, keypoints, TILE)
    inside = pixels < grids[:, :, None]
    resized = jnp.where(inside[:, 1, :, None, None] & inside[:, 0, None, None, :], resized, -jnp.inf)
    # First the row, then the column in it: an argmax over the whole tile is many times slower on CPU.
    row = jnp.argmax(jnp.max(resized, axis=3), axis=1)
    line = jnp.take_along_axis(resized, row[:, None, :, None], axis=1)[:, 0]
    column = jnp.argmax(line, axis=-1)
    index = (origins[:, 1:] + row) * grids[:, :1] + origins[:, :1] + column
    return jnp.max(line, axis=-1), index.astype(jnp.int32)

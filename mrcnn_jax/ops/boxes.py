"""Box operations: areas, overlaps, clipping, and the box coder of R-CNN (Girshick et al. 2014, appendix C).

Boxes are float32 `x0 y0 x1 y1` in continuous pixel coordinates (a box covers [x0, x1] x [y0, y1]; no +1 anywhere).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

SCALE_CLAMP = math.log(1000.0 / 16.0)  # largest log-scale that `decode` applies, as in torchvision and Detectron2
MIN_SIDE = 1e-6  # lower limit of sides in `encode`, so that deltas of empty boxes and padding are finite


def area(boxes: jax.Array) -> jax.Array:
    """Areas (...,) of boxes (..., 4) in square pixels; a box with a negative side has area 0."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pairwise intersection over union (n, m) of boxes a (n, 4) and b (m, 4); 0 where they do not overlap."""
    low = [jnp.maximum(a[:, None, axis], b[None, :, axis]) for axis in (0, 1)]
    high = [jnp.minimum(a[:, None, axis], b[None, :, axis]) for axis in (2, 3)]
    intersection = jnp.maximum(high[0] - low[0], 0.0) * jnp.maximum(high[1] - low[1], 0.0)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    overlap = intersection > 0.0
    # The inner `where` keeps the gradient finite where boxes do not overlap.
    return jnp.where(overlap, intersection / jnp.where(overlap, union, 1.0), 0.0)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Boxes (..., 4) clipped to an image of `size` (2,) = height, width in pixels. NaN stays NaN."""
    height, width = size[0].astype(boxes.dtype), size[1].astype(boxes.dtype)
    columns = [jnp.clip(boxes[..., i], 0.0, limit) for i, limit in enumerate((width, height, width, height))]
    return jnp.stack(columns, axis=-1)


def mirror(boxes: jax.Array, width: jax.Array) -> jax.Array:
    """Boxes (..., 4) flipped horizontally in an image that is `width` pixels wide."""
    x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
    return jnp.stack([width - x1, y0, width - x0, y1], axis=-1)


def large_enough(boxes: jax.Array, min_size: float) -> jax.Array:
    """Whether both sides of boxes (..., 4) are >= min_size pixels; for min_size 0, whether they are > 0."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.all(sides >= min_size if min_size > 0.0 else sides > 0.0, axis=-1)


def encode(boxes: jax.Array, anchors: jax.Array, *, weights: tuple[float, float, float, float]) -> jax.Array:
    """Deltas (..., 4) = dx, dy, dw, dh from anchors (..., 4) to boxes (..., 4) of the same shape.

    The four deltas are multiplied by `weights`. They are finite for all finite boxes, see MIN_SIDE.
    """
    x, y, w, h = _center_and_size(boxes)
    ax, ay, aw, ah = _center_and_size(anchors)
    w, h, aw, ah = (jnp.maximum(side, MIN_SIDE) for side in (w, h, aw, ah))
    deltas = ((x - ax) / aw, (y - ay) / ah, jnp.log(w / aw), jnp.log(h / ah))
    return jnp.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)], axis=-1)


def decode(deltas: jax.Array, anchors: jax.Array, *, weights: tuple[float, float, float, float]) -> jax.Array:
    """Boxes (..., 4) from deltas (..., 4) and anchors of the same rank, which broadcast: (P, C, 4) with (P, 1, 4).

    The inverse of `encode`, except that dw and dh are limited to SCALE_CLAMP so that the exponential cannot overflow.
    """
    x, y, w, h = _center_and_size(anchors)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x, y = dx * w + x, dy * h + y
    w, h = jnp.exp(jnp.minimum(dw, SCALE_CLAMP)) * w, jnp.exp(jnp.minimum(dh, SCALE_CLAMP)) * h
    return jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], axis=-1)


def _center_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    w, h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * w, boxes[..., 1] + 0.5 * h, w, h

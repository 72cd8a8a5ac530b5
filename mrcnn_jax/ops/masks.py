"""Mask targets cropped from ground-truth rasters, and pasting of predicted masks into the image.

Both are separable resampling, computed as two small matrix products with the weights of rows and columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.config import PasteRule
from mrcnn_jax.ops.roi.axis import AxisSamples, axis_samples, cell_weights

BLOCK = 64  # RoIs resampled at a time, which limits the memory of their rasters


def crop_targets(
    masks: jax.Array,
    windows: jax.Array,
    rois: jax.Array,
    matches: jax.Array,
    *,
    size: int,
    binary: bool,
    aligned: bool,
    sampling_ratio: int,
) -> jax.Array:
    """Mask targets: the mask of the matched instance, resampled in each RoI by ROIAlign.

    Each RoI is transformed to the coordinates of the raster and pooled there. With whole bitmaps (windows 0, 0, W, H),
    aligned=False, sampling_ratio=0 and binary=False this is torchvision's `project_masks_on_boxes`; with aligned=True
    and binary=True, Detectron2's `BitMasks.crop_and_resize`.

    Args:
        masks: (N, Mh, Mw) uint8, 0 or 1.
        windows: (N, 4) float32, the part of the image that each raster covers. An empty window gives finite values.
        rois: (R, 4) float32.
        matches: (R,) int32, index of each RoI's raster.
        size: side of the result.
        binary: threshold at 1/2; 1/2 itself is foreground.
        aligned: see `roi_align`.
        sampling_ratio: see `roi_align`.

    Returns:
        (R, size, size) float32 in 0..1. No gradient.
    """
    height, width = masks.shape[1:]
    extent = jnp.asarray([width, height], jnp.float32)[None, :]
    window = jnp.take(windows, matches, axis=0)
    span = window[:, 2:] - window[:, :2]
    scale = jnp.where(span > 0, extent / jnp.where(span > 0, span, 1.0), 0.0)
    low, high = (rois[:, :2] - window[:, :2]) * scale, (rois[:, 2:] - window[:, :2]) * scale

    def axis_weights(axis: int, cells: int) -> jax.Array:
        extents = jnp.full(rois.shape[:1], cells, jnp.int32)
        samples = axis_samples(
            low[:, axis], high[:, axis], extents, bins=size, sampling_ratio=sampling_ratio, aligned=aligned
        )
        samples = AxisSamples(*(leaf[..., None] for leaf in samples))
        return cell_weights(samples, jnp.arange(cells, dtype=jnp.int32)[None, None, :])

    def resample(roi: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        y_weights, x_weights, match = roi
        return y_weights @ jnp.take(masks, match, axis=0).astype(jnp.float32) @ x_weights.T

    targets = jax.lax.map(resample, (axis_weights(1, height), axis_weights(0, width), matches), batch_size=BLOCK)
    return (targets >= 0.5).astype(jnp.float32) if binary else targets


def paste(
    masks: jax.Array, boxes: jax.Array, image_shape: tuple[int, int], *, rule: PasteRule = "detectron2"
) -> jax.Array:
    """Paste masks into the image, on the device. The result takes the memory of D full images.

    Args:
        masks: (D, S, S) float probabilities inside the box.
        boxes: (D, 4) float32 in pixels of the image. A box without area gives zeros.
        image_shape: static height and width.
        rule: "detectron2" samples the mask at pixel centers; "torchvision" pads the mask by one cell, truncates the
            enlarged box to whole pixels and adds one in each direction, and resizes the mask to it.

    Returns:
        (D, height, width) float32, 0 outside of the boxes; usually thresholded at 1/2.
    """
    weights = _weights_detectron2 if rule == "detectron2" else _weights_torchvision
    side = masks.shape[-1]
    y_weights = weights(boxes[:, 1], boxes[:, 3], side, image_shape[0])
    x_weights = weights(boxes[:, 0], boxes[:, 2], side, image_shape[1])
    return jnp.einsum("dys,dst,dxt->dyx", y_weights, masks.astype(jnp.float32), x_weights)


def _weights_detectron2(low: jax.Array, high: jax.Array, side: int, extent: int) -> jax.Array:
    """Bilinear weights (D, extent, side) of mask cells at pixel centers; the mask is zero outside of its box."""
    size = (high - low)[:, None]
    centers = jnp.arange(extent, dtype=jnp.float32)[None, :] + 0.5 - low[:, None]
    position = centers / jnp.where(size > 0, size, 1.0) * side - 0.5
    weights = _hat(position[:, :, None] - jnp.arange(side, dtype=jnp.float32)[None, None, :])
    return jnp.where(size[:, :, None] > 0, weights, 0.0)


def _weights_torchvision(low: jax.Array, high: jax.Array, side: int, extent: int) -> jax.Array:
    """Weights (D, extent, side) by torchvision's rule: pad the mask, enlarge and truncate the box, resize, clip."""
    padded = side + 2
    half, center = (high - low) * 0.5 * (padded / side), (high + low) * 0.5
    begin = jnp.trunc(center - half)[:, None]
    count = jnp.maximum(jnp.trunc(center + half)[:, None] - begin + 1.0, 1.0)
    offset = jnp.arange(extent, dtype=jnp.float32)[None, :] - begin
    position = jnp.maximum((offset + 0.5) * (padded / count) - 0.5, 0.0)
    # The padding is zero, so only the cells 1..side of the padded mask have weight.
    weights = _hat(position[:, :, None] - jnp.arange(1, side + 1, dtype=jnp.float32)[None, None, :])
    inside = (offset >= 0) & (offset < count)
    return jnp.where(inside[:, :, None], weights, 0.0)


def _hat(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(distance), 0.0)

"""Image normalization, and the resizing of heat maps with torch's conventions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.config import ChannelOrder

_CUBIC_A = -0.75  # of torch's kernel


def normalize(
    images: jax.Array,
    image_size: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: ChannelOrder = "rgb",
) -> jax.Array:
    """Normalize a padded uint8 RGB image; the padding becomes exactly zero.

    Args:
        images: (H, W, 3) uint8, RGB, padded at the bottom and on the right.
        image_size: (2,) int, height and width of the image inside the padding.
        mean: 3 means on the scale 0..255, in `channel_order`.
        std: 3 standard deviations on the same scale, in `channel_order`.
        channel_order: order of channels that the network expects.

    Returns:
        (H, W, 3) float32 in `channel_order`.
    """
    pixels = images[..., ::-1] if channel_order == "bgr" else images
    shape = (1, 1, 3)
    means, deviations = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (mean, std))
    scaled = (pixels.astype(jnp.float32) - means) / deviations
    height, width = images.shape[:2]
    rows = jnp.arange(height)[:, None, None] < image_size[0]
    columns = jnp.arange(width)[None, :, None] < image_size[1]
    return jnp.where(rows & columns, scaled, 0.0)


def upsample_bilinear_2x(images: jax.Array) -> jax.Array:
    """Resize to twice the size like torch's `interpolate(mode="bilinear", align_corners=False)`.

    Without gathers, so that its gradient is fast too.

    Args:
        images: (B, H, W, C), any real dtype.

    Returns:
        (B, 2 * H, 2 * W, C) of the same dtype.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        first, last = (jax.lax.slice_in_dim(images, i, i + 1, axis=axis) for i in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(images, 0, size - 1, axis=axis)], axis=axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(images, 1, size, axis=axis), last], axis=axis)
        pairs = jnp.stack([0.75 * images + 0.25 * before, 0.75 * images + 0.25 * after], axis=axis + 1)
        images = jax.lax.collapse(pairs, axis, axis + 2)
    return images


def bicubic_weights(pixels: jax.Array, old: int, new: jax.Array) -> jax.Array:
    """Weights of the input pixels along one axis in torch's `interpolate(mode="bicubic", align_corners=False)`.

    The output size need not be static. `jax.image.resize` has another kernel (Keys 1981 with a = -0.5), which differs
    by up to 0.2 on a unit step.

    Args:
        pixels: (...) int32, indices of output pixels.
        old: input size.
        new: int32, output size; broadcasts against `pixels`.

    Returns:
        (..., old) float32; finite also for pixels outside of the output.
    """
    position = (pixels.astype(jnp.float32) + 0.5) * (old / new.astype(jnp.float32)) - 0.5
    low = jnp.floor(position)
    fraction, first = position - low, low.astype(jnp.int32) - 1
    cells = jnp.arange(old, dtype=jnp.int32).reshape((1,) * pixels.ndim + (-1,))
    taps = (_far(fraction + 1.0), _near(fraction), _near(1.0 - fraction), _far(2.0 - fraction))
    parts = [
        jnp.where(jnp.clip(first + i, 0, old - 1)[..., None] == cells, weight[..., None], 0.0)
        for i, weight in enumerate(taps)
    ]
    return functools.reduce(jnp.add, parts)


def _near(d: jax.Array) -> jax.Array:
    """Cubic kernel for |d| <= 1."""
    return ((_CUBIC_A + 2.0) * d - (_CUBIC_A + 3.0)) * d * d + 1.0


def _far(d: jax.Array) -> jax.Array:
    """Cubic kernel for 1 < |d| < 2."""
    return ((_CUBIC_A * d - 5.0 * _CUBIC_A) * d + 8.0 * _CUBIC_A) * d - 4.0 * _CUBIC_A

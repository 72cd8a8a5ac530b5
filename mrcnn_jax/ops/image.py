"""Image normalization, and resizing with torch's conventions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp


def normalize(
    images: jax.Array,
    image_size: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: Literal["rgb", "bgr"] = "rgb",
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


def resize_bilinear(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize like torch's `interpolate(mode="bilinear", align_corners=False)`, without antialiasing.

    Args:
        image: (H, W, C), any real dtype.
        size: the static new (height, width).

    Returns:
        (height, width, C) float32.
    """
    return _resize(image, size, _linear_taps)


def resize_bicubic(image: jax.Array, size: tuple[int, int], a: float = -0.75) -> jax.Array:
    """Resize like torch's `interpolate(mode="bicubic", align_corners=False)`.

    `jax.image.resize` uses a = -0.5, which differs by up to 0.2 on a unit step.

    Args:
        image: (H, W, C), any real dtype.
        size: the static new (height, width).
        a: parameter of the kernel (Keys 1981).

    Returns:
        (height, width, C) float32.
    """
    return _resize(image, size, lambda position: _cubic_taps(position, a))


def upsample_bilinear_2x(images: jax.Array) -> jax.Array:
    """`resize_bilinear` of a batch to twice the size; without gathers, so that its gradient is fast too.

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


def bicubic_weights(pixels: jax.Array, old: int, new: jax.Array, a: float = -0.75) -> jax.Array:
    """Weights of the input pixels in `resize_bicubic` along one axis, for an output size that is not static.

    Args:
        pixels: (...) int32, indices of output pixels.
        old: input size.
        new: int32, output size; broadcasts against `pixels`.
        a: see `resize_bicubic`.

    Returns:
        (..., old) float32; finite also for pixels outside of the output.
    """
    position = (pixels.astype(jnp.float32) + 0.5) * (old / new.astype(jnp.float32)) - 0.5
    shape = (1,) * pixels.ndim + (-1,)
    cells = jnp.arange(old, dtype=jnp.int32).reshape(shape)
    parts = [
        jnp.where(jnp.clip(pixel, 0, old - 1)[..., None] == cells, weight[..., None], 0.0)
        for pixel, weight in _cubic_taps(position, a)
    ]
    return functools.reduce(jnp.add, parts)


Taps = Callable[[jax.Array], list[tuple[jax.Array, jax.Array]]]  # source position -> [(pixel, weight), ...]


def _resize(image: jax.Array, size: tuple[int, int], taps: Taps) -> jax.Array:
    """Resample rows, then columns; both kernels are separable."""
    result = image.astype(jnp.float32)
    for axis in (0, 1):
        old, new = image.shape[axis], size[axis]
        position = (jnp.arange(new, dtype=jnp.float32) + 0.5) * (old / new) - 0.5
        shape = (new, 1, 1) if axis == 0 else (1, new, 1)
        parts = [
            jnp.take(result, jnp.clip(pixel, 0, old - 1), axis=axis) * weight.reshape(shape)
            for pixel, weight in taps(position)
        ]
        result = functools.reduce(jnp.add, parts)
    return result


def _linear_taps(position: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    position = jnp.maximum(position, 0.0)
    low = jnp.floor(position)
    fraction = position - low
    pixel = low.astype(jnp.int32)
    return [(pixel, 1.0 - fraction), (pixel + 1, fraction)]


def _cubic_taps(position: jax.Array, a: float) -> list[tuple[jax.Array, jax.Array]]:
    low = jnp.floor(position)
    fraction = position - low
    pixel = low.astype(jnp.int32)

    def near(d: jax.Array) -> jax.Array:  # |d| <= 1
        return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0

    def far(d: jax.Array) -> jax.Array:  # 1 < |d| < 2
        return ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a

    weights = (far(fraction + 1.0), near(fraction), near(1.0 - fraction), far(2.0 - fraction))
    return [(pixel + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]

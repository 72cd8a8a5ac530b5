"""Zero padding and strided windows of NHWC batches, for convolution and pooling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def zero_pad(x: jax.Array, before: int, after: int) -> jax.Array:
    """Pad x (B, H, W, C) with zeros: `before` at the top and left, `after` at the bottom and right."""
    spatial = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), spatial, spatial, (0, 0, 0)))


def window(x: jax.Array, top: int, left: int, height: int, width: int, stride: tuple[int, int] = (1, 1)) -> jax.Array:
    """The pixels (top + stride[0] * y, left + stride[1] * x) of x (B, H, W, C), for y < height and x < width."""
    stop = (x.shape[0], top + stride[0] * (height - 1) + 1, left + stride[1] * (width - 1) + 1, x.shape[3])
    return lax.slice(x, (0, top, left, 0), stop, (1, *stride, 1))

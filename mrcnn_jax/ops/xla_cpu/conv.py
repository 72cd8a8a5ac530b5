"""Convolution and max pooling of NHWC batches, written so that XLA:CPU finds fast programs in both directions.

The arithmetic is the ordinary one. What is chosen is the formulation: XLA:CPU computes the weight gradient of a
convolution, and select-and-scatter, one to two orders of magnitude slower than the matrix products and shifted slices
that they are equal to (`docs/architecture.md`, "Convolutions").
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mrcnn_jax.ops.xla_cpu.conv_gradients import (
    Geometry,
    convolution,
    input_gradient,
    kernel_gradient,
    pointwise_kernel_gradient,
)
from mrcnn_jax.ops.xla_cpu.depthwise import depthwise_conv2d
from mrcnn_jax.ops.xla_cpu.windows import window


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolution with explicit zero padding, as torch's `conv2d` without bias.

    Args:
      x: (B, H, W, I).
      kernel: (k, k, I / groups, O), of x's dtype.
      stride: step of the window in both directions.
      padding: zeros on each side, or (at the top and left, at the bottom and right).
      dilation: distance between the taps of the kernel.
      groups: equal parts of the channels that are convolved apart; I of them is a depthwise convolution.

    Returns: (B, (H + both paddings - dilation * (k - 1) - 1) // stride + 1, ..., O).
    """
    pads = (padding, padding) if isinstance(padding, int) else padding
    if kernel.shape[:2] == (1, 1) and pads == (0, 0) and groups == 1:
        return _pointwise(lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)), kernel)
    if groups == x.shape[-1] == kernel.shape[-1] and dilation == 1:
        return depthwise_conv2d(x, kernel, stride, pads)
    geometry = Geometry(stride, pads, dilation, groups)
    return _dense(x, kernel, geometry) if groups == 1 else _grouped(x, kernel, geometry)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """3 x 3 maximum with stride 2 and one row of padding on each side, as torch's `max_pool2d(x, 3, 2, 1)`."""
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    rows = [window(padded, dy, 0, height, padded.shape[2], (2, 1)) for dy in range(3)]
    tallest = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
    columns = [window(tallest, 0, dx, height, width, (1, 2)) for dx in range(3)]
    return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


def deconv2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 2 x 2 kernel and stride 2, as one matrix product: each pixel becomes a block.

    What follows it pixel by pixel can be computed on the blocks; `interleave` then lays out fewer channels.

    Args:
      x: (B, H, W, I).
      kernel: (2, 2, I, O); kernel[dy, dx] makes the pixel (2 y + dy, 2 x + dx), torch's `weight[:, :, dy, dx]`.

    Returns: blocks (B, H, W, 2, 2, O).
    """
    inputs, outputs = kernel.shape[2:]
    blocks = _pointwise(x, kernel.transpose(2, 0, 1, 3).reshape(1, 1, inputs, 4 * outputs))
    return blocks.reshape(*x.shape[:3], 2, 2, outputs)


def deconv4x4(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 4 x 4 kernel, stride 2 and padding 1: it doubles the size.

    One matrix product makes the 16 pixels that each pixel contributes to; these patches overlap, and are added up as
    shifted slices. It suits few output channels O: the patches have 16 O of them.

    Args:
      x: (B, H, W, I).
      kernel: (4, 4, I, O); kernel[dy, dx] contributes to the pixel (2 y - 1 + dy, 2 x - 1 + dx), torch's
        `weight[:, :, dy, dx]`.

    Returns: (B, 2 H, 2 W, O).
    """
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    patches = x @ kernel.transpose(2, 0, 1, 3).reshape(inputs, 16 * outputs)
    rows = _add_overlaps(patches.reshape(batch, height, width, 4, 4 * outputs), 1)
    return _add_overlaps(rows.reshape(batch, 2 * height, width, 4, outputs), 2)


def _add_overlaps(patches: jax.Array, axis: int) -> jax.Array:
    """(B, H, W, 4, C), patches of 4 pixels along `axis` (1 or 2) at distances of 2 -> (B, 2 H, W, C) or (B, H, 2 W, C).

    Of the first and the last patch one pixel lies outside."""
    taps = [patches[..., tap, :] for tap in range(4)]
    zeros = jnp.zeros_like(lax.slice_in_dim(taps[0], 0, 1, axis=axis))
    above = jnp.concatenate([zeros, lax.slice_in_dim(taps[3], 0, -1, axis=axis)], axis=axis)
    below = jnp.concatenate([lax.slice_in_dim(taps[0], 1, None, axis=axis), zeros], axis=axis)
    return lax.collapse(jnp.stack([taps[1] + above, taps[2] + below], axis=axis + 1), axis, axis + 2)


def interleave(blocks: jax.Array) -> jax.Array:
    """Blocks (B, H, W, 2, 2, O) as an image (B, 2 H, 2 W, O)."""
    batch, height, width, _, _, channels = blocks.shape
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grouped(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=partial(_by_blocks, geometry), default=partial(convolution, geometry))


def _grouped_fwd(x, kernel, geometry):  # type: ignore[no-untyped-def]
    return _grouped(x, kernel, geometry), (x, kernel)


def _grouped_bwd(geometry, residuals, gradient):  # type: ignore[no-untyped-def]
    def gradients(convolution, x, kernel, gradient):  # type: ignore[no-untyped-def]
        return jax.vjp(partial(convolution, geometry), x, kernel)[1](gradient)

    return lax.platform_dependent(
        *residuals, gradient, cpu=partial(gradients, _by_blocks), default=partial(gradients, convolution)
    )


_grouped.defvjp(_grouped_fwd, _grouped_bwd)


def _by_blocks(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Ordinary convolutions of at most 16 slices of the channels, 32 channels wide or more.

    Several groups of few channels share a slice, whose kernel is zero where input and output belong to different
    groups: XLA:CPU multiplies those zeros faster than it walks through groups.
    """
    groups, inputs = geometry.groups, kernel.shape[2]
    shared = math.gcd(groups, max(1, 32 // inputs, groups // 16))  # groups in a slice
    kernels = _block_diagonal(kernel, groups, shared)
    slices = jnp.split(x, groups // shared, axis=-1)
    dense = geometry._replace(groups=1)
    return jnp.concatenate([_dense(part, k, dense) for part, k in zip(slices, kernels, strict=True)], axis=-1)


def _block_diagonal(kernel: jax.Array, groups: int, shared: int) -> jax.Array:
    """(kh, kw, I, groups * O) -> (groups / shared, kh, kw, shared * I, shared * O), zero between groups."""
    height, width, inputs, outputs = kernel.shape
    parts = kernel.reshape(height, width, inputs, groups // shared, shared, outputs // groups)
    blocks = jnp.einsum("hwismo,nm->shwnimo", parts, jnp.eye(shared, dtype=kernel.dtype))
    return blocks.reshape(-1, height, width, shared * inputs, shared * outputs // groups)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return convolution(geometry, x, kernel)


def _dense_fwd(x, kernel, geometry):  # type: ignore[no-untyped-def]
    return convolution(geometry, x, kernel), (x, kernel)


def _dense_bwd(geometry, residuals, gradient):  # type: ignore[no-untyped-def]
    x, kernel = residuals
    x_gradient = input_gradient(x.shape, geometry, kernel, gradient)
    return x_gradient, kernel_gradient(kernel.shape, geometry, x, gradient).astype(kernel.dtype)


_dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1 x 1: a matrix product of all pixels at once."""
    return x @ kernel[0, 0]


def _pointwise_fwd(x, kernel):  # type: ignore[no-untyped-def]
    return x @ kernel[0, 0], (x, kernel)


def _pointwise_bwd(residuals, gradient):  # type: ignore[no-untyped-def]
    x, kernel = residuals
    return gradient @ kernel[0, 0].T, pointwise_kernel_gradient(x, gradient).astype(kernel.dtype)


_pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)

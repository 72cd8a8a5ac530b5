"""Convolution and max pooling of NHWC batches, written so that XLA:CPU finds fast programs in both directions.

The arithmetic is the ordinary one. What is chosen is the formulation: XLA:CPU computes the weight gradient of a
convolution, and select-and-scatter, one to two orders of magnitude slower than the matrix products and shifted slices
that they are equal to (`docs/architecture.md`, "Convolutions").
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> jax.Array:
    """Convolution with explicit symmetric zero padding, as torch's `conv2d` without bias.

    Args:
      x: (B, H, W, I).
      kernel: (kh, kw, I / groups, O), of x's dtype.
      stride: step of the window in both directions.
      padding: zeros on each side.
      dilation: distance between the taps of the kernel.
      groups: equal parts of the channels that are convolved apart; I of them is a depthwise convolution.

    Returns: (B, (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1, ..., O).
    """
    if kernel.shape[:2] == (1, 1) and padding == 0 and groups == 1:
        return lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)) @ kernel[0, 0]
    if dilation == 1 and groups == 1:
        return _conv2d(x, kernel, stride, padding)
    return _forward(x, kernel, stride, padding, dilation, groups)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """3 x 3 maximum with stride 2 and one row of padding on each side, as torch's `max_pool2d(x, 3, 2, 1)`."""
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    rows = [_window(padded, dy, 0, height, padded.shape[2], (2, 1)) for dy in range(3)]
    tallest = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
    columns = [_window(tallest, 0, dx, height, width, (1, 2)) for dx in range(3)]
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
    blocks = x @ kernel.transpose(2, 0, 1, 3).reshape(inputs, 4 * outputs)
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


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int = 1, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _forward(x, kernel, stride, padding)


def _conv2d_fwd(x, kernel, stride, padding):  # type: ignore[no-untyped-def]
    return _forward(x, kernel, stride, padding), (x, kernel)


def _conv2d_bwd(stride, padding, residuals, gradient):  # type: ignore[no-untyped-def]
    x, kernel = residuals
    (x_gradient,) = jax.linear_transpose(lambda v: _forward(v, kernel, stride, padding), x)(gradient)
    kernel_gradient = lax.platform_dependent(
        x,
        gradient,
        cpu=partial(_kernel_gradient_cpu, kernel.shape, stride, padding),
        default=partial(_kernel_gradient_convolution, kernel.shape, stride, padding),
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def _kernel_gradient_convolution(kernel_shape, stride, padding, x, gradient):  # type: ignore[no-untyped-def]
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    (result,) = jax.linear_transpose(lambda v: _forward(x, v, stride, padding), kernel)(gradient)
    return result


def _kernel_gradient_cpu(kernel_shape, stride, padding, x, gradient):  # type: ignore[no-untyped-def]
    """The fastest of three formulations. The convolution is good while the maps are few and small or have few channels;
    many small maps (RoIs) are best walked one at a time, large maps best multiplied as a whole, tap by tap."""
    batch, height, width, _ = gradient.shape
    pads = ((0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0))
    if batch >= 64:
        padded = lax.pad(x, jnp.zeros((), x.dtype), pads)
        return _kernel_gradient_by_image(kernel_shape, stride, padded, gradient)
    if height * width >= 2048 and x.shape[-1] >= 128:
        padded = lax.pad(x, jnp.zeros((), x.dtype), pads)
        return _kernel_gradient_products(kernel_shape, stride, padded, gradient)
    return _kernel_gradient_convolution(kernel_shape, stride, padding, x, gradient)


def _kernel_gradient_products(kernel_shape, stride, padded, gradient):  # type: ignore[no-untyped-def]
    """One matrix product of shifted slices for each tap of the kernel; `padded` holds the zeros around the maps."""
    height, width = gradient.shape[1:3]
    products = [
        jnp.einsum("bhwi,bhwo->io", _window(padded, dy, dx, height, width, (stride, stride)), gradient)
        for dy in range(kernel_shape[0])
        for dx in range(kernel_shape[1])
    ]
    return jnp.stack(products).reshape(kernel_shape)


def _kernel_gradient_by_image(kernel_shape, stride, padded, gradient):  # type: ignore[no-untyped-def]
    """The same, summed over maps that fit a cache."""

    def add(total, pair):  # type: ignore[no-untyped-def]
        return total + _kernel_gradient_products(kernel_shape, stride, pair[0][None], pair[1][None]), None

    return lax.scan(add, jnp.zeros(kernel_shape, padded.dtype), (padded, gradient))[0]


def _window(x: jax.Array, top: int, left: int, height: int, width: int, stride: tuple[int, int]) -> jax.Array:
    """The pixels (top + stride * y, left + stride * x), for y < height and x < width."""
    stop = (x.shape[0], top + stride[0] * (height - 1) + 1, left + stride[1] * (width - 1) + 1, x.shape[3])
    return lax.slice(x, (0, top, left, 0), stop, (1, *stride, 1))

"""Convolution and max pooling of NHWC batches, in formulations that are fast with XLA:CPU in both directions.

XLA:CPU computes the kernel gradient of a convolution, and the gradient of max pooling (select-and-scatter), one to two
orders of magnitude slower than equivalent matrix products and shifted slices (`docs/architecture.md`, "Convolutions").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mrcnn_jax.ops.xla_cpu.conv_gradients import (
    ConvGeometry,
    convolution,
    input_gradient,
    kernel_gradient,
    pointwise_kernel_gradient,
)
from mrcnn_jax.ops.xla_cpu.depthwise import ArrayPair, depthwise_conv2d
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
    """Convolution with explicit zero padding, like torch's `conv2d` without bias.

    Args:
        x: (B, H, W, I).
        kernel: (k, k, I / groups, O), of x's dtype.
        stride: step of the window, in both directions.
        padding: zeros on each side, or (top and left, bottom and right).
        dilation: distance between the elements of the kernel.
        groups: number of groups of channels that are convolved separately; I groups are a depthwise convolution.

    Returns:
        (B, (H + both paddings - dilation * (k - 1) - 1) // stride + 1, ..., O).
    """
    pads = (padding, padding) if isinstance(padding, int) else padding
    if kernel.shape[:2] == (1, 1) and pads == (0, 0) and groups == 1:
        return _pointwise(lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)), kernel)
    if groups == x.shape[-1] == kernel.shape[-1] and dilation == 1:
        return depthwise_conv2d(x, kernel, stride, pads)
    geometry = ConvGeometry(stride, pads, dilation, groups)
    return _dense(x, kernel, geometry) if groups == 1 else _grouped(x, kernel, geometry)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """3 x 3 max pooling with stride 2 and padding 1, like torch's `max_pool2d(x, 3, 2, 1)`."""
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    rows = [window(padded, dy, 0, height, padded.shape[2], (2, 1)) for dy in range(3)]
    row_max = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
    columns = [window(row_max, 0, dx, height, width, (1, 2)) for dx in range(3)]
    return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


def deconv2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 2 x 2 kernel and stride 2, as one matrix product: each pixel becomes a block.

    Pointwise operations that follow can be computed on the blocks, before `interleave` makes an image of them.

    Args:
        x: (B, H, W, I).
        kernel: (2, 2, I, O); kernel[dy, dx] gives pixel (2 y + dy, 2 x + dx); torch's `weight[:, :, dy, dx]`.

    Returns:
        blocks (B, H, W, 2, 2, O).
    """
    inputs, outputs = kernel.shape[2:]
    blocks = _pointwise(x, kernel.transpose(2, 0, 1, 3).reshape(1, 1, inputs, 4 * outputs))
    return blocks.reshape(*x.shape[:3], 2, 2, outputs)


def deconv4x4(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 4 x 4 kernel, stride 2 and padding 1, which doubles the size.

    One matrix product computes the contributions of each pixel to a patch of 16 pixels; overlapping patches are added
    as shifted slices. Suited to few output channels O, as the patches have 16 O channels.

    Args:
        x: (B, H, W, I).
        kernel: (4, 4, I, O); kernel[dy, dx] contributes to pixel (2 y - 1 + dy, 2 x - 1 + dx); torch's
            `weight[:, :, dy, dx]`.

    Returns:
        (B, 2 H, 2 W, O).
    """
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    patches = x @ kernel.transpose(2, 0, 1, 3).reshape(inputs, 16 * outputs)
    rows = _add_overlaps(patches.reshape(batch, height, width, 4, 4 * outputs), 1)
    return _add_overlaps(rows.reshape(batch, 2 * height, width, 4, outputs), 2)


def _add_overlaps(patches: jax.Array, axis: int) -> jax.Array:
    """Add patches (B, H, W, 4, C) of 4 pixels along `axis` (1 or 2), 2 apart: (B, 2 H, W, C) or (B, H, 2 W, C).

    One pixel of the first patch and one of the last are outside of the result.
    """
    parts = [patches[..., i, :] for i in range(4)]
    zeros = jnp.zeros_like(lax.slice_in_dim(parts[0], 0, 1, axis=axis))
    from_before = jnp.concatenate([zeros, lax.slice_in_dim(parts[3], 0, -1, axis=axis)], axis=axis)
    from_after = jnp.concatenate([lax.slice_in_dim(parts[0], 1, None, axis=axis), zeros], axis=axis)
    return lax.collapse(jnp.stack([parts[1] + from_before, parts[2] + from_after], axis=axis + 1), axis, axis + 2)


def interleave(blocks: jax.Array) -> jax.Array:
    """Rearrange blocks (B, H, W, 2, 2, O) to images (B, 2 H, 2 W, O)."""
    batch, height, width, _, _, channels = blocks.shape
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grouped(x: jax.Array, kernel: jax.Array, geometry: ConvGeometry) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=partial(_by_blocks, geometry), default=partial(convolution, geometry))


def _grouped_fwd(x: jax.Array, kernel: jax.Array, geometry: ConvGeometry) -> tuple[jax.Array, ArrayPair]:
    return _grouped(x, kernel, geometry), (x, kernel)


def _grouped_bwd(geometry: ConvGeometry, residuals: ArrayPair, gradient: jax.Array) -> ArrayPair:
    def transposed(
        forward: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, gradient: jax.Array
    ) -> ArrayPair:
        return jax.vjp(partial(forward, geometry), x, kernel)[1](gradient)

    return lax.platform_dependent(
        *residuals, gradient, cpu=partial(transposed, _by_blocks), default=partial(transposed, convolution)
    )


_grouped.defvjp(_grouped_fwd, _grouped_bwd)


def _by_blocks(geometry: ConvGeometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Grouped convolution as at most 16 ordinary ones, each of a slice of 32 or more channels.

    Several groups of few channels share a slice, with a kernel that is zero between different groups: XLA:CPU
    multiplies these zeros faster than it iterates over groups.
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
def _dense(x: jax.Array, kernel: jax.Array, geometry: ConvGeometry) -> jax.Array:
    return convolution(geometry, x, kernel)


def _dense_fwd(x: jax.Array, kernel: jax.Array, geometry: ConvGeometry) -> tuple[jax.Array, ArrayPair]:
    return convolution(geometry, x, kernel), (x, kernel)


def _dense_bwd(geometry: ConvGeometry, residuals: ArrayPair, gradient: jax.Array) -> ArrayPair:
    x, kernel = residuals
    x_gradient = input_gradient(x.shape, geometry, kernel, gradient)
    return x_gradient, kernel_gradient(kernel.shape, geometry, x, gradient).astype(kernel.dtype)


_dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1 x 1 convolution as one matrix product of all pixels."""
    return x @ kernel[0, 0]


def _pointwise_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ArrayPair]:
    return x @ kernel[0, 0], (x, kernel)


def _pointwise_bwd(residuals: ArrayPair, gradient: jax.Array) -> ArrayPair:
    x, kernel = residuals
    return gradient @ kernel[0, 0].T, pointwise_kernel_gradient(x, gradient).astype(kernel.dtype)


_pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)

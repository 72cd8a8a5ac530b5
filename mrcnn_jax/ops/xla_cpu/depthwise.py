"""Depthwise convolution of NHWC batches: each channel has its own kernel.

On CPU it is a sum of products of shifted slices, which XLA fuses into one pass over the pixels. A convolution with a
group for each channel is 3 to 28 times slower (`benchmarks/RESULTS.md`, "Convolutions with groups").
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mrcnn_jax.ops.xla_cpu.windows import window, zero_pad

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = tuple[int, int]  # zeros before and after, in both directions
ArrayPair = tuple[jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Depthwise convolution of x (B, H, W, C) with kernel (k, k, 1, C) of x's dtype.

    Returns (B, (H + sum(padding) - k) // stride + 1, ..., C).
    """
    return lax.platform_dependent(
        x, kernel, cpu=partial(_slices, stride, padding), default=partial(_convolution, stride, padding)
    )


def _depthwise_fwd(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> tuple[jax.Array, ArrayPair]:
    return depthwise_conv2d(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride: int, padding: Padding, residuals: ArrayPair, gradient: jax.Array) -> ArrayPair:
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_gradients_slices, stride, padding),
        default=lambda x, kernel, g: jax.vjp(partial(_convolution, stride, padding), x, kernel)[1](g),
    )


depthwise_conv2d.defvjp(_depthwise_fwd, _depthwise_bwd)


def _convolution(stride: int, padding: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _slices(stride: int, padding: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution as a sum of shifted slices, in one pass over the pixels.

    The barriers prevent fusion with the padding, which would test each pixel for being padding, and with the consumers,
    each of which would repeat the pass.
    """
    size = kernel.shape[0]
    padded = lax.optimization_barrier(zero_pad(x, *padding))
    height, width = ((side - size) // stride + 1 for side in padded.shape[1:3])
    total = sum(
        _wide(window(padded, dy, dx, height, width, (stride, stride))) * _wide(kernel[None, dy, dx, None])
        for dy in range(size)
        for dx in range(size)
    )
    return lax.optimization_barrier(jnp.asarray(total, x.dtype))


def _gradients_slices(stride: int, padding: Padding, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> ArrayPair:
    x_gradient = _input_gradient(stride, padding, x.shape, kernel, gradient)
    return x_gradient, _kernel_gradient(stride, padding, x, kernel.shape, gradient).astype(kernel.dtype)


def _input_gradient(
    stride: int, padding: Padding, x_shape: tuple[int, ...], kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Convolution of the gradient, dilated by the stride, with the rotated kernel."""
    before, end = kernel.shape[0] - 1 - padding[0], padding[0] - 1
    rows, columns = ((before, x_shape[axis] + end - (gradient.shape[axis] - 1) * stride, stride - 1) for axis in (1, 2))
    dilated = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    return _slices(1, (0, 0), dilated, kernel[::-1, ::-1])


def _kernel_gradient(
    stride: int, padding: Padding, x: jax.Array, kernel_shape: tuple[int, ...], gradient: jax.Array
) -> jax.Array:
    """Sum over rows of the gradient, one at a time, so that operands and sums stay in the cache.

    There is one sum (k, W, C) for each column of the kernel; the sum over W is taken at the end.
    """
    size = kernel_shape[0]
    padded = zero_pad(x, *padding)
    batch, height, width, channels = gradient.shape

    def add_row(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, y = index // height, index % height
        rows = _wide(lax.dynamic_slice(padded, (image, y * stride, 0, 0), (1, size, *padded.shape[2:])))
        row = _wide(lax.dynamic_slice(gradient, (image, y, 0, 0), (1, 1, width, channels)))
        return tuple(total + (window(rows, 0, dx, size, width, (1, stride)) * row)[0] for dx, total in enumerate(sums))

    zeros = _wide(jnp.zeros((size, width, channels), x.dtype))
    sums = lax.fori_loop(0, batch * height, add_row, (zeros,) * size)
    return jnp.stack([total.sum(1) for total in sums], axis=1)[:, :, None]


def _wide(x: jax.Array) -> jax.Array:
    """Convert to at least float32, in which sums are accumulated."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

"""Gradients of a convolution with respect to input and kernel: fast formulations on CPU, XLA's own elsewhere.

They are used by `conv2d` in `conv`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Shape = tuple[int, ...]
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_BLOCK = 1024  # pixels, or a few more, in a block of the kernel gradient on CPU: with 256 channels they fit a cache
_LARGE = 512  # smallest number of pixels of a map for which blocks are faster


class ConvGeometry(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: int
    padding: tuple[int, int]  # zeros before and after, in both directions
    dilation: int
    groups: int


def convolution(geometry: ConvGeometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution of x (B, H, W, I) with kernel (k, k, I / groups, O)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (geometry.stride, geometry.stride),
        (geometry.padding, geometry.padding),
        rhs_dilation=(geometry.dilation, geometry.dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=geometry.groups,
    )


@partial(jax.jit, static_argnums=(0, 1))
def input_gradient(shape: Shape, geometry: ConvGeometry, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of the input, of the given shape, from that of the output. Groups are not supported."""
    return lax.platform_dependent(
        kernel,
        gradient,
        cpu=partial(_input_gradient_cpu, shape, geometry),
        default=partial(_input_gradient_convolution, shape, geometry),
    )


@partial(jax.jit, static_argnums=(0, 1))
def kernel_gradient(shape: Shape, geometry: ConvGeometry, x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of the kernel, of the given shape, from that of the output. Groups are not supported."""
    return lax.platform_dependent(
        x,
        gradient,
        cpu=partial(_kernel_gradient_cpu, shape, geometry),
        default=partial(_kernel_gradient_convolution, shape, geometry),
    )


@jax.jit
def pointwise_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of a 1 x 1 kernel (1, 1, I, O) from that of the output."""
    return lax.platform_dependent(
        x, gradient, cpu=_pointwise_kernel_gradient_cpu, default=_pointwise_kernel_gradient_product
    )


def _pointwise_kernel_gradient_product(x: jax.Array, gradient: jax.Array) -> jax.Array:
    return jnp.einsum("bhwi,bhwo->io", x, gradient)[None, None]


def _pointwise_kernel_gradient_cpu(x: jax.Array, gradient: jax.Array) -> jax.Array:
    if math.prod(x.shape[:3]) < _LARGE:
        return _pointwise_kernel_gradient_product(x, gradient)
    shape = (1, 1, x.shape[-1], gradient.shape[-1])
    return _kernel_gradient_by_blocks(shape, ConvGeometry(1, (0, 0), 1, 1), x, gradient)


def _input_gradient_convolution(
    shape: Shape, geometry: ConvGeometry, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    (result,) = jax.linear_transpose(lambda v: convolution(geometry, v, kernel), x)(gradient)
    return result


def _input_gradient_cpu(shape: Shape, geometry: ConvGeometry, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """With a stride, one convolution for each phase of pixels. XLA:CPU would multiply zeros between dilated pixels."""
    stride, size = geometry.stride, kernel.shape[0]
    if stride == 1 or geometry.dilation > 1 or size < stride:
        return _input_gradient_convolution(shape, geometry, kernel, gradient)
    height, width = -(-shape[1] // stride), -(-shape[2] // stride)  # pixels of a phase

    def of_phase(row: int, column: int) -> jax.Array:
        rows, top, bottom = _phase(row, geometry, size, height, gradient.shape[1])
        columns, left, right = _phase(column, geometry, size, width, gradient.shape[2])
        phase_kernel = kernel[rows][:, columns].swapaxes(2, 3)
        pads = ((top, bottom), (left, right))
        return lax.conv_general_dilated(gradient, phase_kernel, (1, 1), pads, dimension_numbers=_DIMENSIONS)

    phases = [jnp.stack([of_phase(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(phases, axis=2).reshape(shape[0], height * stride, width * stride, shape[3])
    return whole[:, : shape[1], : shape[2]]


def _phase(phase: int, geometry: ConvGeometry, size: int, pixels: int, outputs: int) -> tuple[slice, int, int]:
    """Kernel slice, and zeros before and after the gradient, for pixels `phase`, `phase + stride`, ... along one axis.

    The slice selects the kernel elements that contribute to these pixels, in reverse. The padded gradient convolved
    with them gives `pixels` pixels.
    """
    stride, before = geometry.stride, geometry.padding[0]
    first = (phase + before) % stride
    count = len(range(first, size, stride))
    last = first + (count - 1) * stride
    nearest = (phase + before - last) // stride  # the output that the last of them connects to the first pixel
    elements = slice(last, first - 1 if first else None, -stride)
    return elements, -nearest, pixels + nearest + count - 1 - outputs


def _kernel_gradient_convolution(
    kernel_shape: Shape, geometry: ConvGeometry, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    (result,) = jax.linear_transpose(lambda v: convolution(geometry, x, v), kernel)(gradient)
    return result


def _kernel_gradient_cpu(kernel_shape: Shape, geometry: ConvGeometry, x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Matrix products by blocks, or a convolution, which is faster for few and small maps or few channels."""
    batch, height, width, _ = gradient.shape
    if batch >= 64 or (height * width >= _LARGE and x.shape[-1] >= 64):
        return _kernel_gradient_by_blocks(kernel_shape, geometry, x, gradient)
    return _kernel_gradient_convolution(kernel_shape, geometry, x, gradient)


def _kernel_gradient_by_blocks(
    kernel_shape: Shape, geometry: ConvGeometry, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Sum over blocks that fit a cache, of rows or of whole small maps: a matrix product for each kernel element.

    Blocks are padded one by one: padded copies of whole maps would be stored from the forward pass on.
    """
    width, channels = gradient.shape[2:]
    maps, count = _blocks(gradient)
    rows, size, stride = -(-gradient.shape[1] // count), kernel_shape[0], geometry.stride
    # Pixels of x that one element of the kernel, and all of them, need for a block.
    pixels = (rows - 1) * stride + 1, (width - 1) * stride + 1
    span = pixels[0] + geometry.dilation * (size - 1)

    def add_block(index: jax.Array, totals: jax.Array) -> jax.Array:
        image, first = index // count * maps, index % count * rows
        inputs = _rows(x, image, maps, first * stride - geometry.padding[0], span)
        inputs = lax.pad(inputs, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (*geometry.padding, 0), (0, 0, 0)))
        # The operand that all products share is transposed once, instead of the other one for each product.
        outputs = _rows(gradient, image, maps, first, rows).reshape(-1, channels).T

        def add_element(element: jax.Array, totals: jax.Array) -> jax.Array:
            corner = (0, element // size * geometry.dilation, element % size * geometry.dilation, 0)
            shifted = lax.dynamic_slice(inputs, corner, (maps, *pixels, x.shape[-1]))[:, ::stride, ::stride]
            return totals.at[element].add(outputs @ shifted.reshape(-1, x.shape[-1]), mode="promise_in_bounds")

        # A loop, because nine windows would be nine kernels to compile.
        return lax.fori_loop(0, size * size, add_element, totals)

    totals = jnp.zeros((size * size, channels, x.shape[-1]), x.dtype)
    totals = lax.fori_loop(0, gradient.shape[0] // maps * count, add_block, totals)
    return totals.swapaxes(1, 2).reshape(kernel_shape)


def _blocks(gradient: jax.Array) -> tuple[int, int]:
    """Number of maps in a block, and number of blocks of rows in a map; at least one of them is 1.

    There are at least two blocks in all: XLA:CPU multiplies transposed matrices fast only inside of loops.
    """
    batch, height, width, _ = gradient.shape
    size = min(_BLOCK, -(-batch * height * width // 2))
    maps = next((n for n in range(1, batch) if batch % n == 0 and n * height * width >= size), max(1, batch // 2))
    return (maps if batch % maps == 0 else 1), -(-height // -(-size // width))


def _rows(maps: jax.Array, image: jax.Array, images: int, first: jax.Array, count: int) -> jax.Array:
    """Rows (images, count, W, C) of `images` maps from `image` and row `first` on; zeros outside of the maps."""
    height = maps.shape[1]
    rows = first + jnp.arange(count, dtype=jnp.int32)
    inside = (rows >= 0) & (rows < height)
    selected = lax.dynamic_slice_in_dim(maps, image, images)
    values = selected.at[:, jnp.clip(rows, 0, height - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[None, :, None, None], values, 0)

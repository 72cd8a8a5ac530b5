"""Convolution and max pooling of NHWC batches, written so that XLA:CPU finds fast programs in both directions.

The arithmetic is the ordinary one. What is chosen is the formulation: XLA:CPU computes the weight gradient of a
convolution, and select-and-scatter, one to two orders of magnitude slower than the matrix products and shifted slices
that they are equal to (`docs/architecture.md`, "Convolutions").
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mrcnn_jax.ops.depthwise import depthwise_conv2d
from mrcnn_jax.ops.windows import window

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_BLOCK = 1024  # pixels in a block of the CPU's kernel gradient, or a few more: those of 256 channels fit a cache
_LARGE = 512  # pixels of a map that is worth cutting into blocks


class Geometry(NamedTuple):
    """How a kernel walks over the maps."""

    stride: int
    padding: tuple[int, int]  # zeros before and after, in both directions
    dilation: int
    groups: int


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


def _convolution(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (geometry.stride, geometry.stride),
        (geometry.padding, geometry.padding),
        rhs_dilation=(geometry.dilation, geometry.dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=geometry.groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grouped(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=partial(_by_blocks, geometry), default=partial(_convolution, geometry))


def _grouped_fwd(x, kernel, geometry):  # type: ignore[no-untyped-def]
    return _grouped(x, kernel, geometry), (x, kernel)


def _grouped_bwd(geometry, residuals, gradient):  # type: ignore[no-untyped-def]
    def gradients(convolution, x, kernel, gradient):  # type: ignore[no-untyped-def]
        return jax.vjp(partial(convolution, geometry), x, kernel)[1](gradient)

    return lax.platform_dependent(
        *residuals, gradient, cpu=partial(gradients, _by_blocks), default=partial(gradients, _convolution)
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
    return _convolution(geometry, x, kernel)


def _dense_fwd(x, kernel, geometry):  # type: ignore[no-untyped-def]
    return _convolution(geometry, x, kernel), (x, kernel)


def _dense_bwd(geometry, residuals, gradient):  # type: ignore[no-untyped-def]
    x, kernel = residuals
    x_gradient = lax.platform_dependent(
        kernel,
        gradient,
        cpu=partial(_input_gradient_cpu, x.shape, geometry),
        default=partial(_input_gradient_convolution, x.shape, geometry),
    )
    kernel_gradient = lax.platform_dependent(
        x,
        gradient,
        cpu=partial(_kernel_gradient_cpu, kernel.shape, geometry),
        default=partial(_kernel_gradient_convolution, kernel.shape, geometry),
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1 x 1: a matrix product of all pixels at once."""
    return x @ kernel[0, 0]


def _pointwise_fwd(x, kernel):  # type: ignore[no-untyped-def]
    return x @ kernel[0, 0], (x, kernel)


def _pointwise_bwd(residuals, gradient):  # type: ignore[no-untyped-def]
    x, kernel = residuals
    kernel_gradient = lax.platform_dependent(
        x, gradient, cpu=_pointwise_kernel_gradient_cpu, default=_pointwise_kernel_gradient
    )
    return gradient @ kernel[0, 0].T, kernel_gradient.astype(kernel.dtype)


def _pointwise_kernel_gradient(x, gradient):  # type: ignore[no-untyped-def]
    return jnp.einsum("bhwi,bhwo->io", x, gradient)[None, None]


def _pointwise_kernel_gradient_cpu(x, gradient):  # type: ignore[no-untyped-def]
    if math.prod(x.shape[:3]) < _LARGE:
        return _pointwise_kernel_gradient(x, gradient)
    shape = (1, 1, x.shape[-1], gradient.shape[-1])
    return _kernel_gradient_by_blocks(shape, Geometry(1, (0, 0), 1, 1), x, gradient)


_pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


def _input_gradient_convolution(shape, geometry, kernel, gradient):  # type: ignore[no-untyped-def]
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    (result,) = jax.linear_transpose(lambda v: _convolution(geometry, v, kernel), x)(gradient)
    return result


def _input_gradient_cpu(shape, geometry, kernel, gradient):  # type: ignore[no-untyped-def]
    """With a stride, one convolution for the pixels of each phase: XLA:CPU would multiply the zeros between them."""
    stride, size = geometry.stride, kernel.shape[0]
    if stride == 1 or geometry.dilation > 1 or size < stride:
        return _input_gradient_convolution(shape, geometry, kernel, gradient)
    height, width = -(-shape[1] // stride), -(-shape[2] // stride)  # pixels of a phase

    def of_phase(row: int, column: int) -> jax.Array:
        rows, top, bottom = _phase(row, geometry, size, height, gradient.shape[1])
        columns, left, right = _phase(column, geometry, size, width, gradient.shape[2])
        taps = kernel[rows][:, columns].swapaxes(2, 3)
        pads = ((top, bottom), (left, right))
        return lax.conv_general_dilated(gradient, taps, (1, 1), pads, dimension_numbers=_DIMENSIONS)

    phases = [jnp.stack([of_phase(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(phases, axis=2).reshape(shape[0], height * stride, width * stride, shape[3])
    return whole[:, : shape[1], : shape[2]]


def _phase(phase: int, geometry: Geometry, size: int, pixels: int, outputs: int) -> tuple[slice, int, int]:
    """Along one axis, for the pixels `phase`, `phase + stride`, ...: the taps that meet them, the last one first, and
    the zeros to put before and after the gradient, so that convolving it with them gives that many pixels."""
    stride, before = geometry.stride, geometry.padding[0]
    first = (phase + before) % stride
    count = len(range(first, size, stride))
    last = first + (count - 1) * stride
    nearest = (phase + before - last) // stride  # the output that the last tap has this phase's first pixel in
    taps = slice(last, first - 1 if first else None, -stride)
    return taps, -nearest, pixels + nearest + count - 1 - outputs


def _kernel_gradient_convolution(kernel_shape, geometry, x, gradient):  # type: ignore[no-untyped-def]
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    (result,) = jax.linear_transpose(lambda v: _convolution(geometry, x, v), kernel)(gradient)
    return result


def _kernel_gradient_cpu(kernel_shape, geometry, x, gradient):  # type: ignore[no-untyped-def]
    """Blocks, unless the maps are few and small or have few channels: the convolution suits those."""
    batch, height, width, _ = gradient.shape
    if batch >= 64 or (height * width >= _LARGE and x.shape[-1] >= 64):
        return _kernel_gradient_by_blocks(kernel_shape, geometry, x, gradient)
    return _kernel_gradient_convolution(kernel_shape, geometry, x, gradient)


def _kernel_gradient_by_blocks(kernel_shape, geometry, x, gradient):  # type: ignore[no-untyped-def]
    """Summed over blocks that fit a cache, of rows or of whole small maps; in each, a matrix product for every tap.

    The zeros around the maps are put around the blocks: as a whole, padded maps would wait in memory for the gradient.
    """
    width, channels = gradient.shape[2:]
    maps, count = _blocks(gradient)
    rows = -(-gradient.shape[1] // count)
    span = (rows - 1) * geometry.stride + geometry.dilation * (kernel_shape[0] - 1) + 1  # rows of x that a block meets
    taps = [(dy, dx) for dy in range(kernel_shape[0]) for dx in range(kernel_shape[1])]

    def add(index, totals):  # type: ignore[no-untyped-def]
        image, first = index // count * maps, index % count * rows
        seen = _rows(x, image, maps, first * geometry.stride - geometry.padding[0], span)
        seen = lax.pad(seen, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (*geometry.padding, 0), (0, 0, 0)))
        # What all taps share is transposed, once, and not what each of them sees.
        wanted = _rows(gradient, image, maps, first, rows).reshape(-1, channels).T
        stride, step = (geometry.stride, geometry.stride), geometry.dilation
        windows = [window(seen, step * dy, step * dx, rows, width, stride) for dy, dx in taps]
        return [
            total + wanted @ shifted.reshape(-1, x.shape[-1]) for total, shifted in zip(totals, windows, strict=True)
        ]

    zeros = jnp.zeros((channels, x.shape[-1]), x.dtype)
    totals = lax.fori_loop(0, gradient.shape[0] // maps * count, add, [zeros] * len(taps))
    return jnp.stack([total.T for total in totals]).reshape(kernel_shape)


def _blocks(gradient: jax.Array) -> tuple[int, int]:
    """How many whole maps make a block, or one, and into how many blocks of rows it is cut.

    There are at least two blocks: XLA:CPU multiplies transposed matrices well inside of loops, and badly elsewhere."""
    batch, height, width, _ = gradient.shape
    size = min(_BLOCK, -(-batch * height * width // 2))
    maps = next((n for n in range(1, batch) if batch % n == 0 and n * height * width >= size), max(1, batch // 2))
    return (maps if batch % maps == 0 else 1), -(-height // -(-size // width))


def _rows(maps: jax.Array, image: jax.Array, images: int, first: jax.Array, count: int) -> jax.Array:
    """(images, count, W, C): rows of some images from `first` on, zeros where they have none."""
    height = maps.shape[1]
    rows = first + jnp.arange(count, dtype=jnp.int32)
    inside = (rows >= 0) & (rows < height)
    some = lax.dynamic_slice_in_dim(maps, image, images)
    found = some.at[:, jnp.clip(rows, 0, height - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[None, :, None, None], found, 0)

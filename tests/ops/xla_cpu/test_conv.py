"""Convolution and pooling against torch, in both directions, in every formulation that shapes select."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.xla_cpu.conv import conv2d, deconv2x2, interleave, max_pool_3x3

pytestmark = pytest.mark.medium

torch = pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")
functional = torch.nn.functional

# (batch, height, width, in, out, kernel, stride): few pixels or channels; many small maps in blocks, whose size divides
# their number or does not; large maps in blocks of rows, with a remainder; 1 x 1.
SHAPES = [
    (2, 9, 12, 5, 4, 3, 1),
    (2, 9, 12, 3, 4, 7, 2),
    (64, 5, 6, 3, 4, 3, 1),
    (65, 5, 5, 3, 4, 3, 2),
    (1, 46, 45, 128, 2, 3, 1),
    (1, 92, 91, 128, 2, 3, 2),
    (2, 47, 45, 64, 2, 3, 1),
    (67, 14, 14, 3, 4, 3, 1),
    (96, 14, 14, 3, 4, 3, 1),
    (2, 41, 30, 5, 4, 1, 1),
    (2, 7, 8, 5, 4, 1, 1),
    (2, 7, 8, 5, 4, 1, 2),
]
# The same and (groups, dilation): groups that share a slice of channels, fill one, or do not divide evenly; dilated, by
# convolution and by products; depthwise; as many groups as channels, with several outputs each, or dilated.
GROUPED = [
    (2, 9, 12, 32, 64, 3, 2, 16, 1),
    (2, 9, 12, 80, 40, 3, 1, 2, 1),
    (2, 9, 12, 14, 21, 3, 1, 7, 1),
    (2, 9, 12, 8, 8, 1, 2, 2, 1),
    (2, 9, 12, 5, 4, 3, 1, 1, 2),
    (1, 46, 45, 128, 2, 3, 1, 1, 3),
    (65, 9, 8, 4, 2, 3, 2, 2, 2),
    (2, 9, 12, 6, 6, 3, 1, 6, 1),
    (2, 10, 13, 6, 6, 5, 2, 6, 1),
    (2, 9, 12, 6, 12, 3, 1, 6, 1),
    (2, 9, 12, 6, 6, 3, 1, 6, 2),
]


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy()).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d_equals_torch_with_both_gradients(shape):
    size = shape[5]
    assert_equals_torch(*shape, groups=1, dilation=1, pads=(size // 2, size // 2))


@pytest.mark.parametrize("shape", GROUPED, ids=str)
def test_groups_and_dilation_equal_torch_with_both_gradients(shape):
    *shape, groups, dilation = shape
    around = dilation * (shape[5] // 2)
    assert_equals_torch(*shape, groups=groups, dilation=dilation, pads=(around, around))


@pytest.mark.parametrize("pads", [(1, 2), (2, 0)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_padding_may_differ_before_and_after(groups, pads):
    assert_equals_torch(2, 10, 13, 6, 6, 5, 2, groups=groups, dilation=1, pads=pads)


def assert_equals_torch(batch, height, width, channels, features, size, stride, *, groups, dilation, pads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    kernel = rng.standard_normal((size, size, channels // groups, features), np.float32)
    convolve = partial(conv2d, stride=stride, padding=pads, dilation=dilation, groups=groups)

    ours, pull = jax.vjp(jax.jit(convolve), x, kernel)
    cotangent = rng.standard_normal(ours.shape, np.float32)
    x_gradient, kernel_gradient = pull(jnp.asarray(cotangent))

    torch_x, torch_kernel = nchw(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    padded = functional.pad(torch_x, pads + pads)
    theirs = functional.conv2d(padded, torch_kernel, stride=stride, dilation=dilation, groups=groups)
    theirs.backward(nchw(cotangent).detach())
    # A running sum of n products of unit variance grows to sqrt(n), so its rounding adds up to some n * 2**-24.
    close(ours, theirs.detach().numpy().transpose(0, 2, 3, 1), size * size * channels // groups)
    close(x_gradient, torch_x.grad.numpy().transpose(0, 2, 3, 1), size * size * features // groups)
    close(kernel_gradient, torch_kernel.grad.numpy().transpose(2, 3, 1, 0), batch * height * width)


def test_depthwise_sums_are_float32():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 64, 64, 2), np.float32), rng.standard_normal((5, 5, 1, 2), np.float32)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    cotangent = jnp.asarray(rng.standard_normal(x.shape, np.float32), jnp.bfloat16)

    @jax.jit
    def run(x, kernel, cotangent):
        result, pull = jax.vjp(partial(conv2d, groups=2, padding=2), x, kernel)
        return result, *pull(cotangent)

    narrow = x, kernel, cotangent
    for ours, exact in zip(run(*narrow), run(*(part.astype(jnp.float32) for part in narrow)), strict=True):
        assert ours.dtype == jnp.bfloat16
        # One rounding to the 8 bits of bfloat16.
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2.0**-8)


def close(ours, theirs, terms):
    np.testing.assert_allclose(ours, theirs, atol=1e-6 + 4 * terms * 2.0**-24, rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_max_pool_equals_torch(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    ours, pull = jax.vjp(jax.jit(max_pool_3x3), x)
    torch_x = nchw(x)
    theirs = functional.max_pool2d(torch_x, 3, 2, 1)
    np.testing.assert_array_equal(ours, theirs.detach().numpy().transpose(0, 2, 3, 1))
    cotangent = np.random.default_rng(1).standard_normal(ours.shape, np.float32)
    theirs.backward(nchw(cotangent).detach())
    close(pull(jnp.asarray(cotangent))[0], torch_x.grad.numpy().transpose(0, 2, 3, 1), 9)


def test_deconv2x2_equals_torch():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 3, 4, 5), np.float32), rng.standard_normal((2, 2, 5, 6), np.float32)
    theirs = functional.conv_transpose2d(nchw(x), torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy()), stride=2)
    close(
        jax.jit(lambda x, kernel: interleave(deconv2x2(x, kernel)))(x, kernel),
        theirs.detach().numpy().transpose(0, 2, 3, 1),
        5,
    )

"""Convolution and pooling against torch, in both directions, in every formulation that a shape can select."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.conv import conv2d, deconv2x2, interleave, max_pool_3x3

torch = pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")
functional = torch.nn.functional

# (batch, height, width, in, out, kernel, stride), for the convolution, the walk over images, the products, and 1 x 1.
SHAPES = [
    (2, 9, 12, 5, 4, 3, 1),
    (2, 9, 12, 3, 4, 7, 2),
    (64, 5, 6, 3, 4, 3, 1),
    (65, 5, 5, 3, 4, 3, 2),
    (1, 46, 45, 128, 2, 3, 1),
    (1, 92, 91, 128, 2, 3, 2),
    (2, 7, 8, 5, 4, 1, 1),
    (2, 7, 8, 5, 4, 1, 2),
]


def nchw(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy()).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d_equals_torch_with_both_gradients(shape):
    batch, height, width, channels, features, size, stride = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    kernel = rng.standard_normal((size, size, channels, features), np.float32)

    ours, pull = jax.vjp(jax.jit(lambda x, k: conv2d(x, k, stride=stride, padding=size // 2)), x, kernel)
    cotangent = rng.standard_normal(ours.shape, np.float32)
    x_gradient, kernel_gradient = pull(jnp.asarray(cotangent))

    torch_x, torch_kernel = nchw(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    theirs = functional.conv2d(torch_x, torch_kernel, stride=stride, padding=size // 2)
    theirs.backward(nchw(cotangent).detach())
    # A running sum of n products of unit variance grows to sqrt(n), so its rounding adds up to some n * 2**-24.
    close(ours, theirs.detach().numpy().transpose(0, 2, 3, 1), size * size * channels)
    close(x_gradient, torch_x.grad.numpy().transpose(0, 2, 3, 1), size * size * features)
    close(kernel_gradient, torch_kernel.grad.numpy().transpose(2, 3, 1, 0), batch * height * width)


def close(ours, theirs, terms):
    np.testing.assert_allclose(ours, theirs, atol=1e-6 + 4 * terms * 2.0**-24, rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_max_pool_equals_torch(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    ours, pull = jax.vjp(max_pool_3x3, x)
    torch_x = nchw(x)
    theirs = functional.max_pool2d(torch_x, 3, 2, 1)
    np.testing.assert_array_equal(ours, theirs.detach().numpy().transpose(0, 2, 3, 1))
    cotangent = np.random.default_rng(1).standard_normal(ours.shape, np.float32)
    theirs.backward(nchw(cotangent).detach())
    close(pull(jnp.asarray(cotangent))[0], torch_x.grad.numpy().transpose(0, 2, 3, 1), 9)


def test_deconv_equals_torch():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 3, 4, 5), np.float32), rng.standard_normal((2, 2, 5, 6), np.float32)
    theirs = functional.conv_transpose2d(nchw(x), torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy()), stride=2)
    close(interleave(deconv2x2(x, kernel)), theirs.detach().numpy().transpose(0, 2, 3, 1), 5)

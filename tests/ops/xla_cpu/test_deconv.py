"""The transposed convolution of the keypoint head against torch, in both directions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.xla_cpu.conv import deconv4x4


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 1)], ids=str)
def test_deconv4x4_equals_torch_with_both_gradients(shape):
    torch = pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")
    inputs, outputs = 6, 2
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(s, np.float32) for s in ((*shape, inputs), (4, 4, inputs, outputs)))
    ours, pull = jax.vjp(jax.jit(deconv4x4), x, kernel)
    cotangent = rng.standard_normal(ours.shape, np.float32)
    x_gradient, kernel_gradient = pull(jnp.asarray(cotangent))

    torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    torch_kernel = torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy()).requires_grad_()
    theirs = torch.nn.functional.conv_transpose2d(torch_x, torch_kernel, stride=2, padding=1)
    theirs.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()))

    def close(ours, theirs, order, terms):
        # A running sum of n products of unit variance grows to sqrt(n), so its rounding adds up to some n * 2**-24.
        np.testing.assert_allclose(ours, theirs.numpy().transpose(order), rtol=1e-6, atol=1e-6 + 4 * terms * 2.0**-24)

    close(ours, theirs.detach(), (0, 2, 3, 1), 4 * inputs)
    close(x_gradient, torch_x.grad, (0, 2, 3, 1), 16 * outputs)
    close(kernel_gradient, torch_kernel.grad, (2, 3, 0, 1), np.prod(shape))

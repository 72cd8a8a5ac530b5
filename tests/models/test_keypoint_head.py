"""The keypoint head: names, shapes, initial weights, and equality with torch in both directions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.keypoint_head import KeypointHead

HEAD = KeypointHead(num_keypoints=3, channels=6, conv_layers=2)


def test_keypoint_head_quadruples_the_side():
    x = jax.ShapeDtypeStruct((2, 5, 5, 4), jnp.bfloat16)
    maps, variables = jax.eval_shape(lambda x: HEAD.init_with_output(jax.random.key(0), x), x)
    assert maps.shape == (2, 20, 20, 3)
    assert maps.dtype == jnp.float32
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    assert shapes["deconv"] == {"kernel": (4, 4, 6, 3), "bias": (3,)}
    assert shapes["conv2"] == {"kernel": (3, 3, 6, 6), "bias": (6,)}
    assert set(shapes) == {"conv1", "conv2", "deconv"}


def test_initial_weights_have_the_deviation_of_the_reference_implementations():
    """It is sqrt(2 / (16 I)), the `fan_out` of a transposed convolution, whose kernel has its inputs first."""
    head = KeypointHead(num_keypoints=17, channels=64, conv_layers=1)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))["params"]
    kernel = np.asarray(params["deconv"]["kernel"])
    # Four standard errors of a deviation estimated from n values: 4 / sqrt(2 n).
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (16 * 64)), rtol=4 / np.sqrt(2 * kernel.size))
    assert not params["deconv"]["bias"].any()


@pytest.mark.medium
def test_keypoint_head_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) / 4, shapes)
    cotangent = rng.standard_normal((2, 12, 16, 3), np.float32)
    maps, pull = jax.vjp(jax.jit(HEAD.apply), variables, x)
    gradients, x_gradient = pull(jnp.asarray(cotangent))

    params = variables["params"]
    theirs = torch_head(torch, params)
    torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = theirs(torch_x)
    expected.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()))

    def close(ours, theirs):
        # Sums of up to 384 terms (a bias has every pixel) after sums of 54 each, measured against the largest.
        theirs = theirs.detach().numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=400 * 2.0**-24 * np.abs(theirs).max())

    close(maps, expected.permute(0, 2, 3, 1))
    close(x_gradient, torch_x.grad.permute(0, 2, 3, 1))
    for name, module in zip(("conv1", "conv2", "deconv"), (theirs[0], theirs[2], theirs[4]), strict=True):
        order = (2, 3, 0, 1) if name == "deconv" else (2, 3, 1, 0)
        close(gradients["params"][name]["kernel"], module.weight.grad.permute(order))
        close(gradients["params"][name]["bias"], module.bias.grad)


def torch_head(torch, params):
    """The same layers with the same weights."""
    head = torch.nn.Sequential(
        torch.nn.Conv2d(5, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1),
        torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )
    for name, module in zip(("conv1", "conv2", "deconv"), (head[0], head[2], head[4]), strict=True):
        order = (2, 3, 0, 1) if name == "deconv" else (3, 2, 0, 1)
        module.weight.data = torch.from_numpy(params[name]["kernel"].transpose(order).copy())
        module.bias.data = torch.from_numpy(params[name]["bias"].copy())
    return head

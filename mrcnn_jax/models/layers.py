"""Layers and initializers shared by the networks: convolutions, fully connected layers, ReLU, bias.

Parameters are those of Flax's `nn.Conv` and `nn.Dense`, which sum the gradient of a bias in the dtype of the
activations: in bfloat16, 54,400 ones add up to 16,128.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.norms import NormFactory
from mrcnn_jax.ops.xla_cpu.conv import conv2d, deconv2x2

Initializer = Callable[..., jax.Array]

# He et al. 2015 in fan-out form, and Caffe2's "Xavier" fill (fan-in, uniform): the names of the reference code.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
caffe2_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). The gradient is computed from the result, so that `x` need not be stored for the backward pass."""
    return jnp.maximum(x, 0)


def _relu_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA:CPU would recompute a maximum for the gradient, which keeps x alive; the result of a select is stored instead.
    # On GPUs XLA fuses a maximum into the convolution before it.
    y = jax.lax.platform_dependent(x, cpu=_select_positive, default=lambda x: jnp.maximum(x, 0))
    return y, y


def _select_positive(x: jax.Array) -> jax.Array:
    return jnp.where(x <= 0, 0, x)  # NaN stays NaN


def _relu_bwd(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Not y > 0: XLA would simplify max(x, 0) > 0 to x > 0, store x as well, and not fuse ReLU into the convolution.
    return (jnp.where(y != 0, gradient, 0),)


relu.defvjp(_relu_fwd, _relu_bwd)


class Conv(nn.Module):
    """Convolution of an NHWC batch; parameters `kernel` (k, k, I / groups, O) and `bias` (O,).

    `padding` as in `conv2d`; None keeps the size at stride 1.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal_fan_out
    groups: int = 1
    dilation: int = 1
    padding: int | tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, groups, dilation = self.kernel_size, self.groups, self.dilation
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1] // groups, self.features))
        padding = dilation * (size // 2) if self.padding is None else self.padding
        y = conv2d(x, kernel.astype(x.dtype), stride=self.stride, padding=padding, dilation=dilation, groups=groups)
        return _maybe_add_bias(self, y)


class PointwiseParameters(nn.Module):
    """Kernel (1, 1, I, O) and bias (O,) of a 1 x 1 convolution that the caller computes."""

    features: int
    kernel_init: Initializer

    @nn.compact
    def __call__(self, in_features: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (1, 1, in_features, self.features))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


class Deconv2x2(nn.Module):
    """Transposed convolution (B, H, W, I) -> 2 x 2 blocks (B, H, W, 2, 2, O), see `deconv2x2`.

    Parameters `kernel` (2, 2, I, O) and `bias` (O,).
    """

    features: int
    kernel_init: Initializer = he_normal_fan_out
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (2, 2, x.shape[-1], self.features))
        return _maybe_add_bias(self, deconv2x2(x, kernel.astype(x.dtype)))


class Dense(nn.Module):
    """Fully connected layer on the last axis; parameters `kernel` (I, O) and `bias` (O,)."""

    features: int
    kernel_init: Initializer = caffe2_xavier
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return _maybe_add_bias(self, x @ kernel.astype(x.dtype))


def maybe_remat(module: Any, remat: bool) -> Any:
    """Wrap a module class in `nn.remat` if `remat` is True: the backward pass recomputes its activations from `x`.

    The module is called as `module(x, train, ...)`, with `train` by position. Names of variables do not change.
    """
    return nn.remat(module, static_argnums=(2,)) if remat else module


def conv_norm_relu(
    index: int, features: int, norm: NormFactory | None, x: jax.Array, valid: jax.Array | None, *, train: bool
) -> jax.Array:
    """3 x 3 convolution, norm if not None, ReLU: submodules `conv{index}` and `norm{index}` of the calling module."""
    x = Conv(features, 3, use_bias=norm is None, name=f"conv{index}")(x)
    return relu(x if norm is None else norm(name=f"norm{index}")(x, train=train, valid=valid))


def _maybe_add_bias(module: Any, y: jax.Array) -> jax.Array:
    if not module.use_bias:
        return y
    return add_bias(y, module.param("bias", nn.initializers.zeros_init(), (module.features,)))


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias (F,) to y (..., F), in the dtype of y.

    The gradient of the bias is summed in float32: a bfloat16 sum of so many terms would stop growing.
    """
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def _add_bias_fwd(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(y, bias), None


def _add_bias_bwd(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, jnp.sum(gradient, axis=tuple(range(gradient.ndim - 1)), dtype=jnp.float32)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)

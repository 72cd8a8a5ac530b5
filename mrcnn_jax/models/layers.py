"""Convolutions, norms and initialisers that the networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.ops.conv import conv2d, deconv2x2

Initializer = Callable[..., jax.Array]
NormName = Literal["frozen_bn", "bn", "gn"]

# Named as in the papers and the peers: He et al. 2015 in fan-out form, and Caffe2's "Xavier" fill (fan-in, uniform).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
caffe2_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Conv(nn.Module):
    """Convolution of an NHWC batch with explicit symmetric padding; parameters `kernel` (HWIO) and `bias`."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
        y = conv2d(x, kernel.astype(x.dtype), stride=self.stride, padding=size // 2)
        return _add_bias(self, y)


class Deconv2x2(nn.Module):
    """(B, H, W, I) -> blocks (B, H, W, 2, 2, O) of `ops.conv.deconv2x2`; parameters `kernel` (2, 2, I, O), `bias`."""

    features: int
    kernel_init: Initializer = he_normal_fan_out
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (2, 2, x.shape[-1], self.features))
        return _add_bias(self, deconv2x2(x, kernel.astype(x.dtype)))


class Dense(nn.Module):
    """Fully connected layer on the last axis; parameters `kernel` (I, O) and `bias`."""

    features: int
    kernel_init: Initializer = caffe2_xavier
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return _add_bias(self, x @ kernel.astype(x.dtype))


class Norm(nn.Module):
    """A normalisation layer by name.

    `frozen_bn`: batch norm whose statistics and affine constants never change (collection `frozen`, not `params`);
    `bn`: batch norm over the batch of this device when `train`, else with running statistics; `gn`: group norm with
    32 groups, or with 2 channels a group where there are fewer than 64 (Wu and He 2018).
    """

    kind: NormName
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.kind == "frozen_bn":
            return self._frozen(x)
        if self.kind == "bn":
            norm = nn.BatchNorm(not train, momentum=0.9, epsilon=self.eps, dtype=x.dtype, name="norm")
            return norm(x)
        groups = min(32, x.shape[-1] // 2)
        return nn.GroupNorm(groups, epsilon=self.eps, dtype=x.dtype, name="norm")(x)

    def _frozen(self, x: jax.Array) -> jax.Array:
        def constant(name: str, value: float) -> jax.Array:
            return self.variable("frozen", name, lambda: jnp.full((x.shape[-1],), value)).value

        factor = constant("scale", 1.0) * jax.lax.rsqrt(constant("var", 1.0) + self.eps)
        offset = constant("bias", 0.0) - constant("mean", 0.0) * factor
        return x * factor.astype(x.dtype)[None, None, None] + offset.astype(x.dtype)[None, None, None]


def _add_bias(module: Any, y: jax.Array) -> jax.Array:
    if not module.use_bias:
        return y
    bias = module.param("bias", nn.initializers.zeros_init(), (module.features,))
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

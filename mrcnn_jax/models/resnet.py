"""Residual networks (He et al. 2016; with groups: ResNeXt, Xie et al. 2017) with taps after every stage."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers import Conv, relu, rematerialized
from mrcnn_jax.models.norms import NormFactory
from mrcnn_jax.ops.xla_cpu.conv import max_pool_3x3

_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
_BASIC = ("resnet18", "resnet34")


class ResNet(nn.Module):
    """(B, H, W, 3) normalized images -> (C2, C3, ...), at strides 4, 8, 16 and 32.

    `stages` of them, from res2 on. `res5_dilation` of 2 leaves res5 at stride 16 and spreads its kernels instead.
    Frozen stages end in a `stop_gradient`, so they cost no backward pass, and their batch norms keep their statistics.
    With `remat` the backward pass computes the inside of a block again, from what the block before it left.
    """

    config: BackboneConfig
    norm: NormFactory
    stages: int = 4
    res5_dilation: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        frozen = self.config.frozen_stages >= 1
        x = Stem(self.config, self.norm, name="stem")(images, train=train and not frozen, rows=rows)
        x = jax.lax.stop_gradient(x) if frozen else x
        taps = []
        for number in range(2, 2 + self.stages):
            frozen = self.config.frozen_stages >= number
            dilation = self.res5_dilation if number == 5 else 1
            stage = Stage(self.config, self.norm, number, dilation, self.remat and not frozen, name=f"res{number}")
            x = stage(x, train=train and not frozen, rows=rows)
            x = jax.lax.stop_gradient(x) if frozen else x
            taps.append(x)
        return tuple(taps)


class Stem(nn.Module):
    """7 x 7 convolution of stride 2, norm, ReLU, 3 x 3 max pooling of stride 2."""

    config: BackboneConfig
    norm: NormFactory

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        x = Conv(self.config.width, 7, stride=2, use_bias=False, name="conv")(images)
        x = self.norm(name="norm")(x, train=train, rows=rows)
        return max_pool_3x3(relu(x))


class Stage(nn.Module):
    """res2, ..., res5 by `number`: blocks, the first of which halves the resolution, but in res2 and where dilated."""

    config: BackboneConfig
    norm: NormFactory
    number: int
    dilation: int = 1
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        block = rematerialized(BasicBlock if self.config.name in _BASIC else BottleneckBlock, self.remat)
        width = self.config.width * 2 ** (self.number - 2)
        first_stride = 1 if self.number == 2 or self.dilation > 1 else 2
        for index in range(_DEPTHS[self.config.name][self.number - 2]):
            stride = first_stride if index == 0 else 1
            x = block(self.config, self.norm, width, stride, self.dilation, name=f"block{index}")(x, train, rows)
        return x


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet-18 and -34)."""

    config: BackboneConfig
    norm: NormFactory
    width: int
    stride: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        y = Conv(self.width, 3, stride=self.stride, dilation=self.dilation, use_bias=False, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train, rows=rows))
        y = Conv(self.width, 3, dilation=self.dilation, use_bias=False, name="conv2")(y)
        y = self.norm(name="norm2")(y, train=train, rows=rows)
        return relu(y + _shortcut(self.norm, x, y.shape[-1], self.stride, train, rows))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut; the stride is in the first or the second of them."""

    config: BackboneConfig
    norm: NormFactory
    width: int
    stride: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        groups = self.config.groups
        inner = self.width * self.config.width_per_group // 64 * groups
        first, second = (self.stride, 1) if self.config.stride_in_1x1 else (1, self.stride)
        y = Conv(inner, 1, stride=first, use_bias=False, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train, rows=rows))
        conv = partial(Conv, inner, 3, stride=second, dilation=self.dilation, groups=groups)
        y = conv(use_bias=False, name="conv2")(y)
        y = relu(self.norm(name="norm2")(y, train=train, rows=rows))
        y = Conv(4 * self.width, 1, use_bias=False, name="conv3")(y)
        y = self.norm(name="norm3")(y, train=train, rows=rows)
        return relu(y + _shortcut(self.norm, x, y.shape[-1], self.stride, train, rows))


def _shortcut(
    norm: NormFactory, x: jax.Array, features: int, stride: int, train: bool, rows: jax.Array | None
) -> jax.Array:
    """The identity, or a 1 x 1 projection where the shape changes; a sub-module of the calling block."""
    if x.shape[-1] == features and stride == 1:
        return x
    x = Conv(features, 1, stride=stride, use_bias=False, name="shortcut")(x)
    return norm(name="shortcut_norm")(x, train=train, rows=rows)

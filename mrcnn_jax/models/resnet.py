"""Residual networks (He et al. 2016; with groups: ResNeXt, Xie et al. 2017) that return the output of every stage."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers import Conv, maybe_remat, relu
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
    """Normalized images (B, H, W, 3) -> (C2, C3, ...), at strides 4, 8, 16 and 32.

    Frozen stages end in a `stop_gradient`, so that they need no backward pass, and their batch norms keep their running
    statistics.

    Attributes:
        config: name, width and frozen stages.
        norm: constructor of norm layers.
        num_stages: number of stages, from res2 on.
        res5_dilation: 2 keeps res5 at stride 16 and dilates its kernels instead.
        remat: recompute the activations of a block in the backward pass from its input.
    """

    config: BackboneConfig
    norm: NormFactory
    num_stages: int = 4
    res5_dilation: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        frozen = self.config.frozen_stages >= 1
        x = ResNetStem(self.config, self.norm, name="stem")(images, train=train and not frozen, valid=valid)
        x = jax.lax.stop_gradient(x) if frozen else x
        outputs = []
        for number in range(2, 2 + self.num_stages):
            frozen = self.config.frozen_stages >= number
            dilation = self.res5_dilation if number == 5 else 1
            stage = ResNetStage(
                self.config, self.norm, number, dilation, self.remat and not frozen, name=f"res{number}"
            )
            x = stage(x, train=train and not frozen, valid=valid)
            x = jax.lax.stop_gradient(x) if frozen else x
            outputs.append(x)
        return tuple(outputs)


class ResNetStem(nn.Module):
    """7 x 7 convolution of stride 2, norm, ReLU, 3 x 3 max pooling of stride 2."""

    config: BackboneConfig
    norm: NormFactory

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        x = Conv(self.config.width, 7, stride=2, use_bias=False, name="conv")(images)
        x = self.norm(name="norm")(x, train=train, valid=valid)
        return max_pool_3x3(relu(x))


class ResNetStage(nn.Module):
    """One of res2..res5, by `number`: residual blocks.

    The first block halves the resolution, except in res2 and in dilated stages.
    """

    config: BackboneConfig
    norm: NormFactory
    number: int
    dilation: int = 1
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        block = maybe_remat(BasicBlock if self.config.name in _BASIC else BottleneckBlock, self.remat)
        width = self.config.width * 2 ** (self.number - 2)
        first_stride = 1 if self.number == 2 or self.dilation > 1 else 2
        for index in range(_DEPTHS[self.config.name][self.number - 2]):
            stride = first_stride if index == 0 else 1
            x = block(self.config, self.norm, width, stride, self.dilation, name=f"block{index}")(x, train, valid)
        return x


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet-18 and -34)."""

    config: BackboneConfig
    norm: NormFactory
    width: int
    stride: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        y = Conv(self.width, 3, stride=self.stride, dilation=self.dilation, use_bias=False, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train, valid=valid))
        y = Conv(self.width, 3, dilation=self.dilation, use_bias=False, name="conv2")(y)
        y = self.norm(name="norm2")(y, train=train, valid=valid)
        return relu(y + _shortcut(self.norm, x, y.shape[-1], self.stride, train, valid))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; `stride_in_1x1` puts the stride in the first of them."""

    config: BackboneConfig
    norm: NormFactory
    width: int
    stride: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        groups = self.config.groups
        inner_width = self.width * self.config.width_per_group // 64 * groups
        first, second = (self.stride, 1) if self.config.stride_in_1x1 else (1, self.stride)
        y = Conv(inner_width, 1, stride=first, use_bias=False, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train, valid=valid))
        conv = partial(Conv, inner_width, 3, stride=second, dilation=self.dilation, groups=groups)
        y = conv(use_bias=False, name="conv2")(y)
        y = relu(self.norm(name="norm2")(y, train=train, valid=valid))
        y = Conv(4 * self.width, 1, use_bias=False, name="conv3")(y)
        y = self.norm(name="norm3")(y, train=train, valid=valid)
        return relu(y + _shortcut(self.norm, x, y.shape[-1], self.stride, train, valid))


def _shortcut(
    norm: NormFactory, x: jax.Array, features: int, stride: int, train: bool, valid: jax.Array | None
) -> jax.Array:
    """The identity, or a 1 x 1 projection (submodule `shortcut` of the calling block) if the shape changes."""
    if x.shape[-1] == features and stride == 1:
        return x
    x = Conv(features, 1, stride=stride, use_bias=False, name="shortcut")(x)
    return norm(name="shortcut_norm")(x, train=train, valid=valid)

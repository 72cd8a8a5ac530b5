"""Residual networks (He et al. 2016) with taps after every stage."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers import Conv, Norm
from mrcnn_jax.ops.conv import max_pool_3x3

_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
_BASIC = ("resnet18", "resnet34")


class ResNet(nn.Module):
    """(B, H, W, 3) normalised images -> (C2, C3, C4, C5), at strides 4, 8, 16 and 32.

    Frozen stages end in a `stop_gradient`, so they cost no backward pass, and their batch norms keep their statistics.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        config = self.config
        block = BasicBlock if config.name in _BASIC else BottleneckBlock
        frozen = config.frozen_stages >= 1
        x = Stem(config, name="stem")(images, train=train and not frozen)
        x = jax.lax.stop_gradient(x) if frozen else x
        taps = []
        for index, depth in enumerate(_DEPTHS[config.name]):
            frozen = config.frozen_stages >= index + 2
            stage = partial(Stage, config, block, config.width * 2**index, depth, 1 if index == 0 else 2)
            x = stage(name=f"res{index + 2}")(x, train=train and not frozen)
            x = jax.lax.stop_gradient(x) if frozen else x
            taps.append(x)
        return tuple(taps)


class Stem(nn.Module):
    """7 x 7 convolution of stride 2, norm, ReLU, 3 x 3 max pooling of stride 2."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = Conv(self.config.width, 7, stride=2, use_bias=False, name="conv")(images)
        x = Norm(self.config.norm, self.config.norm_eps, name="norm")(x, train=train)
        return max_pool_3x3(nn.relu(x))


class Stage(nn.Module):
    """`depth` blocks; the first one has the stage's stride."""

    config: BackboneConfig
    block: type[nn.Module]
    width: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for index in range(self.depth):
            stride = self.stride if index == 0 else 1
            x = self.block(self.config, self.width, stride, name=f"block{index}")(x, train=train)  # type: ignore[call-arg]
        return x


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet-18 and -34)."""

    config: BackboneConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        norm = partial(Norm, self.config.norm, self.config.norm_eps)
        y = Conv(self.width, 3, stride=self.stride, use_bias=False, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width, 3, use_bias=False, name="conv2")(y)
        y = norm(name="norm2")(y, train=train)
        return nn.relu(y + _shortcut(self.config, x, y.shape[-1], self.stride, train))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut; the stride is in the first or the second of them."""

    config: BackboneConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        norm = partial(Norm, self.config.norm, self.config.norm_eps)
        first, second = (self.stride, 1) if self.config.stride_in_1x1 else (1, self.stride)
        y = Conv(self.width, 1, stride=first, use_bias=False, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width, 3, stride=second, use_bias=False, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(4 * self.width, 1, use_bias=False, name="conv3")(y)
        y = norm(name="norm3")(y, train=train)
        return nn.relu(y + _shortcut(self.config, x, y.shape[-1], self.stride, train))


def _shortcut(config: BackboneConfig, x: jax.Array, features: int, stride: int, train: bool) -> jax.Array:
    """The identity, or a 1 x 1 projection where the shape changes; a sub-module of the calling block."""
    if x.shape[-1] == features and stride == 1:
        return x
    x = Conv(features, 1, stride=stride, use_bias=False, name="shortcut")(x)
    return Norm(config.norm, config.norm_eps, name="shortcut_norm")(x, train=train)

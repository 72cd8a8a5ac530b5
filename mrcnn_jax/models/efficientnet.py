"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variants: tensorflow/tpu, efficientnet/lite) with taps for a pyramid.

EfficientNet-B0 for small devices: ReLU6 in the place of swish, no squeeze-and-excitation. 4.3 million weights without
the classifier's head, which a detector does not need.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers import Conv, rematerialized
from mrcnn_jax.models.norms import NormFactory

_STEM = 32  # channels, as those of the blocks in the published network: where `BackboneConfig.width` is 64
_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Block(NamedTuple):
    """One inverted residual block of the published network."""

    level: int  # of the pyramid's tap C2..C5 that it leads to
    kernel: int
    stride: int
    expansion: int
    channels: int


BLOCKS = (
    Block(2, 3, 1, 1, 16),
    Block(2, 3, 2, 6, 24),
    Block(2, 3, 1, 6, 24),
    Block(3, 5, 2, 6, 40),
    Block(3, 5, 1, 6, 40),
    Block(4, 3, 2, 6, 80),
    *[Block(4, 3, 1, 6, 80)] * 2,
    *[Block(4, 5, 1, 6, 112)] * 3,
    Block(5, 5, 2, 6, 192),
    *[Block(5, 5, 1, 6, 192)] * 3,
    Block(5, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """(B, H, W, 3) normalized images -> (C2, C3, C4, C5), at strides 4, 8, 16 and 32; H and W divisible by 32.

    Frozen stages are those of a residual network: 1 is the stem, 2 also the blocks up to C2, 3 those up to C3, and so
    on. They end in a `stop_gradient`, so they cost no backward pass, and their batch norms keep their statistics.
    With `remat` the backward pass computes the inside of a block again, from what the block before it left.
    """

    config: BackboneConfig
    norm: NormFactory
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        scale, frozen_stages = self.config.width / 64, self.config.frozen_stages
        stem = Stem(round(_STEM * scale), self.norm, name="stem")
        x = stem(images, train=train and frozen_stages < 1, rows=rows)
        x = jax.lax.stop_gradient(x) if frozen_stages >= 1 else x
        taps: list[jax.Array] = []
        for index, block in enumerate(BLOCKS):
            frozen = frozen_stages >= block.level
            residual = rematerialized(InvertedResidual, self.remat and not frozen)
            x = residual(block, scale, self.norm, name=f"block{index}")(x, train and not frozen, rows)
            if index + 1 == len(BLOCKS) or BLOCKS[index + 1].level > block.level:
                x = jax.lax.stop_gradient(x) if frozen else x
                taps.append(x)
        return tuple(taps)


class Stem(nn.Module):
    """3 x 3 convolution of stride 2, norm, ReLU6."""

    features: int
    norm: NormFactory

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        x = Conv(self.features, 3, stride=2, padding=_same(3, 2), use_bias=False, name="conv")(images)
        return _relu6(self.norm(name="norm")(x, train=train, rows=rows))


class InvertedResidual(nn.Module):
    """Expansion by a 1 x 1 convolution, depthwise convolution, projection; added to the input where the shape stays."""

    block: Block
    scale: float  # of the channels
    norm: NormFactory

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        block, features = self.block, round(self.block.channels * self.scale)
        y, inner = x, x.shape[-1] * block.expansion
        if block.expansion > 1:
            y = Conv(inner, use_bias=False, name="expand")(y)
            y = _relu6(self.norm(name="expand_norm")(y, train=train, rows=rows))
        y = Conv(
            inner,
            block.kernel,
            stride=block.stride,
            padding=_same(block.kernel, block.stride),
            use_bias=False,
            groups=inner,
            kernel_init=_depthwise_init,
            name="depthwise",
        )(y)
        y = _relu6(self.norm(name="depthwise_norm")(y, train=train, rows=rows))
        y = Conv(features, use_bias=False, name="project")(y)
        y = self.norm(name="project_norm")(y, train=train, rows=rows)
        return x + y if x.shape == y.shape else y


def _same(kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding of maps whose size the stride divides: the odd zero comes after."""
    total = kernel - stride
    return total // 2, total - total // 2


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.minimum(nn.relu(x), 6)

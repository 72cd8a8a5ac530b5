"""EfficientNet-Lite0 (Tan and Le 2019; Lite variants: tensorflow/tpu, efficientnet/lite) as a backbone.

EfficientNet-B0 for small devices: ReLU6 instead of swish, no squeeze-and-excitation. 4.3 million parameters without the
classification head, which is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers import Conv, maybe_remat
from mrcnn_jax.models.norms import NormFactory

_STEM_CHANNELS = 32  # like those of the blocks, at the published width, which is `BackboneConfig.width` = 64
_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class BlockConfig(NamedTuple):
    """Settings of an inverted residual block in the published network."""

    level: int  # 2..5 for blocks up to C2, C3, C4, C5
    kernel: int
    stride: int
    expansion: int
    channels: int


BLOCKS = (
    BlockConfig(2, 3, 1, 1, 16),
    BlockConfig(2, 3, 2, 6, 24),
    BlockConfig(2, 3, 1, 6, 24),
    BlockConfig(3, 5, 2, 6, 40),
    BlockConfig(3, 5, 1, 6, 40),
    BlockConfig(4, 3, 2, 6, 80),
    *[BlockConfig(4, 3, 1, 6, 80)] * 2,
    *[BlockConfig(4, 5, 1, 6, 112)] * 3,
    BlockConfig(5, 5, 2, 6, 192),
    *[BlockConfig(5, 5, 1, 6, 192)] * 3,
    BlockConfig(5, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """Normalized images (B, H, W, 3) -> (C2, C3, C4, C5), at strides 4, 8, 16 and 32; H and W divisible by 32.

    Frozen stages correspond to those of a residual network: 1 is the stem, 2 also the blocks up to C2, 3 those up to
    C3, and so on. They end in a `stop_gradient`, so that they need no backward pass, and their batch norms keep their
    running statistics. With `remat` the backward pass recomputes the activations of a block from its input.
    """

    config: BackboneConfig
    norm: NormFactory
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        scale, frozen_stages = self.config.width / 64, self.config.frozen_stages
        stem = EfficientNetStem(round(_STEM_CHANNELS * scale), self.norm, name="stem")
        x = stem(images, train=train and frozen_stages < 1, valid=valid)
        x = jax.lax.stop_gradient(x) if frozen_stages >= 1 else x
        outputs: list[jax.Array] = []
        for index, block in enumerate(BLOCKS):
            frozen = frozen_stages >= block.level
            residual = maybe_remat(InvertedResidual, self.remat and not frozen)
            x = residual(block, scale, self.norm, name=f"block{index}")(x, train and not frozen, valid)
            if index + 1 == len(BLOCKS) or BLOCKS[index + 1].level > block.level:
                x = jax.lax.stop_gradient(x) if frozen else x
                outputs.append(x)
        return tuple(outputs)


class EfficientNetStem(nn.Module):
    """3 x 3 convolution of stride 2, norm, ReLU6."""

    features: int
    norm: NormFactory

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        x = Conv(self.features, 3, stride=2, padding=_same(3, 2), use_bias=False, name="conv")(images)
        return _relu6(self.norm(name="norm")(x, train=train, valid=valid))


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; added to the input if the shape stays the same."""

    config: BlockConfig
    scale: float  # factor of the published numbers of channels
    norm: NormFactory

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        block, features = self.config, round(self.config.channels * self.scale)
        y, inner_width = x, x.shape[-1] * block.expansion
        if block.expansion > 1:
            y = Conv(inner_width, use_bias=False, name="expand")(y)
            y = _relu6(self.norm(name="expand_norm")(y, train=train, valid=valid))
        y = Conv(
            inner_width,
            block.kernel,
            stride=block.stride,
            padding=_same(block.kernel, block.stride),
            use_bias=False,
            groups=inner_width,
            kernel_init=_depthwise_init,
            name="depthwise",
        )(y)
        y = _relu6(self.norm(name="depthwise_norm")(y, train=train, valid=valid))
        y = Conv(features, use_bias=False, name="project")(y)
        y = self.norm(name="project_norm")(y, train=train, valid=valid)
        return x + y if x.shape == y.shape else y


def _same(kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding for sizes divisible by the stride: an odd zero is added at the end."""
    total = kernel - stride
    return total // 2, total - total // 2


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.minimum(nn.relu(x), 6)

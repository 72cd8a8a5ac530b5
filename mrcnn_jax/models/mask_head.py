"""The mask head: a small fully convolutional network on each RoI (He et al. 2017, figure 4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.models.layers import Conv, Deconv2x2, conv_norm_relu, relu
from mrcnn_jax.models.norms import NormFactory
from mrcnn_jax.ops.conv import interleave


class MaskHead(nn.Module):
    """RoI features (R, S, S, F) -> one mask for each class: logits (R, 2 S, 2 S, C), float32.

    A class-agnostic head has one channel. `valid` (R,) bool: the RoIs that count in batch statistics.
    """

    num_classes: int
    config: MaskHeadConfig
    norm: NormFactory | None = None

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        config = self.config
        for index in range(1, config.conv_layers + 1):
            x = conv_norm_relu(index, config.channels, self.norm, x, valid, train=train)
        blocks = relu(Deconv2x2(config.channels, name="deconv")(x)).astype(jnp.float32)
        # The last layer looks at one pixel at a time, so it can come before the pixels of a block are laid out.
        pixels = blocks.reshape(blocks.shape[0], -1, 1, config.channels)
        masks = 1 if config.class_agnostic else self.num_classes
        logits = Conv(masks, 1, kernel_init=nn.initializers.normal(0.001), name="logits")(pixels)
        return interleave(logits.reshape(*blocks.shape[:-1], masks))


def select_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """The mask of each RoI's class: (R, S, S, C) and (R,) classes in 1..C -> (R, S, S). A class of 0 gives zeros.

    Of class-agnostic masks (R, S, S, 1) it is the only one.
    """
    if logits.shape[-1] == 1:
        return logits[..., 0]
    chosen = jax.nn.one_hot(classes - 1, logits.shape[-1], dtype=logits.dtype)
    return jnp.einsum("rhwc,rc->rhw", logits, chosen, precision=jax.lax.Precision.HIGHEST)

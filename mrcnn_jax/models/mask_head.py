"""The mask head: a small fully convolutional network on each RoI (He et al. 2017, figure 4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, Deconv2x2
from mrcnn_jax.ops.conv import interleave


class MaskHead(nn.Module):
    """RoI features (R, S, S, F) -> one mask for each class: logits (R, 2 S, 2 S, C), float32."""

    num_classes: int
    channels: int
    conv_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index in range(self.conv_layers):
            x = nn.relu(Conv(self.channels, 3, name=f"conv{index + 1}")(x))
        blocks = nn.relu(Deconv2x2(self.channels, name="deconv")(x)).astype(jnp.float32)
        # The last layer looks at one pixel at a time, so it can come before the pixels of a block are laid out.
        pixels = blocks.reshape(blocks.shape[0], -1, 1, self.channels)
        logits = Conv(self.num_classes, 1, kernel_init=nn.initializers.normal(0.001), name="logits")(pixels)
        return interleave(logits.reshape(*blocks.shape[:-1], self.num_classes))


def select_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """The mask of each RoI's class: (R, S, S, C) and (R,) classes in 1..C -> (R, S, S). A class of 0 gives zeros."""
    chosen = jax.nn.one_hot(classes - 1, logits.shape[-1], dtype=logits.dtype)
    return jnp.einsum("rhwc,rc->rhw", logits, chosen, precision=jax.lax.Precision.HIGHEST)

"""The mask head: a small fully convolutional network on each RoI (He et al. 2017, figure 4)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.models.layers import Deconv2x2, PointwiseParameters, add_bias, conv_norm_relu, relu
from mrcnn_jax.models.norms import NormFactory
from mrcnn_jax.ops.conv import interleave


class MaskHead(nn.Module):
    """RoI features (R, S, S, F) -> one mask for each class: logits (R, 2 S, 2 S, C), float32.

    With `classes` (R,) in 1..C only the mask of each RoI's class, (R, 2 S, 2 S): the others are not computed. A class
    of 0 gives zeros. A class-agnostic head has one mask, which is every class's. `valid` (R,) bool: the RoIs that count
    in batch statistics.
    """

    num_classes: int
    config: MaskHeadConfig
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, classes: jax.Array | None = None, valid: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        config = self.config
        for index in range(1, config.conv_layers + 1):
            x = conv_norm_relu(index, config.channels, self.norm, x, valid, train=train)
        blocks = Deconv2x2(config.channels, name="deconv")(x)
        masks = 1 if config.class_agnostic else self.num_classes
        # The last layer looks at one pixel at a time, so it can come before the pixels of a block are laid out.
        pixels = relu(blocks.reshape(blocks.shape[0], -1, config.channels)).astype(jnp.float32)
        kernel, bias = PointwiseParameters(masks, nn.initializers.normal(0.001), name="logits")(config.channels)
        logits = _pixel_logits(pixels, kernel[0, 0], bias, classes)
        logits = interleave(logits.reshape(*blocks.shape[:-1], -1))
        return logits if classes is None else logits[..., 0]


def _pixel_logits(pixels: jax.Array, kernel: jax.Array, bias: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Pixels (R, P, F) -> logits (R, P, C), or (R, P) of the class of each R only. kernel (F, C)."""
    if classes is None:
        return add_bias(pixels @ kernel, bias)
    # Picked by products, whose gradients are products again: scatters add in any order on a GPU.
    chosen = jax.nn.one_hot(jnp.minimum(classes, len(bias)) - 1, len(bias), dtype=kernel.dtype)
    exactly = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.einsum("rpf,rf->rp", pixels, exactly(chosen, kernel.T))
    return logits + exactly(chosen, bias)[:, None]

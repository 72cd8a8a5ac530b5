"""The box head: class scores and box deltas from RoI features."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig
from mrcnn_jax.models.layers import Dense, conv_norm_relu, relu
from mrcnn_jax.models.norms import NormFactory


class BoxHead(nn.Module):
    """RoI features (R, S, S, F) -> class logits (R, C + 1), background first, and deltas (R, C, 4), both float32.

    Two fully connected layers by default (Lin et al. 2017), after 3 x 3 convolutions if `conv_layers` is set (Wu and He
    2018). Without fully connected layers the predictors use the mean over the cells (He et al. 2016, C4). A
    class-agnostic head returns deltas (R, 1, 4). `valid` (R,) bool marks the RoIs that enter batch statistics.
    """

    num_classes: int
    config: BoxHeadConfig
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        config = self.config
        for index in range(1, config.conv_layers + 1):
            x = conv_norm_relu(index, config.channels, self.norm, x, valid, train=train)
        x = x.reshape(x.shape[0], -1) if config.fc_layers else x.astype(jnp.float32).mean((1, 2))
        for index in range(1, config.fc_layers + 1):
            x = relu(Dense(config.hidden, name=f"fc{index}")(x))
        x = x.astype(jnp.float32)
        num_boxes = 1 if config.class_agnostic else self.num_classes
        logits = Dense(self.num_classes + 1, nn.initializers.normal(0.01), name="logits")(x)
        deltas = Dense(4 * num_boxes, nn.initializers.normal(0.001), name="deltas")(x)
        return logits, deltas.reshape(x.shape[0], num_boxes, 4)

"""The box head: two fully connected layers, then class scores and box deltas (Lin et al. 2017)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Dense


class BoxHead(nn.Module):
    """RoI features (R, S, S, F) -> class logits (R, C + 1), background first, and deltas (R, C, 4), both float32."""

    num_classes: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(self.hidden, name="fc1")(x))
        x = nn.relu(Dense(self.hidden, name="fc2")(x)).astype(jnp.float32)
        logits = Dense(self.num_classes + 1, nn.initializers.normal(0.01), name="logits")(x)
        deltas = Dense(4 * self.num_classes, nn.initializers.normal(0.001), name="deltas")(x)
        return logits, deltas.reshape(x.shape[0], self.num_classes, 4)

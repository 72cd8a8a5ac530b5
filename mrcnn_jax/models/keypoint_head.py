"""The keypoint head: one heat map for each keypoint of a RoI (He et al. 2017, section 5)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, add_bias, relu
from mrcnn_jax.ops.image import double_bilinear
from mrcnn_jax.ops.xla_cpu.conv import deconv4x4


class KeypointHead(nn.Module):
    """RoI features (R, S, S, F) -> heat maps, logits over their cells: (R, 4 S, 4 S, K), float32.

    Convolutions, then a learned and a bilinear doubling.
    """

    num_keypoints: int
    channels: int
    conv_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index in range(self.conv_layers):
            x = relu(Conv(self.channels, 3, name=f"conv{index + 1}")(x))
        return double_bilinear(Deconv4x4(self.num_keypoints, name="deconv")(x.astype(jnp.float32)))


class Deconv4x4(nn.Module):
    """(B, H, W, I) -> (B, 2 H, 2 W, O) by `ops.conv.deconv4x4`; parameters `kernel` (4, 4, I, O) and `bias`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The peers' initial deviation: theirs counts the inputs, whatever it is called there.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return add_bias(deconv4x4(x, kernel.astype(x.dtype)), bias)

"""The keypoint head: one heat map for each keypoint of a RoI (He et al. 2017, section 5)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, add_bias, relu
from mrcnn_jax.ops.image import upsample_bilinear_2x
from mrcnn_jax.ops.xla_cpu.conv import deconv4x4


class KeypointHead(nn.Module):
    """RoI features (R, S, S, F) -> logits of heat maps (R, 4 S, 4 S, K), float32.

    Convolutions, then a transposed convolution and a bilinear upsampling, each of which doubles the side.
    """

    num_keypoints: int
    channels: int
    conv_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index in range(self.conv_layers):
            x = relu(Conv(self.channels, 3, name=f"conv{index + 1}")(x))
        return upsample_bilinear_2x(Deconv4x4(self.num_keypoints, name="deconv")(x.astype(jnp.float32)))


class Deconv4x4(nn.Module):
    """Transposed convolution (B, H, W, I) -> (B, 2 H, 2 W, O) with a 4 x 4 kernel and stride 2.

    Parameters `kernel` (4, 4, I, O) and `bias` (O,).
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The initial deviation of torchvision and Detectron2. They ask for fan-out, which counts the inputs of a
        # transposed kernel.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return add_bias(deconv4x4(x, kernel.astype(x.dtype)), bias)

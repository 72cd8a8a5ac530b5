"""The mask head (He et al. 2017, figure 4), and the alternatives of tables 2b and 2e: softmax and perceptron."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.models.layers import Deconv2x2, Dense, PointwiseParameters, add_bias, conv_norm_relu, relu
from mrcnn_jax.models.norms import NormFactory
from mrcnn_jax.ops.xla_cpu.conv import interleave

_small_normal = nn.initializers.normal(0.001)


class MaskHead(nn.Module):
    """RoI features (R, S, S, F) -> one mask per class: logits (R, 2 S, 2 S, C), float32.

    With `classes` (R,) in 1..C the result is (R, 2 S, 2 S), the logits of each RoI's class, whose sigmoid is its mask;
    it is zero for class 0. A class-agnostic head has one mask for all classes. `valid` (R,) bool marks the RoIs that
    enter batch statistics.

    With `activation="softmax"` each pixel is classified as background or one of the classes: logits (R, 2 S, 2 S,
    C + 1), background first. With `classes` the result is then the log-odds of that class against all others, so that
    its sigmoid is the softmax probability.
    """

    num_classes: int
    config: MaskHeadConfig
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, classes: jax.Array | None = None, valid: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        config = self.config
        # A softmax needs the logits of all classes; otherwise only those of `classes` are computed.
        softmax = config.activation == "softmax"
        selected = None if softmax else classes
        num_masks = (1 if config.class_agnostic else self.num_classes) + softmax
        if config.fc_layers:
            logits = self._perceptron(x, num_masks, selected)
        else:
            logits = self._convolutions(x, num_masks, selected, valid, train=train)
        return _log_odds(logits, classes) if softmax and classes is not None else logits

    def _convolutions(
        self, x: jax.Array, num_masks: int, classes: jax.Array | None, valid: jax.Array | None, *, train: bool
    ) -> jax.Array:
        """Convolutions, a transposed convolution that doubles the side, and a 1 x 1 convolution."""
        config = self.config
        for index in range(1, config.conv_layers + 1):
            x = conv_norm_relu(index, config.channels, self.norm, x, valid, train=train)
        blocks = Deconv2x2(config.channels, name="deconv")(x)
        # A 1 x 1 convolution does not depend on the order of pixels, so it runs before they are interleaved.
        pixels = relu(blocks.reshape(blocks.shape[0], -1, config.channels)).astype(jnp.float32)
        kernel, bias = PointwiseParameters(num_masks, _small_normal, name="logits")(config.channels)
        logits = _pixel_logits(pixels, kernel[0, 0], bias, classes)
        logits = interleave(logits.reshape(*blocks.shape[:-1], -1))
        return logits if classes is None else logits[..., 0]

    def _perceptron(self, x: jax.Array, num_masks: int, classes: jax.Array | None) -> jax.Array:
        """Fully connected layers: each logit depends on the whole RoI, and is not translation-equivariant."""
        side = 2 * x.shape[1]
        x = x.reshape(x.shape[0], -1)
        for index in range(1, self.config.fc_layers + 1):
            x = relu(Dense(self.config.hidden, name=f"fc{index}")(x))
        logits = Dense(side * side * num_masks, _small_normal, name="logits")(x.astype(jnp.float32))
        logits = logits.reshape(-1, side, side, num_masks)
        return logits if classes is None else jnp.einsum("rhwc,rc->rhw", logits, _one_hot(classes, num_masks))


def _pixel_logits(pixels: jax.Array, kernel: jax.Array, bias: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Pixels (R, P, F), kernel (F, C) -> logits (R, P, C), or (R, P) of `classes` (R,) only."""
    if classes is None:
        return add_bias(pixels @ kernel, bias)
    one_hot = _one_hot(classes, len(bias))
    exact_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.einsum("rpf,rf->rp", pixels, exact_matmul(one_hot, kernel.T))
    return logits + exact_matmul(one_hot, bias)[:, None]


def _one_hot(classes: jax.Array, num_masks: int) -> jax.Array:
    """One-hot rows (R, num_masks) of classes 1..C, zero for class 0; a single mask belongs to every class.

    Selecting by a product keeps gradients deterministic: they are products too, while a scatter adds in any order on a
    GPU.
    """
    return jax.nn.one_hot(jnp.minimum(classes, num_masks) - 1, num_masks, dtype=jnp.float32)


def _log_odds(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Softmax logits (R, S, S, C + 1) -> log(p / (1 - p)) (R, S, S) of each RoI's class; 0 for class 0."""
    num_logits = logits.shape[-1]
    own = jax.nn.one_hot(jnp.minimum(classes, num_logits - 1), num_logits, dtype=bool)[:, None, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    log_odds = jnp.sum(jnp.where(own, logits, 0.0), axis=-1) - others
    return jnp.where(classes[:, None, None] > 0, log_odds, 0.0)

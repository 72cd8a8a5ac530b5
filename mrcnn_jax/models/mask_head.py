"""The mask head: a small network on each RoI (He et al. 2017, figure 4; its rivals are in table 2b and 2e)."""

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
    """RoI features (R, S, S, F) -> one mask for each class: logits (R, 2 S, 2 S, C), float32.

    With `classes` (R,) in 1..C only the mask of each RoI's class, (R, 2 S, 2 S), whose sigmoid is the mask; a class of
    0 gives zeros. A class-agnostic head has one mask, which is every class's. `valid` (R,) bool: the RoIs that count
    in batch statistics.

    With `activation="softmax"` all classes and the background, which comes first, compete for each pixel: logits
    (R, 2 S, 2 S, C + 1); those of `classes` are log-odds against all the others, so their sigmoid is the softmax.
    """

    num_classes: int
    config: MaskHeadConfig
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, classes: jax.Array | None = None, valid: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        config = self.config
        # Whoever competes has to be computed; otherwise the own class will do, and it comes from a smaller product.
        competing = config.activation == "softmax"
        own = None if competing else classes
        masks = (1 if config.class_agnostic else self.num_classes) + competing
        if config.fc_layers:
            logits = self._perceptron(x, masks, own)
        else:
            logits = self._convolutions(x, masks, own, valid, train=train)
        return _log_odds(logits, classes) if competing and classes is not None else logits

    def _convolutions(
        self, x: jax.Array, masks: int, classes: jax.Array | None, valid: jax.Array | None, *, train: bool
    ) -> jax.Array:
        """Convolutions, a deconvolution that doubles the side, and one logit for each mask and pixel."""
        config = self.config
        for index in range(1, config.conv_layers + 1):
            x = conv_norm_relu(index, config.channels, self.norm, x, valid, train=train)
        blocks = Deconv2x2(config.channels, name="deconv")(x)
        # The last layer looks at one pixel at a time, so it can come before the pixels of a block are laid out.
        pixels = relu(blocks.reshape(blocks.shape[0], -1, config.channels)).astype(jnp.float32)
        kernel, bias = PointwiseParameters(masks, _small_normal, name="logits")(config.channels)
        logits = _pixel_logits(pixels, kernel[0, 0], bias, classes)
        logits = interleave(logits.reshape(*blocks.shape[:-1], -1))
        return logits if classes is None else logits[..., 0]

    def _perceptron(self, x: jax.Array, masks: int, classes: jax.Array | None) -> jax.Array:
        """Fully connected layers; each logit of each mask is seen from the whole RoI, and knows no place of its own."""
        side = 2 * x.shape[1]
        x = x.reshape(x.shape[0], -1)
        for index in range(1, self.config.fc_layers + 1):
            x = relu(Dense(self.config.hidden, name=f"fc{index}")(x))
        logits = Dense(side * side * masks, _small_normal, name="logits")(x.astype(jnp.float32))
        logits = logits.reshape(-1, side, side, masks)
        return logits if classes is None else jnp.einsum("rhwc,rc->rhw", logits, _chosen(classes, masks))


def _pixel_logits(pixels: jax.Array, kernel: jax.Array, bias: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Pixels (R, P, F) -> logits (R, P, C), or (R, P) of the class of each R only. kernel (F, C)."""
    if classes is None:
        return add_bias(pixels @ kernel, bias)
    chosen = _chosen(classes, len(bias))
    exactly = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.einsum("rpf,rf->rp", pixels, exactly(chosen, kernel.T))
    return logits + exactly(chosen, bias)[:, None]


def _chosen(classes: jax.Array, masks: int) -> jax.Array:
    """One-hot rows (R, masks) of classes 1..C, of 0 for class 0; with one mask it is everybody's.

    To pick by products, whose gradients are products again: scatters add in any order on a GPU.
    """
    return jax.nn.one_hot(jnp.minimum(classes, masks) - 1, masks, dtype=jnp.float32)


def _log_odds(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Competing logits (R, S, S, C + 1) -> (R, S, S), log(p / (1 - p)) of each RoI's class; 0 for class 0."""
    count = logits.shape[-1]
    own = jax.nn.one_hot(jnp.minimum(classes, count - 1), count, dtype=bool)[:, None, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    odds = jnp.sum(jnp.where(own, logits, 0.0), axis=-1) - others
    return jnp.where(classes[:, None, None] > 0, odds, 0.0)

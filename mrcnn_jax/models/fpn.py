"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, caffe2_xavier
from mrcnn_jax.models.norms import NormFactory


class FPN(nn.Module):
    """Backbone stages (C2..C5) -> pyramid levels (P2..P6).

    Lateral 1 x 1 convolutions, a top-down path of nearest-neighbor upsampling, 3 x 3 output convolutions. P6 is every
    second pixel of P5.
    """

    channels: int
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, stages: Sequence[jax.Array], train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        outputs: list[jax.Array] = []
        top_down: jax.Array | None = None
        for level in range(len(stages) + 1, 1, -1):
            lateral = self._conv(f"lateral{level}", 1, stages[level - 2], train, valid)
            top_down = lateral if top_down is None else lateral + _upsample(top_down)
            outputs.insert(0, self._conv(f"output{level}", 3, top_down, train, valid))
        return (*outputs, outputs[-1][:, ::2, ::2])

    def _conv(self, name: str, size: int, x: jax.Array, train: bool, valid: jax.Array | None) -> jax.Array:
        """A convolution with a norm, or else a bias, and no activation."""
        x = Conv(self.channels, size, use_bias=self.norm is None, kernel_init=caffe2_xavier, name=name)(x)
        return x if self.norm is None else self.norm(name=f"{name}_norm")(x, train=train, valid=valid)


def _upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbor upsampling by 2. Images are padded to multiples of 32, so no level needs cropping."""
    return jax.lax.platform_dependent(x, tpu=_upsample_by_product, default=_upsample_by_repeating)


def _upsample_by_repeating(x: jax.Array) -> jax.Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _upsample_by_product(x: jax.Array) -> jax.Array:
    """Columns are repeated by a product with zeros and ones, which does not move data between the tiles of TPU memory.

    Repeated rows are whole tiles, and XLA fuses them into the addition that follows.
    """
    columns = jnp.repeat(jnp.eye(x.shape[2], dtype=x.dtype), 2, axis=0)
    wide = jnp.einsum("vw,bhwc->bhvc", columns, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.repeat(wide, 2, axis=1)

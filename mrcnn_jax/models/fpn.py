"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, caffe2_xavier
from mrcnn_jax.models.norms import NormFactory


class FPN(nn.Module):
    """(C2..C5) -> (P2..P6): lateral 1 x 1, nearest top-down, output 3 x 3; P6 is every second pixel of P5."""

    channels: int
    norm: NormFactory | None = None

    @nn.compact
    def __call__(
        self, taps: Sequence[jax.Array], train: bool = False, rows: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        outputs: list[jax.Array] = []
        top_down: jax.Array | None = None
        for level in range(len(taps) + 1, 1, -1):
            lateral = self._conv(f"lateral{level}", 1, taps[level - 2], train, rows)
            top_down = lateral if top_down is None else lateral + _upsample(top_down)
            outputs.insert(0, self._conv(f"output{level}", 3, top_down, train, rows))
        return (*outputs, outputs[-1][:, ::2, ::2])

    def _conv(self, name: str, size: int, x: jax.Array, train: bool, rows: jax.Array | None) -> jax.Array:
        """A convolution with a bias, or with the norm instead; no activation."""
        x = Conv(self.channels, size, use_bias=self.norm is None, kernel_init=caffe2_xavier, name=name)(x)
        return x if self.norm is None else self.norm(name=f"{name}_norm")(x, train=train, rows=rows)


def _upsample(x: jax.Array) -> jax.Array:
    """Each pixel becomes a 2 x 2 block. Images are padded to multiples of 32, so sizes of levels are exact doubles."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, caffe2_xavier


class FPN(nn.Module):
    """(C2..C5) -> (P2..P6): lateral 1 x 1, nearest top-down, output 3 x 3; P6 is every second pixel of P5."""

    channels: int

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        outputs: list[jax.Array] = []
        top_down: jax.Array | None = None
        for level in range(len(taps) + 1, 1, -1):
            lateral = Conv(self.channels, 1, kernel_init=caffe2_xavier, name=f"lateral{level}")(taps[level - 2])
            top_down = lateral if top_down is None else lateral + _upsample(top_down)
            outputs.insert(0, Conv(self.channels, 3, kernel_init=caffe2_xavier, name=f"output{level}")(top_down))
        return (*outputs, outputs[-1][:, ::2, ::2])


def _upsample(x: jax.Array) -> jax.Array:
    """Each pixel becomes a 2 x 2 block. Images are padded to multiples of 32, so sizes of levels are exact doubles."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

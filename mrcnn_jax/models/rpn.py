"""The network of the region proposal network (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, PointwiseParameters, add_bias, relu
from mrcnn_jax.ops.xla_cpu.conv import conv2d

_INIT = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """The same small network on every level: 3 x 3 convolutions, then objectness and box deltas of each anchor.

    Returns two tuples with an entry for each level: logits (B, A_level) and deltas (B, A_level, 4), both float32, in
    the order row, column, anchor.
    """

    anchors_per_cell: int
    conv_layers: int = 1

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        channels, anchors = features[0].shape[-1], self.anchors_per_cell
        convs = [Conv(channels, 3, kernel_init=_INIT, name=f"conv{i + 1}") for i in range(self.conv_layers)]
        objectness = PointwiseParameters(anchors, _INIT, name="objectness")(channels)
        deltas_of = PointwiseParameters(4 * anchors, _INIT, name="deltas")(channels)
        # One product for both: alone, each would read all maps for a few numbers a cell.
        kernel, bias = (jnp.concatenate(both, axis=-1) for both in zip(objectness, deltas_of, strict=True))
        logits, deltas = [], []
        for x in features:
            for conv in convs:
                x = relu(conv(x))
            x = x.astype(jnp.float32)  # logits of 8 bits would tie by the hundred, and ties go to the first anchor
            found = add_bias(conv2d(x, kernel), bias)
            logits.append(found[..., :anchors].reshape(x.shape[0], -1))
            deltas.append(found[..., anchors:].reshape(x.shape[0], -1, 4))
        return tuple(logits), tuple(deltas)

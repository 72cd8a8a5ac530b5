"""The head of the region proposal network (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers import Conv, PointwiseParameters, add_bias, relu
from mrcnn_jax.ops.xla_cpu.conv import conv2d

_INIT = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """3 x 3 convolutions, then objectness and box deltas of each anchor, with the same weights on every level.

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
        box_deltas = PointwiseParameters(4 * anchors, _INIT, name="deltas")(channels)
        # One product computes both predictions: each alone would read all features for a few outputs per cell.
        kernel, bias = (jnp.concatenate(both, axis=-1) for both in zip(objectness, box_deltas, strict=True))
        logits, deltas = [], []
        for x in features:
            for conv in convs:
                x = relu(conv(x))
            x = x.astype(jnp.float32)  # bfloat16 logits would tie in large numbers, and top-k takes the first anchors
            outputs = add_bias(conv2d(x, kernel), bias)
            logits.append(outputs[..., :anchors].reshape(x.shape[0], -1))
            deltas.append(outputs[..., anchors:].reshape(x.shape[0], -1, 4))
        return tuple(logits), tuple(deltas)

"""RoIs and feature maps of a batch of images, as all kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import jax

FeatureMaps = tuple[jax.Array, ...]  # (B, H_l, W_l, Ch) of each level


class RoIs(NamedTuple):
    """R RoIs in a batch of images."""

    boxes: jax.Array  # (R, 4) float32
    levels: jax.Array  # (R,) int32, index of the feature map
    images: jax.Array  # (R,) int32, index of the image

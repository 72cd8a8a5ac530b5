"""Exact mode: single images, resized and padded as in the reference implementation, to reproduce its detections.

Each padded shape compiles its own program. COCO's images give about forty shapes where the network needs multiples of
32; C4 and DC5, which Detectron2 does not pad, have a shape for nearly every image size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import Config
from mrcnn_jax.inference import reference_preprocessing
from mrcnn_jax.models.mask_rcnn import size_divisibility


def network_input(image: NDArray[np.uint8], config: Config) -> reference_preprocessing.NetworkInput:
    """Return the padded image (H, W, 3) and the size of the image before padding."""
    model, data = config.model, config.data
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    if config.eval.resize == "detectron2":
        return reference_preprocessing.detectron2_input(image, divisor=size_divisibility(model), **edges)
    return reference_preprocessing.torchvision_input(
        image, mean=model.pixel_mean, std=model.pixel_std, channel_order=model.channel_order, **edges
    )


def network_size(size: reference_preprocessing.Size, config: Config) -> reference_preprocessing.Size:
    """Return the size to which `network_input` resizes an image of `size`."""
    resized = (
        reference_preprocessing.detectron2_size
        if config.eval.resize == "detectron2"
        else reference_preprocessing.torchvision_size
    )
    return resized(size, config.data.shortest_edge_eval, config.data.longest_edge)

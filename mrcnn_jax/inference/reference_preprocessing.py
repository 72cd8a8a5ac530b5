"""Preprocessing of torchvision and Detectron2: resizing, padding and, for torchvision, normalization on the host.

In exact mode single images are preprocessed as there, to reproduce the detections. Each padded shape compiles its own
program. COCO's images give about forty shapes where the network needs multiples of 32; C4 and DC5, which Detectron2
does not pad, have a shape for nearly every image size.

They differ in the rounding of the size, in the order of resizing and normalization, and in the filter: torchvision
interpolates floats between the two nearest pixels; Detectron2 uses Pillow, which averages over the pixels that an
output pixel covers and rounds to 8 bits. Sources: torchvision 0.29, models/detection/transform.py; Detectron2,
data/transforms/augmentation_impl.py (`ResizeShortestEdge`), data/transforms/transform.py, structures/image_list.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrcnn_jax.config import ChannelOrder, Config
from mrcnn_jax.models.mask_rcnn import size_divisibility

_TORCHVISION_DIVISOR = 32  # for every network

Size = tuple[int, int]  # height, width
NetworkInput = tuple[NDArray[np.uint8] | NDArray[np.float32], Size]  # padded image, size of the image before padding


def network_input(image: NDArray[np.uint8], config: Config) -> NetworkInput:
    """Preprocess an image (h, w, 3) uint8 RGB as the reference implementation `config.eval.resize`."""
    model, data = config.model, config.data
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    if config.eval.resize == "detectron2":
        return detectron2_input(image, divisor=size_divisibility(model), **edges)
    return torchvision_input(
        image, mean=model.pixel_mean, std=model.pixel_std, channel_order=model.channel_order, **edges
    )


def network_size(size: Size, config: Config) -> Size:
    """Return the size to which `network_input` resizes an image of `size`."""
    resized = detectron2_size if config.eval.resize == "detectron2" else torchvision_size
    return resized(size, config.data.shortest_edge_eval, config.data.longest_edge)


def torchvision_size(size: Size, shortest_edge: int, longest_edge: int) -> Size:
    """Return height and width after torchvision's resize to `shortest_edge`, limited by `longest_edge`.

    Computed in double precision and rounded down: 300 x 1000 becomes 399 x 1333.
    """
    scale = min(shortest_edge / min(size), longest_edge / max(size))
    return max(math.floor(size[0] * scale), 1), max(math.floor(size[1] * scale), 1)


def detectron2_size(size: Size, shortest_edge: int, longest_edge: int) -> Size:
    """Return height and width after Detectron2's resize: the same rule in two steps, rounded half up; 400 x 1333."""
    scale = shortest_edge / min(size)
    height, width = (shortest_edge if edge == min(size) else scale * edge for edge in size)
    if max(height, width) > longest_edge:
        scale = longest_edge / max(height, width)
        height, width = height * scale, width * scale
    return max(int(height + 0.5), 1), max(int(width + 0.5), 1)


def torchvision_input(
    image: NDArray[np.uint8],
    *,
    shortest_edge: int,
    longest_edge: int,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: ChannelOrder = "rgb",
) -> NetworkInput:
    """Normalize, resize and zero-pad an image as torchvision: (h, w, 3) uint8 RGB -> (H, W, 3) float32.

    The result is in `channel_order`. mean, std: on the scale 0..255, in `channel_order`. H and W are multiples of 32.
    """
    # torchvision works on the scale 0..1, and every operation rounds to float32.
    means, deviations = (np.divide(values, 255).astype(np.float32) for values in (mean, std))
    pixels = image[..., ::-1] if channel_order == "bgr" else image
    levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    normalized = ((levels - means) / deviations).astype(np.float32)[pixels, np.arange(3)]
    size = torchvision_size((image.shape[0], image.shape[1]), shortest_edge, longest_edge)
    return _pad(resize_bilinear(normalized, size), _TORCHVISION_DIVISOR), size


def detectron2_input(image: NDArray[np.uint8], *, shortest_edge: int, longest_edge: int, divisor: int) -> NetworkInput:
    """Resize and zero-pad an image as Detectron2: (h, w, 3) uint8 RGB -> (H, W, 3) uint8 RGB.

    H and W are multiples of `divisor`.
    """
    size = detectron2_size((image.shape[0], image.shape[1]), shortest_edge, longest_edge)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return _pad(np.asarray(resized), divisor), size


def resize_bilinear(image: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Resize (h, w, C) float32 to (*size, C) as torch's `interpolate(mode="bilinear", align_corners=False)`.

    No antialiasing. Positions are computed in float32, as in torch; OpenCV's, in double precision, differ by up to 1e-4
    pixels. Some builds of torch fuse the multiplication with the subtraction, and differ by one rounding.
    """
    for axis in (0, 1):
        low, high, weight = _taps(image.shape[axis], size[axis])
        weight = weight.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        mixed = np.take(image, low, axis=axis)
        mixed *= 1 - weight
        upper = np.take(image, high, axis=axis)
        upper *= weight
        mixed += upper
        image = mixed
    return image


def _taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return, for each of `new` output pixels along an axis, the two source pixels and the weight of the second."""
    centers = np.arange(new, dtype=np.float32) + np.float32(0.5)
    position = (np.float32(old) / np.float32(new) * centers - np.float32(0.5)).clip(0)
    low = np.minimum(position.astype(np.intp), old - 1)
    return low, np.minimum(low + 1, old - 1), position - low.astype(np.float32)


def _pad(image: NDArray[Any], divisor: int) -> NDArray[Any]:
    """Pad with zeros at the bottom and on the right to multiples of `divisor`."""
    height, width = image.shape[:2]
    return np.pad(image, [(0, -height % divisor), (0, -width % divisor), (0, 0)])

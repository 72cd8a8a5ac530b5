"""Exact mode: each image alone, resized and padded as the peer would do it, for the peer's own detections.

Every shape of padded image is a program of its own. Images of COCO make some forty of them, where the network needs
multiples of 32; C4 and DC5, which Detectron2 does not pad, have a shape for nearly every size of image.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import Config
from mrcnn_jax.data import image_files
from mrcnn_jax.data.coco import DataError, Dataset
from mrcnn_jax.evaluation.inference import Images, on_threads
from mrcnn_jax.evaluation.peer_resize import NetworkInput, detectron2_input, torchvision_input
from mrcnn_jax.models.rcnn import size_divisibility


def prepare(image: NDArray[np.uint8], index: int, config: Config) -> Images:
    """A batch of one: an (h, w, 3) uint8 RGB image as `config.eval.resize`, which is not "bucket", wants it."""
    canvas, size = network_input(image, config)
    return Images(canvas[None], np.array([size], np.int32), np.array([index], np.int32), np.array([True]))


def network_input(image: NDArray[np.uint8], config: Config) -> NetworkInput:
    """The padded image (H, W, 3) and the size of the picture in it."""
    model, data = config.model, config.data
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    if config.eval.resize == "detectron2":
        return detectron2_input(image, divisor=size_divisibility(model), **edges)
    return torchvision_input(
        image, mean=model.pixel_mean, std=model.pixel_std, channel_order=model.channel_order, **edges
    )


def batches(dataset: Dataset, config: Config) -> Generator[Images, None, None]:
    """Every image of `dataset` in its order, read ahead on threads. Raises DataError for one that cannot be decoded."""
    load = functools.partial(_load, dataset, config)
    return on_threads(load, range(len(dataset)), min(8, os.cpu_count() or 1))


def _load(dataset: Dataset, config: Config, index: int) -> Images:
    image = image_files.decode(dataset.record(index)[0])
    if image is None:
        raise DataError(f"{dataset.name(index)} cannot be decoded; replace the file, or take it out of the JSON")
    return prepare(image, index, config)

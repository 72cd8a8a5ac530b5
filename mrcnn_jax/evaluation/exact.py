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


def batches(
    dataset: Dataset, config: Config, *, process_index: int = 0, process_count: int = 1
) -> Generator[Images, None, None]:
    """Every image of `dataset` in its order, dealt out to the processes and read ahead on threads.

    Each process has as many batches: where images are lacking, one that comes again and is not valid. Raises DataError
    for an image that cannot be decoded.
    """
    ours = list(range(process_index, len(dataset), process_count))
    missing = -(-len(dataset) // process_count) - len(ours)
    slots = [(index, True) for index in ours] + [(ours[-1] if ours else 0, False)] * missing
    load = functools.partial(_load, dataset, config)
    return on_threads(load, slots, min(8, os.cpu_count() or 1))


def _load(dataset: Dataset, config: Config, slot: tuple[int, bool]) -> Images:
    index, valid = slot
    image = image_files.decode(dataset.record(index)[0])
    if image is None:
        raise DataError(f"{dataset.name(index)} cannot be decoded; replace the file, or take it out of the JSON")
    return prepare(image, index, config)._replace(valid=np.array([valid]))

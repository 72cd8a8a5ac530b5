"""Batches of one image, padded to its bucket or as in the reference implementation."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import Config
from mrcnn_jax.data import batching
from mrcnn_jax.data.augment import geometry
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.errors import ConfigError, DataError
from mrcnn_jax.inference import reference_preprocessing
from mrcnn_jax.inference.detector import ImageBatch
from mrcnn_jax.inference.reference_preprocessing import NetworkInput, Size
from mrcnn_jax.runtime.threads import map_on_threads

Prepare = Callable[[NDArray[np.uint8], int, Config], ImageBatch]  # pixels (h, w, 3) uint8 RGB, index -> a batch of one


def prepare(pixels: NDArray[np.uint8], index: int, config: Config) -> ImageBatch:
    """Return a batch of one (h, w, 3) uint8 RGB image, resized and padded according to `config.eval.resize`."""
    resize = _pad_to_bucket if config.eval.resize == "bucket" else reference_preprocessing.network_input
    padded, size = resize(pixels, config)
    return ImageBatch(padded[None], np.array([size], np.int32), np.array([index], np.int32), np.array([True]))


def check_fixed_shapes(config: Config) -> None:
    """Raise ConfigError unless all images are padded to the buckets, so that a few programs are enough."""
    if config.eval.single_image:
        settings = "--config.eval.resize=bucket --config.eval.flip=False '--config.eval.scales=()'"
        raise ConfigError(
            "exact mode (eval.resize) and test-time augmentation (eval.flip, eval.scales) need other shapes of images"
            f" than the buckets: give {settings}"
        )


def network_size(size: Size, config: Config) -> Size:
    """Return the height and width to which `prepare` resizes an image of `size`."""
    if config.eval.resize != "bucket":
        return reference_preprocessing.network_size(size, config)
    return _choose_bucket(size, config)[1]


def batches(
    dataset: Dataset,
    config: Config,
    prepare_image: Prepare = prepare,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[ImageBatch, None, None]:
    """Yield a batch for every image of this process, in the order of `dataset`, prefetched on threads.

    Images are distributed over the processes in turn. All processes yield equally many batches: one with an image less
    repeats its last image with `valid` false. Raises DataError for an image that cannot be decoded.
    """
    local = list(range(process_index, len(dataset), process_count))
    missing = -(-len(dataset) // process_count) - len(local)
    slots = [(index, True) for index in local] + [(local[-1] if local else 0, False)] * missing
    load = functools.partial(_load, dataset, config, prepare_image)
    return map_on_threads(load, slots, min(8, os.cpu_count() or 1))


def _load(dataset: Dataset, config: Config, prepare_image: Prepare, slot: tuple[int, bool]) -> ImageBatch:
    index, valid = slot
    image = dataset.decode(dataset.record(index)[0])
    if image is None:
        raise DataError(dataset.explain_decode_failure(index))
    return prepare_image(image, index, config)._replace(valid=np.array([valid]))


def _pad_to_bucket(pixels: NDArray[np.uint8], config: Config) -> NetworkInput:
    """Return the image resized and padded as in the data pipeline, and its size before padding."""
    size = (pixels.shape[0], pixels.shape[1])
    bucket, (height, width) = _choose_bucket(size, config)
    padded = np.zeros((*bucket, 3), dtype=np.uint8)
    geometry.resample(pixels, geometry.full_window(size), (height, width), padded[:height, :width])
    return padded, (height, width)


def _choose_bucket(size: Size, config: Config) -> tuple[Size, Size]:
    """Return the bucket of an image of `size`, and the size to which the image is resized."""
    data = config.data
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    original = np.array(size)
    bucket = data.buckets[int(batching.choose_buckets(original[None], data.buckets, **edges)[0])]
    height, width = batching.scaled_size(original, batching.scale_for(original, bucket, **edges), bucket).tolist()
    return bucket, (height, width)

"""Images one at a time: each is a batch of its own, in its bucket or as a peer would have it."""

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
from mrcnn_jax.errors import DataError
from mrcnn_jax.inference import exact
from mrcnn_jax.inference.detector import Images, on_threads
from mrcnn_jax.inference.reference_preprocessing import NetworkInput, Size

Prepare = Callable[[NDArray[np.uint8], int, Config], Images]  # pixels (h, w, 3) uint8 RGB, index -> a batch of one


def prepare(pixels: NDArray[np.uint8], index: int, config: Config) -> Images:
    """A batch of one: an (h, w, 3) uint8 RGB image, resized and padded as `config.eval.resize` says."""
    canvas, size = (
        _into_bucket(pixels, config) if config.eval.resize == "bucket" else exact.network_input(pixels, config)
    )
    return Images(canvas[None], np.array([size], np.int32), np.array([index], np.int32), np.array([True]))


def network_size(size: Size, config: Config) -> Size:
    """Height and width that `prepare` gives to a picture of `size`."""
    if config.eval.resize != "bucket":
        return exact.network_size(size, config)
    return _bucket(size, config)[1]


def batches(
    dataset: Dataset, config: Config, make: Prepare = prepare, *, process_index: int = 0, process_count: int = 1
) -> Generator[Images, None, None]:
    """What `make` makes of every image of `dataset`, in its order, dealt out to the processes, read ahead on threads.

    Each process has as many batches: where images are lacking, one that comes again and is not valid. Raises DataError
    for an image that cannot be decoded.
    """
    ours = list(range(process_index, len(dataset), process_count))
    missing = -(-len(dataset) // process_count) - len(ours)
    slots = [(index, True) for index in ours] + [(ours[-1] if ours else 0, False)] * missing
    load = functools.partial(_load, dataset, config, make)
    return on_threads(load, slots, min(8, os.cpu_count() or 1))


def _load(dataset: Dataset, config: Config, make: Prepare, slot: tuple[int, bool]) -> Images:
    index, valid = slot
    image = dataset.decode(dataset.record(index)[0])
    if image is None:
        raise DataError(dataset.explain_decode_failure(index))
    return make(image, index, config)._replace(valid=np.array([valid]))


def _into_bucket(pixels: NDArray[np.uint8], config: Config) -> NetworkInput:
    """The image in its bucket, as the data pipeline does it, and the size of the picture there."""
    size = (pixels.shape[0], pixels.shape[1])
    bucket, (height, width) = _bucket(size, config)
    canvas = np.zeros((*bucket, 3), dtype=np.uint8)
    geometry.resample(pixels, geometry.full_window(size), (height, width), canvas[:height, :width])
    return canvas, (height, width)


def _bucket(size: Size, config: Config) -> tuple[Size, Size]:
    """The bucket of an image of `size`, and height and width of the picture in it."""
    data = config.data
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    extent = np.array(size)
    bucket = data.buckets[int(batching.choose_buckets(extent[None], data.buckets, **edges)[0])]
    height, width = batching.scaled_size(extent, batching.scale_for(extent, bucket, **edges), bucket).tolist()
    return bucket, (height, width)

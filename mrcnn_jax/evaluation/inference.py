"""Detection over many batches: the device works on the next batches while threads finish the previous ones."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models import rcnn
from mrcnn_jax.structures import Batch, Detections

T = TypeVar("T")
Detect = Callable[[Any, Any], Detections]  # images (B, H, W, 3) uint8, image sizes (B, 2) -> batched Detections
Finish = Callable[[int, Detections, Any], T]  # index of the image, its Detections in NumPy, its network size (2,)


class Images(NamedTuple):
    """A `Batch` without ground truth."""

    images: Any  # (B, H, W, 3) uint8, RGB, resized, padded at the bottom and on the right
    image_sizes: Any  # (B, 2) int32
    indices: Any  # (B,) int32
    valid: Any  # (B,) bool


def compile_detect(model: ModelConfig, variables: Any) -> Detect:
    """`models.rcnn.detect` with its variables on the device; compiles once for each shape of images."""
    compiled = jax.jit(functools.partial(rcnn.detect, rcnn.build_model(model)))
    return functools.partial(compiled, jax.device_put(variables))


def run(detect: Detect, batches: Iterable[Batch | Images], finish: Finish[T]) -> Iterator[T]:
    """Yield `finish(...)` of every valid image, in the order of the batches.

    `detect` is dispatched from the calling thread and returns before the device is done; waiting for the device,
    copying to the host and `finish` happen on worker threads. At most one batch more than there are threads is in
    flight, so that memory stays flat however long `batches` is.
    """
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="postprocess") as pool:
        in_flight: deque[Future[list[T]]] = deque()
        for batch in batches:
            detections = detect(batch.images, batch.image_sizes)
            in_flight.append(pool.submit(_finish_batch, detections, batch, finish))
            if len(in_flight) > threads:
                yield from in_flight.popleft().result()
        while in_flight:
            yield from in_flight.popleft().result()


def _finish_batch(detections: Detections, batch: Batch | Images, finish: Finish[T]) -> list[T]:
    on_host = Detections(*(np.asarray(field) for field in detections))
    return [
        finish(int(batch.indices[slot]), Detections(*(field[slot] for field in on_host)), batch.image_sizes[slot])
        for slot in np.flatnonzero(batch.valid)
    ]

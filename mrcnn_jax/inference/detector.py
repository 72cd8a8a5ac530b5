"""Detection over many batches: the device works on the next batches while threads finish the previous ones."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference.devices import replicate, shard_over_batch
from mrcnn_jax.models import mask_rcnn
from mrcnn_jax.runtime import profiling
from mrcnn_jax.structures import Batch, Detections

A = TypeVar("A")
T = TypeVar("T")
Detect = Callable[[Any, Any], Detections]  # images (B, H, W, 3), image sizes (B, 2) -> batched Detections
Finish = Callable[[int, Detections, Any], T]  # index of the image, its Detections in NumPy, its network size (2,)
UNRECORDED = profiling.StepProfiler()


class Images(NamedTuple):
    """A `Batch` without ground truth."""

    images: Any  # (B, H, W, 3), resized and padded: uint8 RGB, or what `models.rcnn.detect` takes as normalized
    image_sizes: Any  # (B, 2) int32
    indices: Any  # (B,) int32
    valid: Any  # (B,) bool


def compile_detect(model: ModelConfig, variables: Any, devices: Sequence[jax.Device] = ()) -> Detect:
    """`models.rcnn.detect` with its variables on the device; compiles once for each shape of images.

    With `devices` each of them takes an equal share of the images. Other variables of the same model need no other
    program, nor does JAX's own device if it is the only one.
    """
    devices = () if tuple(devices) == (jax.local_devices()[0],) else devices
    placed = replicate(variables, devices) if devices else jax.device_put(variables)
    return functools.partial(_program(model, tuple(devices)), placed)


@functools.lru_cache(maxsize=8)
def _program(model: ModelConfig, devices: tuple[jax.Device, ...]) -> Callable[..., Detections]:
    detect = functools.partial(mask_rcnn.detect, mask_rcnn.build_model(model))
    return shard_over_batch(detect, devices) if devices else jax.jit(detect)


def run(
    detect: Detect,
    batches: Iterable[Batch | Images],
    finish: Finish[T],
    profile: profiling.StepProfiler = UNRECORDED,
) -> Generator[T, None, None]:
    """Yield `finish(...)` of every valid image, in the order of the batches.

    `detect` is dispatched from the calling thread and returns before the device is done; waiting for the device,
    copying to the host and `finish` happen on worker threads. A round of `profile` is a batch
    and the wait for the next one.
    """

    def dispatched() -> Iterator[tuple[Detections, Batch | Images]]:
        source, numbers = iter(batches), itertools.count(1)
        batch = next(source, None)
        while batch is not None:
            profile.begin(next(numbers))
            detections = detect(batch.images, batch.image_sizes)
            yield detections, batch
            with jax.profiler.TraceAnnotation(profiling.INPUT_EVENT):
                batch = next(source, None)
            profile.end(detections)

    for finished in on_threads(lambda work: _finish_batch(*work, finish), dispatched(), min(4, os.cpu_count() or 1)):
        yield from finished


def on_threads(function: Callable[[A], T], arguments: Iterable[A], threads: int) -> Generator[T, None, None]:
    """`function` of each argument, in order, computed on `threads` threads.

    At most one argument more than there are threads is in flight, so that memory stays flat however many there are.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="inference") as pool:
        in_flight: deque[Future[T]] = deque()
        try:
            for argument in arguments:
                in_flight.append(pool.submit(function, argument))
                if len(in_flight) > threads:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:  # after an error, what has not begun is not wanted any more
            for future in in_flight:
                future.cancel()


def _finish_batch(detections: Detections, batch: Batch | Images, finish: Finish[T]) -> list[T]:
    with jax.profiler.TraceAnnotation("detections"):
        on_host = Detections(*(np.asarray(field) for field in detections))
    with jax.profiler.TraceAnnotation("finish"):
        return [
            finish(int(batch.indices[slot]), Detections(*(field[slot] for field in on_host)), batch.image_sizes[slot])
            for slot in np.flatnonzero(batch.valid)
        ]

"""Detection over a stream of batches; postprocessing overlaps with the work of the device."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.inference.devices import replicate, shard_over_batch
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.runtime import profiling
from mrcnn_jax.runtime.threads import map_on_threads
from mrcnn_jax.structures import Batch, Detections

T = TypeVar("T")
Detect = Callable[[Any, Any], Detections]  # images (B, H, W, 3), image sizes (B, 2) -> batched Detections
Finish = Callable[[int, Detections, Any], T]  # index of the image, its Detections in NumPy, its network size (2,)
NO_PROFILE = profiling.StepProfiler()


class ImageBatch(NamedTuple):
    """A `Batch` without ground truth."""

    images: Any  # (B, H, W, 3), resized and padded: uint8 RGB, or float32 already normalized
    image_sizes: Any  # (B, 2) int32
    indices: Any  # (B,) int32
    valid: Any  # (B,) bool


def compile_detect(model: ModelConfig, variables: Any, devices: Sequence[jax.Device] = ()) -> Detect:
    """Return `detect`, compiled, with `variables` placed on the device.

    Compiles once for each shape of images. With `devices` the images of a batch are divided evenly over them. The
    compiled programs are shared by calls with other variables of the same model.
    """
    devices = () if tuple(devices) == (jax.local_devices()[0],) else devices
    placed = replicate(variables, devices) if devices else jax.device_put(variables)
    return functools.partial(_program(model, tuple(devices)), placed)


@functools.lru_cache(maxsize=8)
def _program(model: ModelConfig, devices: tuple[jax.Device, ...]) -> Callable[..., Detections]:
    program = functools.partial(detect, build_model(model))
    return shard_over_batch(program, devices) if devices else jax.jit(program)


def detect_batches(
    detect: Detect,
    batches: Iterable[Batch | ImageBatch],
    finish: Finish[T],
    profile: profiling.StepProfiler = NO_PROFILE,
) -> Generator[T, None, None]:
    """Yield `finish(index, detections, network_size)` for every valid image, in the order of the batches.

    `detect` is dispatched from the calling thread and returns before the device is done. Worker threads wait for the
    device, copy to the host and call `finish`. A step of `profile` is one batch and the wait for the next.
    """

    def dispatched() -> Iterator[tuple[Detections, Batch | ImageBatch]]:
        source, steps = iter(batches), itertools.count(1)
        batch = next(source, None)
        while batch is not None:
            profile.begin(next(steps))
            detections = detect(batch.images, batch.image_sizes)
            yield detections, batch
            with jax.profiler.TraceAnnotation(profiling.INPUT_EVENT):
                batch = next(source, None)
            profile.end(detections)

    threads = min(4, os.cpu_count() or 1)
    for results in map_on_threads(lambda pair: _finish_batch(*pair, finish), dispatched(), threads):
        yield from results


def _finish_batch(detections: Detections, batch: Batch | ImageBatch, finish: Finish[T]) -> list[T]:
    with jax.profiler.TraceAnnotation("detections"):
        on_host = Detections(*(np.asarray(field) for field in detections))
    with jax.profiler.TraceAnnotation("finish"):
        return [
            finish(int(batch.indices[slot]), Detections(*(field[slot] for field in on_host)), batch.image_sizes[slot])
            for slot in np.flatnonzero(batch.valid)
        ]

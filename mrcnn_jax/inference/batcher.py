"""Batches of images that concurrent callers ask for, which run one after the other on a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mrcnn_jax.inference.detector import ImageBatch
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.structures import Detections

log = logging.getLogger(__name__)
_MEASURED_SECONDS = 1.0  # time to measure `_batch_cost`; one run at least


@dataclass(eq=False)
class _Job:
    prepared: ImageBatch
    end_of_wait: float
    result: asyncio.Future[Detections | None]


class Batcher:
    """Detects in batches of 1 or `batch_size` images of one bucket.

    Images accumulate while the device works; when it is free, an image waits up to `max_wait` seconds for others of its
    bucket. Images that do not fill a batch are padded to one only if that is faster than to detect them one by one.
    """

    def __init__(self, predict: Predictor, batch_size: int, max_wait: float, observe: Callable[[int], object]):
        """`observe` gets the number of images of each batch."""
        self.ready = False
        self._predict, self._batch_size, self._max_wait, self._observe = predict, batch_size, max_wait, observe
        self._batch_cost = 1.0  # time of a full batch, in batches of 1
        self._jobs: list[_Job] = []  # that wait for the device, in the order of arrival
        self._arrived, self._device = asyncio.Event(), ThreadPoolExecutor(1, "device")

    @property
    def waiting(self) -> int:
        """Number of images that wait for the device."""
        return len(self._jobs)

    async def detect(self, prepared: ImageBatch) -> Detections | None:
        """Return the detections of an image; None if the model failed. If the caller is canceled, it is dropped."""
        loop = asyncio.get_running_loop()
        job = _Job(prepared, loop.time() + self._max_wait, loop.create_future())
        self._jobs.append(job)
        self._arrived.set()
        try:
            return await job.result
        finally:
            if job in self._jobs:
                self._jobs.remove(job)

    async def run(self) -> None:
        """Compile the programs of all buckets, then detect until canceled. Raises what compiling raises."""
        await self._compile()
        self.ready = True
        log.info("ready; a batch of %d takes as long as %.1f single images", self._batch_size, self._batch_cost)
        while True:
            if jobs := self._next_batch():
                await self._detect(jobs)
                continue
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._jobs[0].end_of_wait if self._jobs else None):
                    await self._arrived.wait()

    async def _compile(self) -> None:
        for height, width in self._predict.config.data.buckets:
            image, size = np.zeros((1, height, width, 3), np.uint8), np.array([[height, width]], np.int32)
            empty = ImageBatch(image, size, np.zeros(1, np.int32), np.ones(1, bool))
            single, full = [empty], [empty] * self._batch_size
            await self._call(single)
            await self._call(full)
        time, seconds = asyncio.get_running_loop().time, [math.inf, math.inf]  # the least of each
        end = time() + _MEASURED_SECONDS
        while min(seconds) == math.inf or time() < end:
            for k, batch in enumerate((single, full)):
                start = time()
                await self._call(batch)
                seconds[k] = min(seconds[k], time() - start)
        self._batch_cost = seconds[1] / seconds[0]

    async def _call(self, images: Sequence[ImageBatch]) -> Sequence[Detections | None]:
        return await asyncio.get_running_loop().run_in_executor(self._device, self._predict.detect, images)

    def _next_batch(self) -> list[_Job]:
        """Remove the images of the next batch from `_jobs` and return them; none if all may wait for others."""
        now, groups = asyncio.get_running_loop().time(), defaultdict(list)
        for job in self._jobs:
            groups[job.prepared.images.shape].append(job)
        for group in groups.values():
            batch = group[: self._batch_size]
            if len(batch) == self._batch_size or batch[0].end_of_wait <= now:
                batch = batch if len(batch) > self._batch_cost else batch[:1]
                self._jobs = [job for job in self._jobs if job not in batch]
                return batch
        return []

    async def _detect(self, jobs: Sequence[_Job]) -> None:
        self._observe(len(jobs))
        images = [job.prepared for job in jobs]
        padding = [images[-1]] * (self._batch_size - len(images)) if len(images) > 1 else []
        results: Sequence[Detections | None] = [None] * len(jobs)
        try:
            results = await self._call(images + padding)
        except Exception:
            log.exception("the model failed on a batch of %d", len(jobs))
        for job, result in zip(jobs, results, strict=False):
            if not job.result.done():
                job.result.set_result(result)

"""Iterators of batches for training and evaluation, loaded ahead by grain in threads or worker processes.

grain distributes whole batches, each a pure function of the step. So batches do not depend on the number of workers or
processes, and a run resumed at step k continues with exactly batch k.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from absl import flags

from mrcnn_jax.config import Config
from mrcnn_jax.data import workers
from mrcnn_jax.data.batching import BatchPlan, choose_buckets
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.loader import Loader
from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch

log = logging.getLogger(__name__)

_MAX_THREADS = 8  # each loads one batch; 16 large images with their masks take 70 MB
_BATCHES_AHEAD = 2  # of one worker process
_NO_END = 2**40
MAX_CONSECUTIVE_FAILURES = 16  # images that cannot be loaded in a row; then the cause is not the images


class Batches(Iterator[Batch]):
    """Iterator of this process's part of the global batches. Close it (or use `with`) to stop its workers.

    `next` raises DataError if a worker process ended, records are missing, MAX_CONSECUTIVE_FAILURES images in a row
    cannot be loaded, or with `stop` a single image cannot be loaded. Without `stop` such an image is an empty slot and
    a warning in the log.
    """

    def __init__(self, loader: Loader, steps: range, num_workers: int, *, stop: bool):
        self._loader, self._steps, self._num_workers, self._stop = loader, steps, num_workers, stop
        self._position = 0  # index in `steps` of the next batch
        self._iterator: Any = iter(_prefetch(loader, steps, num_workers))
        self._error: DataError | None = None
        self._reported: set[tuple[int, int]] = set()  # epoch and index of the images that could not be loaded
        self._consecutive_failures = 0

    def __next__(self) -> Batch:
        if self._error is not None:  # grain would raise StopIteration
            raise self._error
        try:
            batch = self._load_next()
        except DataError as error:
            self._error = error
            raise
        self._position += 1
        return batch

    def _load_next(self) -> Batch:
        """Return the next batch, and report images that could not be loaded."""
        assert self._iterator is not None, "the iterator is closed"
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._position < len(self._steps):
                raise DataError(f"the data ended after {self._position} of {len(self._steps)} batches") from None
            raise
        except KeyboardInterrupt as interrupt:
            # The traceback's frames would keep grain's iterators alive during interpreter shutdown.
            raise interrupt.with_traceback(None) from None
        except Exception as error:
            if isinstance(error, DataError) or not self._num_workers:
                raise
            raise workers.worker_error(error, self._position % self._num_workers) from None  # workers take turns
        if self._num_workers:
            batch = workers.unpack(batch)
        planned = self._loader.planned(self._steps[self._position])
        for index in np.unique(planned.indices[planned.valid & ~batch.valid]).tolist():
            self._report_failure(index, planned.epoch)
        self._check_consecutive_failures(batch.valid[planned.valid], planned.indices[planned.valid])
        return batch

    def _check_consecutive_failures(self, loaded: np.ndarray, indices: np.ndarray) -> None:
        """Raise DataError if too many images in a row fail: training would continue with empty slots only."""
        for is_loaded, index in zip(loaded.tolist(), indices.tolist(), strict=True):
            self._consecutive_failures = 0 if is_loaded else self._consecutive_failures + 1
            if self._consecutive_failures == MAX_CONSECUTIVE_FAILURES:
                reason = self._loader.describe_failure(index)
                raise DataError(f"{MAX_CONSECUTIVE_FAILURES} images in a row cannot be loaded; {reason}")

    def _report_failure(self, index: int, epoch: int) -> None:
        """Log, once in an epoch, that an image could not be loaded. Raises DataError with `stop`."""
        if (epoch, index) in self._reported:
            return
        self._reported.add((epoch, index))
        count = sum(reported == epoch for reported, _ in self._reported)
        reason = self._loader.describe_failure(index)
        if self._stop:
            raise DataError(reason)
        log.warning("%s. Its slot stays empty (epoch %d: %d so far)", reason, epoch, count)

    def image_count(self) -> int:
        """Return the number of images in all batches of this process; for a finite iterator."""
        return sum(int(self._loader.planned(step).valid.sum()) for step in self._steps)

    def close(self) -> None:
        """Stop prefetching and end the worker processes."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def train_batches(
    dataset: Dataset, config: Config, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Return the endless iterator of training batches from `start_step`; B is train.batch_size / process_count.

    An image that cannot be decoded is an empty slot, or with data.on_corrupt="stop" a DataError. Raises DataError if
    the dataset lacks the masks or keypoints that the model needs, or B is not an integer.
    """
    data, batch_size = config.data, config.train.batch_size
    buckets = _assign_buckets(dataset, config, max(data.shortest_edge_train))
    plan = BatchPlan(config.train.seed, buckets, data.buckets, batch_size, remainder=data.remainder)
    loader = Loader(dataset, config, plan, _process_slots(batch_size, process_index, process_count), training=True)
    return Batches(loader, range(start_step, _NO_END), data.workers, stop=data.on_corrupt == "stop")


def eval_batches(dataset: Dataset, config: Config, *, process_index: int = 0, process_count: int = 1) -> Batches:
    """Return an iterator over every image once, in the order of the dataset within each bucket.

    B is eval.batch_size / process_count; slots left over in the last batch of a bucket are not valid. The ground truth
    is included, without augmentation. An image that cannot be decoded is a DataError, because the metrics would be
    wrong without it.
    """
    data, batch_size = config.data, config.eval.batch_size
    buckets = _assign_buckets(dataset, config, data.shortest_edge_eval)
    plan = BatchPlan(0, buckets, data.buckets, batch_size, shuffle=False, remainder="pad")
    loader = Loader(dataset, config, plan, _process_slots(batch_size, process_index, process_count), training=False)
    return Batches(loader, range(plan.batches_per_epoch), data.workers, stop=True)


def _assign_buckets(dataset: Dataset, config: Config, shortest_edge: int) -> np.ndarray:
    """Return the bucket of each image, the same for all training sizes if `shortest_edge` is the largest of them."""
    data = config.data
    return choose_buckets(dataset.sizes, data.buckets, shortest_edge=shortest_edge, longest_edge=data.longest_edge)


def _process_slots(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return the slots of the global batch that this process loads."""
    if batch_size % process_count:
        raise DataError(
            f"a global batch of {batch_size} images cannot be divided among {process_count} processes; choose a"
            " multiple of the number of processes"
        )
    per_process = batch_size // process_count
    return slice(process_index * per_process, (process_index + 1) * per_process)


def _prefetch(loader: Loader, steps: range, num_workers: int) -> Any:
    """Return a grain dataset of `loader` over `steps`, in order, in threads or, with `num_workers`, in processes."""
    import grain  # the import takes a second, and `load_split` alone does not need it

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which only absl.app parses
    threads = min(_MAX_THREADS, os.cpu_count() or 1) if num_workers == 0 else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _BATCHES_AHEAD))
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(loader)
    if num_workers > 0:
        dataset = dataset.map(workers.pack)
    dataset = dataset.to_iter_dataset(options)
    if num_workers > 0:
        multiprocessing = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_BATCHES_AHEAD)
        dataset = dataset.mp_prefetch(multiprocessing, worker_init_fn=workers.WorkerInit())
    cv2.setNumThreads(1)  # several batches are loaded at the same time already
    return dataset

"""Batches ready for the device: plan -> records -> augmentation -> padded `Batch`, ahead of time, by grain.

The unit that grain distributes is a whole batch, a pure function of the step. So neither the number of workers nor
the number of processes changes what is in it, and a run resumed at step k continues with exactly batch k.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from types import TracebackType
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

_THREADS = 8  # at most, each making one batch; 16 large images with their masks take 70 MB
_BATCHES_AHEAD = 2  # of one worker process
_ENDLESS = 2**40
MAX_CONSECUTIVE_FAILURES = 16  # images in a row that cannot be loaded: then it is not the images


class Batches(Iterator[Batch]):
    """An iterator of this process's part of the global batches. Close it (or use `with`) to stop its workers.

    `next` raises DataError for what stops the data: a worker process that ended, records that are gone, many images in
    a row that cannot be loaded, or with `stop` a single one. Without `stop` that one is an empty slot, and a warning in
    the log.
    """

    def __init__(self, loader: Loader, steps: range, count: int, *, stop: bool):
        self._loader, self._steps, self._workers, self._stop = loader, steps, count, stop
        self._position = 0  # in `steps`, of the batch that comes next
        self._iterator: Any = iter(_read_ahead(loader, steps, count))
        self._failure: DataError | None = None
        self._corrupt: tuple[int, set[int]] = (-1, set())  # epoch, and the images of it that were named
        self._in_vain = 0  # planned images since the last one that could be loaded

    def __next__(self) -> Batch:
        if self._failure is not None:  # grain would say that there are no more
            raise self._failure
        try:
            batch = self._take()
        except DataError as error:
            self._failure = error
            raise
        self._position += 1
        return batch

    def _take(self) -> Batch:
        """The next batch, compared with what was planned."""
        assert self._iterator is not None, "the batches were closed"
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._position < len(self._steps):
                raise DataError(f"the data ended after {self._position} of {len(self._steps)} batches") from None
            raise
        except KeyboardInterrupt as interrupt:
            # Its frames would keep grain's iterators alive until the interpreter has taken itself apart.
            raise interrupt.with_traceback(None) from None
        except Exception as error:
            if isinstance(error, DataError) or not self._workers:
                raise
            raise workers.lost(error, self._position % self._workers) from None  # they take turns
        if self._workers:
            batch = workers.unpack(batch)
        planned = self._loader.planned(self._steps[self._position])
        for index in np.unique(planned.indices[planned.valid & ~batch.valid]).tolist():
            self._name_corrupt(index, planned.epoch)
        self._check_consecutive_failures(batch.valid[planned.valid], planned.indices[planned.valid])
        return batch

    def _check_consecutive_failures(self, loaded: np.ndarray, indices: np.ndarray) -> None:
        """Raise DataError when nothing can be loaded any more: a run would go on with nothing but empty slots."""
        for done, index in zip(loaded.tolist(), indices.tolist(), strict=True):
            self._in_vain = 0 if done else self._in_vain + 1
            if self._in_vain == MAX_CONSECUTIVE_FAILURES:
                reason = self._loader.describe_failure(index)
                raise DataError(f"{MAX_CONSECUTIVE_FAILURES} images in a row cannot be loaded; {reason}")

    def _name_corrupt(self, index: int, epoch: int) -> None:
        """Say that an image could not be loaded, once in an epoch. Raises DataError if that is to stop everything."""
        if self._corrupt[0] != epoch:
            self._corrupt = (epoch, set())
        named = self._corrupt[1]
        if index in named:
            return
        named.add(index)
        reason = self._loader.describe_failure(index)
        if self._stop:
            raise DataError(reason)
        log.warning("%s. Its slot stays empty (epoch %d: %d so far)", reason, epoch, len(named))

    def images(self) -> int:
        """How many images are planned for this process. For batches that come to an end."""
        return sum(int(self._loader.planned(step).valid.sum()) for step in self._steps)

    def close(self) -> None:
        """Stop reading ahead and end the worker processes."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def train_batches(
    dataset: Dataset, config: Config, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """The endless sequence of training batches from `start_step` on; B is train.batch_size / process_count.

    An image that cannot be decoded is an empty slot, or with data.on_corrupt="stop" a DataError. Raises DataError
    when the model wants masks or keypoints that the data does not have, or the batch cannot be divided.
    """
    data = config.data
    plan = BatchPlan(
        config.train.seed,
        _assign(dataset, config, max(data.shortest_edge_train)),
        data.buckets,
        config.train.batch_size,
        remainder=data.remainder,
    )
    slots = _process_slots(config.train.batch_size, process_index, process_count)
    loader = Loader(dataset, config, plan, slots, training=True)
    return Batches(loader, range(start_step, _ENDLESS), data.workers, stop=data.on_corrupt == "stop")


def eval_batches(dataset: Dataset, config: Config, *, process_index: int = 0, process_count: int = 1) -> Batches:
    """Every image once, in the order of the data set within each bucket; unused slots at a bucket's end are not valid.

    The ground truth is included, as for training but without augmentation. B is eval.batch_size / process_count.
    An image that cannot be decoded is always a DataError: without its detections the scores would be others.
    """
    plan = BatchPlan(
        0,
        _assign(dataset, config, config.data.shortest_edge_eval),
        config.data.buckets,
        config.eval.batch_size,
        shuffle=False,
        remainder="pad",
    )
    slots = _process_slots(config.eval.batch_size, process_index, process_count)
    loader = Loader(dataset, config, plan, slots, training=False)
    return Batches(loader, range(plan.batches_per_epoch), config.data.workers, stop=True)


def _assign(dataset: Dataset, config: Config, shortest_edge: int) -> np.ndarray:
    """Bucket of each image. With several training sizes the largest decides, so that an image never moves."""
    data = config.data
    return choose_buckets(dataset.sizes, data.buckets, shortest_edge=shortest_edge, longest_edge=data.longest_edge)


def _process_slots(batch_size: int, process_index: int, process_count: int) -> slice:
    """The slots of the global batch that this process loads."""
    if batch_size % process_count:
        raise DataError(f"a global batch of {batch_size} images cannot be divided among {process_count} processes")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _read_ahead(loader: Loader, steps: range, count: int) -> Any:
    """A grain data set of `loader` over `steps`, in order, in threads of this process or in `count` processes."""
    import grain  # takes a second to import, which `load_split` alone need not wait for

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags, and outside absl.app nobody parses them
    threads = min(_THREADS, os.cpu_count() or 1) if count == 0 else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _BATCHES_AHEAD))
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(loader)
    if count > 0:
        dataset = dataset.map(workers.pack)
    dataset = dataset.to_iter_dataset(options)
    if count > 0:
        multiprocessing = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=_BATCHES_AHEAD)
        dataset = dataset.mp_prefetch(multiprocessing, worker_init_fn=workers.Start())
    cv2.setNumThreads(1)  # batches are made side by side already
    return dataset

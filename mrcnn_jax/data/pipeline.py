"""Batches ready for the device: plan -> records -> augmentation -> padded `Batch`, ahead of time, by grain.

The unit that grain distributes is a whole batch, a pure function of the step. So neither the number of workers nor
the number of processes changes what is in it, and a run resumed at step k continues with exactly batch k.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from absl import flags

from mrcnn_jax.config import Config
from mrcnn_jax.data.batching import BatchPlan, choose_buckets
from mrcnn_jax.data.coco import Dataset
from mrcnn_jax.data.errors import DataError
from mrcnn_jax.data.loader import Loader
from mrcnn_jax.structures import Batch

_THREADS = 8  # at most, each making one batch; 16 large images with their masks take 70 MB
_BATCHES_AHEAD = 2  # of one worker process
_ENDLESS = 2**40


class Batches(Iterator[Batch]):
    """An iterator of this process's part of the global batches. Close it (or use `with`) to stop its workers."""

    def __init__(self, dataset: Any):
        self._iterator = iter(dataset)

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Stop reading ahead and end the worker processes."""
        self._iterator.close()

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

    Raises DataError when the model wants masks or keypoints that the data does not have, or the batch cannot be
    divided.
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
    return _read_ahead(loader, range(start_step, _ENDLESS), data.workers)


def eval_batches(dataset: Dataset, config: Config, *, process_index: int = 0, process_count: int = 1) -> Batches:
    """Every image once, in the order of the data set within each bucket; unused slots at a bucket's end are not valid.

    The ground truth is included, as for training but without augmentation. B is eval.batch_size / process_count.
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
    return _read_ahead(loader, range(plan.batches_per_epoch), config.data.workers)


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


def _read_ahead(loader: Loader, steps: range, workers: int) -> Batches:
    """Run `loader` over `steps`, in order, in threads of this process or in `workers` processes."""
    import grain  # takes a second to import, which `load_split` alone need not wait for

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags, and outside absl.app nobody parses them
    threads = min(_THREADS, os.cpu_count() or 1) if workers == 0 else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _BATCHES_AHEAD))
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(loader).to_iter_dataset(options)
    if workers > 0:
        multiprocessing = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD)
        dataset = dataset.mp_prefetch(multiprocessing, worker_init_fn=_start_worker)
    cv2.setNumThreads(1)  # batches are made side by side already
    return Batches(dataset)


def _start_worker(index: int, count: int) -> None:
    """Runs first in a worker process."""
    cv2.setNumThreads(1)

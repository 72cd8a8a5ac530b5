"""Batches ready for the device: plan -> records -> transforms -> padded `Batch`, ahead of time, by grain.

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
from mrcnn_jax.data import transforms
from mrcnn_jax.data.batching import BatchPlan, PlannedBatch, choose_buckets, scale_for, scaled_size
from mrcnn_jax.data.categories import mirrored
from mrcnn_jax.data.coco import Dataset
from mrcnn_jax.data.errors import DataError
from mrcnn_jax.structures import Batch, GroundTruth

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
    )
    slots = _process_slots(config.train.batch_size, process_index, process_count)
    loader = _Loader(dataset, config, plan, slots, training=True)
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
    loader = _Loader(dataset, config, plan, slots, training=False)
    return _read_ahead(loader, range(plan.batches_per_epoch), config.data.workers)


class _Loader:
    """step -> Batch. Travels to the worker processes."""

    def __init__(self, dataset: Dataset, config: Config, plan: BatchPlan, slots: slice, *, training: bool):
        self._dataset, self._config, self._plan, self._slots, self._training = dataset, config, plan, slots, training
        self._class_of = dataset.categories.class_of()
        wants_masks = config.model.mask is not None
        if training and wants_masks and not dataset.has_masks:
            raise DataError(
                f"{dataset.annotations_path} has instances without a segmentation, and the model has a mask head:"
                " set model.mask=None to train boxes alone, or give every instance a segmentation"
            )
        if training and config.model.keypoint is not None:
            _check_keypoints(dataset, config)
        self._mask_size = config.data.mask_size if wants_masks and dataset.has_masks else 0
        self._flip_map = config.model.keypoint.flip_map if config.model.keypoint is not None else ()
        same = len(dataset.categories.pose.names) == config.model.num_keypoints
        self._keypoints = config.model.num_keypoints if same else 0

    def __call__(self, step: int) -> Batch:
        """This process's part of the global batch of `step`."""
        planned = self._plan.batch(step)
        indices, valid = planned.indices[self._slots], planned.valid[self._slots]
        batch = self._empty(planned, indices, valid)
        for slot in np.flatnonzero(valid):
            truth = GroundTruth(*(field[slot] for field in batch.ground_truth))
            batch.image_sizes[slot] = self._load(int(indices[slot]), planned, batch.images[slot], truth)
        return batch

    def _empty(self, planned: PlannedBatch, indices: np.ndarray, valid: np.ndarray) -> Batch:
        """A batch of padding."""
        count, slots, side = len(indices), self._config.data.max_instances, self._mask_size
        truth = GroundTruth(
            boxes=np.zeros((count, slots, 4), np.float32),
            classes=np.zeros((count, slots), np.int32),
            masks=np.zeros((count, slots, side, side), np.uint8),
            mask_windows=np.zeros((count, slots, 4), np.float32),
            keypoints=np.zeros((count, slots, self._keypoints, 3), np.float32),
            valid=np.zeros((count, slots), bool),
        )
        images = np.zeros((count, *planned.bucket, 3), np.uint8)
        # A slot without an image says 1 x 1, so that nothing on the device divides by an empty picture.
        return Batch(images, np.ones((count, 2), np.int32), indices.astype(np.int32), valid.copy(), truth)

    def _load(self, index: int, planned: PlannedBatch, canvas: np.ndarray, truth: GroundTruth) -> np.ndarray:
        """Write image `index` to its canvas (H, W, 3) and its instances to `truth`; its height and width there."""
        data, dataset = self._config.data, self._dataset
        content, annotations = dataset.record(index)
        image = transforms.decode(content)
        if image is None:
            raise DataError(f"{dataset.image_path(index)} (image id {dataset.ids[index]}) cannot be decoded")
        shortest, flips = data.shortest_edge_eval, (False, False)
        if self._training:
            # One generator for each image and epoch, always drawn from in this order.
            rng = np.random.default_rng([self._config.train.seed, planned.epoch, index])
            shortest = int(rng.choice(data.shortest_edge_train))
            flips = (rng.random() < data.horizontal_flip, rng.random() < data.vertical_flip)
        size = dataset.sizes[index]
        scale = scale_for(size, planned.bucket, shortest_edge=shortest, longest_edge=data.longest_edge)
        scaled = scaled_size(size, scale, planned.bucket)
        transforms.resize_into(transforms.flip_image(image, *flips), canvas, scaled)
        transforms.fill_truth(truth, annotations, self._class_of, size=size, scaled=scaled)
        transforms.flip_truth(truth, scaled, *flips, self._flip_map)
        return scaled


def _check_keypoints(dataset: Dataset, config: Config) -> None:
    """Raise DataError unless the data's keypoints are those that the model is to learn."""
    head, names = config.model.keypoint, dataset.categories.pose.names
    assert head is not None, "asked only of a model that has a keypoint head"
    if len(names) != head.num_keypoints:
        has = f"has {len(names)} keypoints" if names else "has no keypoints, or categories whose keypoints differ"
        raise DataError(
            f"{dataset.annotations_path} {has}, and the model has a head for {head.num_keypoints}: set"
            " model.keypoint.num_keypoints (and .flip_map), choose data.categories, or set model.keypoint=None"
        )
    sides = mirrored(names)
    if sides != tuple(range(len(names))) and sides != head.flip_map:
        raise DataError(
            f"{dataset.annotations_path} has the keypoints {', '.join(names)}, which mirrored images exchange as in"
            f" {sides}; model.keypoint.flip_map says {head.flip_map}"
        )


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


def _read_ahead(loader: _Loader, steps: range, workers: int) -> Batches:
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

"""Assignment of images to buckets and batches: a pure function of seed and step, the same on every process.

Every image belongs to one bucket (a fixed padded shape), and all images of a global batch are in one bucket. An epoch
is a permutation of each bucket, divided into batches, and a permutation of those batches. Every image is in exactly
one batch, except as `remainder` of `BatchPlan` says for the last batch of a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mrcnn_jax.errors import DataError


class PlannedBatch(NamedTuple):
    """The plan of one global batch of B images."""

    bucket: tuple[int, int]  # padded height and width
    epoch: int
    indices: np.ndarray  # (B,) int64, indices in the dataset (any image of the bucket where not valid)
    valid: np.ndarray  # (B,) bool


def scaled_size(size: np.ndarray, scale: np.ndarray | float, bucket: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return height and width (..., 2) int32 after scaling, rounded, from 1 to the size of the bucket."""
    rounded = np.floor(np.asarray(size) * np.expand_dims(np.asarray(scale), -1) + 0.5).astype(np.int32)
    return np.clip(rounded, 1, np.asarray(bucket, np.int32))


def scale_for(
    sizes: np.ndarray, bucket: Sequence[float] | np.ndarray, *, shortest_edge: int, longest_edge: int
) -> np.ndarray:
    """Return the scale (...,) that resizes the shorter edge to `shortest_edge`, within the limits.

    Limits are `longest_edge` for the longer edge, and the bucket. sizes: (..., 2) height and width. bucket: height and
    width for all images, or (..., 2) one for each.
    """
    sizes = np.asarray(sizes, np.float64)
    scale = np.minimum(shortest_edge / sizes.min(axis=-1), longest_edge / sizes.max(axis=-1))
    return np.minimum(scale, (np.asarray(bucket) / sizes).min(axis=-1))


def choose_buckets(
    sizes: np.ndarray, buckets: Sequence[tuple[int, int]], *, shortest_edge: int, longest_edge: int
) -> np.ndarray:
    """Return the index (n,) of the bucket of each image: the largest scale, then the smallest area.

    sizes: (n, 2) height and width of the original images.
    """
    scales = np.stack(
        [scale_for(sizes, b, shortest_edge=shortest_edge, longest_edge=longest_edge) for b in buckets], axis=-1
    )
    by_area = np.argsort([height * width for height, width in buckets], kind="stable")
    return by_area[np.argmax(scales[..., by_area], axis=-1)]  # argmax returns the first of equal scales


class BatchPlan:
    """The sequence of global batches.

    Args:
      seed: of the permutations.
      assignment: (n,) the bucket of each image, see `choose_buckets`.
      buckets: height and width of each bucket.
      batch_size: B, images in a global batch.
      shuffle: False keeps the order of the dataset, bucket after bucket.
      remainder: how the last batch of a bucket is completed if fewer than B images are left for it.
        - "repeat" fills it from the start of the bucket's permutation, which differs in each epoch: fewer than B images
          occur twice. A bucket with fewer than B images has one batch, in which their counts differ by at most 1.
        - "pad" leaves the slots invalid: every image occurs exactly once.
        - "drop" omits the batch: fewer than B images are missing, different ones in each epoch if shuffled.

    Raises DataError for "drop" if a bucket has fewer than B images, which would never be used.
    """

    def __init__(
        self,
        seed: int,
        assignment: np.ndarray,
        buckets: Sequence[tuple[int, int]],
        batch_size: int,
        *,
        shuffle: bool = True,
        remainder: Literal["repeat", "pad", "drop"] = "repeat",
    ):
        self._seed, self._batch_size, self._shuffle, self._remainder = seed, batch_size, shuffle, remainder
        members = [(bucket, np.flatnonzero(assignment == i)) for i, bucket in enumerate(buckets)]
        self._members = [(bucket, indices) for bucket, indices in members if len(indices)]
        self._epoch: tuple[int, list[PlannedBatch]] | None = None
        if remainder == "drop":
            self._check_full_batches()

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return sum(self._batch_count(len(indices)) for _, indices in self._members)

    def batch(self, step: int) -> PlannedBatch:
        """Return the plan of the global batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.batches_per_epoch)
        planned = self._epoch  # read once, because other threads can replace it
        if planned is None or planned[0] != epoch:
            planned = self._epoch = (epoch, self._plan(epoch))
        return planned[1][position]

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        """Return all batches of one epoch, in order."""
        rng = np.random.default_rng([self._seed, epoch])
        batches = []
        for bucket, indices in self._members:
            order = rng.permutation(indices) if self._shuffle else indices
            # np.resize repeats `order` from its start, or truncates it.
            slots = np.resize(order, (self._batch_count(len(order)), self._batch_size))
            valid = np.arange(slots.size).reshape(slots.shape) < len(order)
            if self._remainder == "repeat":
                valid[:] = True
            batches += [PlannedBatch(bucket, epoch, *row) for row in zip(slots, valid, strict=True)]
        return [batches[i] for i in rng.permutation(len(batches))] if self._shuffle else batches

    def _batch_count(self, images: int) -> int:
        """Return the number of batches of a bucket with this number of images."""
        full, rest = divmod(images, self._batch_size)
        return full + (rest > 0 and self._remainder != "drop")

    def _check_full_batches(self) -> None:
        """Raise DataError for buckets with fewer images than a batch."""
        counts = [(bucket, len(indices)) for bucket, indices in self._members if len(indices) < self._batch_size]
        small = [f"{height}x{width} has {count}" for (height, width), count in counts]
        if small:
            raise DataError(
                "data.remainder=drop would never use buckets with fewer images than"
                f" train.batch_size={self._batch_size}: bucket {', '.join(small)}; set data.remainder=repeat or pad,"
                " reduce train.batch_size, or choose other data.buckets (`mrcnn plan` proposes some)"
            )

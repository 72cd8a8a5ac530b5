"""Which images make up which batch: a pure function of the seed and the step, the same on every process.

Every image belongs to one bucket (a fixed padded shape), and a global batch holds images of one bucket. An epoch is
a permutation of each bucket cut into batches, and a permutation of those batches. Every image is in exactly one of
them, except for what the remainder policy says of the last batch of a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mrcnn_jax.errors import DataError


class PlannedBatch(NamedTuple):
    """One global batch of B images before anything is loaded."""

    bucket: tuple[int, int]  # padded height and width
    epoch: int
    indices: np.ndarray  # (B,) int64, positions in the data set (an image of the bucket where not valid)
    valid: np.ndarray  # (B,) bool


def scaled_size(size: np.ndarray, scale: np.ndarray | float, bucket: Sequence[int] | np.ndarray) -> np.ndarray:
    """Height and width (..., 2) int32 after scaling, rounded, at least 1 and at most the bucket."""
    rounded = np.floor(np.asarray(size) * np.expand_dims(np.asarray(scale), -1) + 0.5).astype(np.int32)
    return np.clip(rounded, 1, np.asarray(bucket, np.int32))


def scale_for(
    sizes: np.ndarray, bucket: Sequence[float] | np.ndarray, *, shortest_edge: int, longest_edge: int
) -> np.ndarray:
    """Scale (...,) that brings the shorter edge to `shortest_edge`, unless the longer one or the bucket say less.

    bucket: height and width, for all images or (..., 2) for each its own.
    """
    sizes = np.asarray(sizes, np.float64)
    rule = np.minimum(shortest_edge / sizes.min(axis=-1), longest_edge / sizes.max(axis=-1))
    return np.minimum(rule, (np.asarray(bucket) / sizes).min(axis=-1))


def choose_buckets(
    sizes: np.ndarray, buckets: Sequence[tuple[int, int]], *, shortest_edge: int, longest_edge: int
) -> np.ndarray:
    """Index (n,) of the bucket of each image: the one that lets it be largest; among equals the smallest area.

    sizes: (n, 2) height and width of the original images.
    """
    scales = np.stack(
        [scale_for(sizes, b, shortest_edge=shortest_edge, longest_edge=longest_edge) for b in buckets], axis=-1
    )
    by_area = np.argsort([height * width for height, width in buckets], kind="stable")
    return by_area[np.argmax(scales[..., by_area], axis=-1)]  # argmax takes the first among equals


class BatchPlan:
    """The sequence of global batches.

    remainder: what becomes of the last batch of a bucket, when its B slots are more than the images that are left.
    - "repeat" fills it with images that began the bucket's permutation, other ones in each epoch: fewer than B images
      twice. A bucket with fewer images than B has one batch, which holds each of them equally often, or once more.
    - "pad" leaves the slots invalid: every image exactly once.
    - "drop" leaves the batch out: fewer than B images are missing, other ones in each epoch if they are shuffled.
    shuffle: False keeps the order of the data set, bucket after bucket.

    Raises DataError for "drop" where a bucket has fewer images than B: no epoch would ever show them.
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
        self._seed, self._buckets, self._batch_size = seed, tuple(buckets), batch_size
        self._shuffle, self._remainder = shuffle, remainder
        members = [np.flatnonzero(assignment == i) for i in range(len(buckets))]
        self._members = [(i, indices) for i, indices in enumerate(members) if len(indices)]
        self._epoch: tuple[int, list[PlannedBatch]] | None = None
        if remainder == "drop":
            self._refuse_unseen()

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every image was shown, or was left out by "drop"."""
        return sum(self._batches(len(indices)) for _, indices in self._members)

    def batch(self, step: int) -> PlannedBatch:
        """The global batch of a training step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.batches_per_epoch)
        planned = self._epoch  # read once: threads share this plan, and only ever replace the pair
        if planned is None or planned[0] != epoch:
            planned = self._epoch = (epoch, self._plan(epoch))
        return planned[1][position]

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        """All batches of one epoch, in order."""
        rng = np.random.default_rng([self._seed, epoch])
        batches = []
        for bucket, indices in self._members:
            order = rng.permutation(indices) if self._shuffle else indices
            # np.resize starts again from the front where `order` runs out, and cuts it where it is too long.
            slots = np.resize(order, (self._batches(len(order)), self._batch_size))
            valid = np.arange(slots.size).reshape(slots.shape) < len(order)
            if self._remainder == "repeat":
                valid[:] = True
            batches += [PlannedBatch(self._buckets[bucket], epoch, *row) for row in zip(slots, valid, strict=True)]
        return [batches[i] for i in rng.permutation(len(batches))] if self._shuffle else batches

    def _batches(self, images: int) -> int:
        """Batches that a bucket with so many images makes."""
        whole, rest = divmod(images, self._batch_size)
        return whole + (rest > 0 and self._remainder != "drop")

    def _refuse_unseen(self) -> None:
        """Raise DataError for buckets that do not fill a single batch."""
        small = [
            f"{self._buckets[i][0]}x{self._buckets[i][1]} has {len(indices)}"
            for i, indices in self._members
            if len(indices) < self._batch_size
        ]
        if small:
            raise DataError(
                f"data.remainder=drop leaves out batches that are not full, and a bucket with fewer images than the"
                f" batch of {self._batch_size} has no full one; bucket {', '.join(small)}: set"
                " data.remainder=repeat or pad, train.batch_size to less, or other data.buckets"
                " (`mrcnn plan` proposes some)"
            )

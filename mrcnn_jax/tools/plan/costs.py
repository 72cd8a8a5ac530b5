"""Cost of a set of buckets on a dataset, by the rules of the data pipeline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import Config
from mrcnn_jax.data.batching import choose_buckets, scale_for, scaled_size

Buckets = tuple[tuple[int, int], ...]


class Cost(NamedTuple):
    """Cost of k buckets. Pixels include padding."""

    buckets: Buckets
    images: np.ndarray  # (k,) training images per bucket
    remainder: np.ndarray  # (k,) repeated or empty slots per epoch; with "drop", dropped images
    pixels: float  # mean per image
    epoch: float  # mean per image over an epoch, including repeated and empty slots
    padding: float  # fraction of the pixels, at the largest training size
    training_padding: float  # the same over all training sizes, which are equally frequent
    shrunk: int  # images that are scaled below what shortest and longest edge ask for


def cost(sizes: np.ndarray, buckets: Buckets, config: Config) -> Cost:
    """Return the cost of training on images of `sizes` (n, 2). An image has the same bucket for all training sizes."""
    data, batch = config.data, config.train.batch_size
    largest = max(data.shortest_edge_train)
    assigned = choose_buckets(sizes, buckets, shortest_edge=largest, longest_edge=data.longest_edge)
    padded = np.array(buckets)[assigned]
    areas = np.array(buckets).prod(axis=1)
    images = np.bincount(assigned, minlength=len(buckets))
    excess = images % batch
    drop = data.remainder == "drop"
    slots = images if drop else images + np.where(excess, batch - excess, 0)
    full_scale = scale_for(sizes, (np.inf, np.inf), shortest_edge=largest, longest_edge=data.longest_edge)
    return Cost(
        buckets=buckets,
        images=images,
        remainder=excess if drop else slots - images,
        pixels=float(areas[assigned].mean()),
        epoch=float(slots @ areas / len(sizes)),
        padding=_padding(sizes, padded, (largest,), data.longest_edge),
        training_padding=_padding(sizes, padded, data.shortest_edge_train, data.longest_edge),
        shrunk=int((_scales(sizes, padded, largest, data.longest_edge) < full_scale).sum()),
    )


def _padding(sizes: np.ndarray, padded: np.ndarray, shortest_edges: tuple[int, ...], longest_edge: int) -> float:
    """Return the fraction of padding in the pixels of images in their buckets `padded` (n, 2)."""
    covered = 0
    for shortest in shortest_edges:
        scales = _scales(sizes, padded, shortest, longest_edge)
        covered += int(scaled_size(sizes, scales, padded).astype(np.int64).prod(axis=1).sum())
    return 1 - covered / (len(shortest_edges) * int(padded.prod(axis=1).sum()))


def _scales(sizes: np.ndarray, padded: np.ndarray, shortest_edge: int, longest_edge: int) -> np.ndarray:
    """Return the scale (n,) of each image in its bucket."""
    return scale_for(sizes, padded, shortest_edge=shortest_edge, longest_edge=longest_edge)

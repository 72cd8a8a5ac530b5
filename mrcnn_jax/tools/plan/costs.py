"""What a set of buckets costs on a data set, under the rules that the pipeline follows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import Config
from mrcnn_jax.data.batching import choose_buckets, scale_for, scaled_size

Buckets = tuple[tuple[int, int], ...]


class Cost(NamedTuple):
    """Of k buckets. Pixels are padded ones, which is what a device computes."""

    buckets: Buckets
    images: np.ndarray  # (k,) training images in each
    remainder: np.ndarray  # (k,) slots that are repeated or left empty in an epoch; with "drop" images left out
    pixels: float  # of an image, in the mean
    epoch: float  # the same for an epoch: with the slots of its remainders, for each image that it shows
    padding: float  # part of the pixels, at the largest training size
    training_padding: float  # the same over all training sizes, which are drawn equally often
    shrunk: int  # images that do not get the scale that shortest and longest edge ask for


def cost(sizes: np.ndarray, buckets: Buckets, config: Config) -> Cost:
    """Of training on images of these `sizes` (n, 2). A bucket stays what it is for all of an image's training sizes."""
    data, batch = config.data, config.train.batch_size
    largest = max(data.shortest_edge_train)
    home = choose_buckets(sizes, buckets, shortest_edge=largest, longest_edge=data.longest_edge)
    padded = np.array(buckets)[home]
    areas = np.array(buckets).prod(axis=1)
    images = np.bincount(home, minlength=len(buckets))
    over = images % batch
    drop = data.remainder == "drop"
    slots = images if drop else images + np.where(over, batch - over, 0)
    rule = scale_for(sizes, (np.inf, np.inf), shortest_edge=largest, longest_edge=data.longest_edge)
    return Cost(
        buckets=buckets,
        images=images,
        remainder=over if drop else slots - images,
        pixels=float(areas[home].mean()),
        epoch=float(slots @ areas / len(sizes)),
        padding=_padding(sizes, padded, (largest,), data.longest_edge),
        training_padding=_padding(sizes, padded, data.shortest_edge_train, data.longest_edge),
        shrunk=int((_scales(sizes, padded, largest, data.longest_edge) < rule).sum()),
    )


def _padding(sizes: np.ndarray, padded: np.ndarray, shortest_edges: tuple[int, ...], longest_edge: int) -> float:
    """Part of the pixels of images in their buckets `padded` (n, 2) that no image covers."""
    covered = 0
    for shortest in shortest_edges:
        scales = _scales(sizes, padded, shortest, longest_edge)
        covered += int(scaled_size(sizes, scales, padded).astype(np.int64).prod(axis=1).sum())
    return 1 - covered / (len(shortest_edges) * int(padded.prod(axis=1).sum()))


def _scales(sizes: np.ndarray, padded: np.ndarray, shortest_edge: int, longest_edge: int) -> np.ndarray:
    """Scale (n,) of each image in its own bucket."""
    return scale_for(sizes, padded, shortest_edge=shortest_edge, longest_edge=longest_edge)

"""Costs of buckets, and search for those with the least padding, a small facility location problem, solved exactly.

Sides of buckets are multiples of 32, so a dataset has few distinct shapes, about 70 for COCO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.config import Config
from mrcnn_jax.data.batching import choose_buckets, scale_for, scaled_size

Buckets = tuple[tuple[int, int], ...]

STRIDE = 32  # bucket sides must be multiples of it
_MAX_PAIRS = 20_000  # of a shape and a candidate bucket for it: two seconds of search; COCO has 6,000


def required_shapes(sizes: np.ndarray, *, shortest_edge: int, longest_edge: int) -> np.ndarray:
    """Return the smallest bucket (n, 2) int64 that fits each image at the full scale of the resize rule.

    sizes: (n, 2) height and width of the original images.
    """
    sizes = np.asarray(sizes, np.float64)
    unbounded = (np.inf, np.inf)
    full_scale = scale_for(sizes, unbounded, shortest_edge=shortest_edge, longest_edge=longest_edge)[:, None]
    edges = STRIDE * np.ceil(sizes * full_scale / STRIDE)
    # Correct the rounding of the product, because `scale_for` compares quotients.
    edges = np.where((edges - STRIDE) / sizes >= full_scale, edges - STRIDE, edges)
    return np.where(edges / sizes < full_scale, edges + STRIDE, edges).astype(np.int64)


def best_buckets(shapes: np.ndarray, counts: np.ndarray, max_buckets: int) -> Buckets:
    """Return at most `max_buckets` buckets, sorted by area, with the least total area of all images.

    Each shape goes into the smallest bucket that fits it. shapes: (m, 2) distinct heights and widths, multiples of 32.
    counts: (m,) images of each; shapes without images must fit too. The minimum is exact up to `_MAX_PAIRS`; with more
    pairs, the search uses a grid of 64, 128, ... pixels, and the buckets are then reduced to the shapes in them.
    """
    grid, coarse, weights = STRIDE, shapes, counts
    while True:
        buckets = _candidates(coarse)
        fits = np.all(buckets[:, None] >= coarse, axis=-1)
        if fits.sum() <= _MAX_PAIRS:
            break
        grid *= 2
        coarse, group = np.unique(-(-shapes // grid) * grid, axis=0, return_inverse=True)
        weights = np.bincount(group.ravel(), counts)
    selected = _select(buckets.prod(axis=1), fits, weights, max_buckets)
    return _reduce(buckets[selected], shapes)


def _candidates(shapes: np.ndarray) -> np.ndarray:
    """Return the buckets (c, 2) that are as high and as wide as some shape in them; others could be smaller."""
    corners = np.stack(np.meshgrid(np.unique(shapes[:, 0]), np.unique(shapes[:, 1]), indexing="ij"), axis=-1)
    corners = corners.reshape(-1, 2)
    fits = np.all(corners[:, None] >= shapes, axis=-1)
    extent = np.where(fits[..., None], shapes, 0).max(axis=1)
    return corners[np.all(extent == corners, axis=-1)]


def _select(areas: np.ndarray, fits: np.ndarray, counts: np.ndarray, max_buckets: int) -> np.ndarray:
    """Return the selected buckets (c,) bool, by an integer program.

    Variables: whether a bucket is selected; and for each pair in `fits` (c, m) the fraction of the shape's images in
    the bucket, which is 0 or 1 unless areas are equal.
    """
    # Imported here, because it takes half a second.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    bucket, shape = np.nonzero(fits)
    pairs, num_buckets = np.arange(len(bucket)), len(areas)
    ones, columns = np.ones(len(pairs)), num_buckets + pairs  # columns of the pairs
    all_placed = csr_array((ones, (shape, columns)), shape=(len(counts), num_buckets + len(pairs)))
    only_selected = csr_array((np.r_[-ones, ones], (np.r_[pairs, pairs], np.r_[bucket, columns])))
    is_bucket = np.arange(num_buckets + len(pairs)) < num_buckets
    # Scaled by 10,000, because the solver stops within 1e-6 of the minimum.
    mean_area = 1e4 * areas[bucket] / areas.max() * (counts / counts.sum())[shape]
    solution = milp(
        np.concatenate([np.zeros(num_buckets), mean_area]),
        integrality=is_bucket,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(all_placed, 1, 1),
            LinearConstraint(only_selected, -np.inf, 0),
            LinearConstraint(is_bucket[None].astype(float), 0, max_buckets),
        ],
        options={"mip_rel_gap": 0},
    )
    assert solution.success, solution.message  # a bucket for all shapes is always a candidate
    return solution.x[:num_buckets] > 0.5


def _reduce(buckets: np.ndarray, shapes: np.ndarray) -> Buckets:
    """Return the buckets, sorted by area and reduced to the shapes in each, without empty ones."""
    buckets = buckets[np.argsort(buckets.prod(axis=1), kind="stable")]
    assigned = np.all(buckets[:, None] >= shapes, axis=-1).argmax(axis=0)
    reduced = [shapes[assigned == i].max(axis=0).tolist() for i in np.unique(assigned)]
    return tuple((h, w) for h, w in sorted(reduced, key=lambda shape: (shape[0] * shape[1], shape)))


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
    padded, areas = np.array(buckets)[assigned], np.array(buckets).prod(axis=1)
    images = np.bincount(assigned, minlength=len(buckets))
    excess = images % batch
    drop = data.remainder == "drop"
    slots = images if drop else images + np.where(excess, batch - excess, 0)

    def scales(shortest_edge: int, shapes: Any) -> np.ndarray:
        return scale_for(sizes, shapes, shortest_edge=shortest_edge, longest_edge=data.longest_edge)

    def padding(shortest_edges: Sequence[int]) -> float:
        scaled = [scaled_size(sizes, scales(edge, padded), padded).astype(np.int64) for edge in shortest_edges]
        return 1 - int(np.prod(scaled, axis=2).sum()) / (len(scaled) * int(padded.prod(axis=1).sum()))

    return Cost(
        buckets=buckets,
        images=images,
        remainder=excess if drop else slots - images,
        pixels=float(areas[assigned].mean()),
        epoch=float(slots @ areas / len(sizes)),
        padding=padding((largest,)),
        training_padding=padding(data.shortest_edge_train),
        shrunk=int((scales(largest, padded) < scales(largest, (np.inf, np.inf))).sum()),
    )

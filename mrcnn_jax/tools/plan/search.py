"""Search for the buckets with the least padding, a small facility location problem that is solved exactly.

Sides of buckets are multiples of 32, so a dataset has few distinct shapes, about 70 for COCO.
"""

from __future__ import annotations

import numpy as np

from mrcnn_jax.data.batching import scale_for

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


def best_buckets(shapes: np.ndarray, counts: np.ndarray, max_buckets: int) -> tuple[tuple[int, int], ...]:
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
    from scipy.sparse import coo_array, eye_array, hstack

    bucket, shape = np.nonzero(fits)
    pairs, num_buckets = np.arange(len(bucket)), len(areas)
    ones = np.ones(len(pairs))
    all_placed = coo_array((ones, (shape, pairs + num_buckets)), shape=(len(counts), num_buckets + len(pairs)))
    only_selected = hstack(
        [coo_array((-ones, (pairs, bucket)), shape=(len(pairs), num_buckets)), eye_array(len(pairs))]
    )
    is_bucket = np.arange(num_buckets + len(pairs)) < num_buckets
    # Scaled by 10,000, because the solver stops within 1e-6 of the minimum.
    mean_area = 1e4 * areas[bucket] / areas.max() * (counts / counts.sum())[shape]
    solution = milp(
        np.concatenate([np.zeros(num_buckets), mean_area]),
        integrality=is_bucket,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(all_placed.tocsr(), 1, 1),
            LinearConstraint(only_selected.tocsr(), -np.inf, 0),
            LinearConstraint(is_bucket[None].astype(float), 0, max_buckets),
        ],
        options={"mip_rel_gap": 0},
    )
    assert solution.success, solution.message  # a bucket for all shapes is always a candidate
    return solution.x[:num_buckets] > 0.5


def _reduce(buckets: np.ndarray, shapes: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the buckets, sorted by area and reduced to the shapes in each, without empty ones."""
    buckets = buckets[np.argsort(buckets.prod(axis=1), kind="stable")]
    assigned = np.all(buckets[:, None] >= shapes, axis=-1).argmax(axis=0)
    reduced = [shapes[assigned == i].max(axis=0) for i in np.unique(assigned)]
    return tuple(sorted(((int(h), int(w)) for h, w in reduced), key=lambda b: (b[0] * b[1], b)))

"""Which few buckets pad a data set least: a small location problem, solved exactly.

Only multiples of 32 count, so a data set has few distinct shapes however many images it has: some 70 for COCO.
"""

from __future__ import annotations

import numpy as np

from mrcnn_jax.data.batching import scale_for

STRIDE = 32  # of the pyramid's last level but one; the configuration asks for its multiples
_MOST_PAIRS = 20_000  # of a shape and a candidate that holds it: two seconds of search; COCO has 6,000


def required_shapes(sizes: np.ndarray, *, shortest_edge: int, longest_edge: int) -> np.ndarray:
    """The smallest bucket (n, 2) int64 that shows each image at the full scale of the resize rule.

    sizes: (n, 2) height and width of the original images.
    """
    sizes = np.asarray(sizes, np.float64)
    free = (np.inf, np.inf)
    rule = scale_for(sizes, free, shortest_edge=shortest_edge, longest_edge=longest_edge)[:, None]
    edges = STRIDE * np.ceil(sizes * rule / STRIDE)
    # The product is rounded; `scale_for` compares quotients, and so do these.
    edges = np.where((edges - STRIDE) / sizes >= rule, edges - STRIDE, edges)
    return np.where(edges / sizes < rule, edges + STRIDE, edges).astype(np.int64)


def best_buckets(shapes: np.ndarray, counts: np.ndarray, most: int) -> tuple[tuple[int, int], ...]:
    """At most `most` buckets, by area, that hold all shapes and have the least area, each shape in its smallest.

    shapes: (m, 2) distinct heights and widths, multiples of 32. counts: (m,) images of each; a shape with none must
    still be held. The minimum is exact up to `_MOST_PAIRS`; beyond that the search is on a grid of 64, 128, ... pixels
    and the result is tightened to the shapes.
    """
    grid, coarse, weights = STRIDE, shapes, counts
    while True:
        buckets = _candidates(coarse)
        holds = np.all(buckets[:, None] >= coarse, axis=-1)
        if holds.sum() <= _MOST_PAIRS:
            break
        grid *= 2
        coarse, group = np.unique(-(-shapes // grid) * grid, axis=0, return_inverse=True)
        weights = np.bincount(group.ravel(), counts)
    return _tightened(buckets[_choose(buckets.prod(axis=1), holds, weights, most)], shapes)


def _candidates(shapes: np.ndarray) -> np.ndarray:
    """Buckets (c, 2) that touch what they hold on both sides: every other one could be made smaller."""
    corners = np.stack(np.meshgrid(np.unique(shapes[:, 0]), np.unique(shapes[:, 1]), indexing="ij"), axis=-1)
    corners = corners.reshape(-1, 2)
    holds = np.all(corners[:, None] >= shapes, axis=-1)
    touched = np.where(holds[..., None], shapes, 0).max(axis=1)
    return corners[np.all(touched == corners, axis=-1)]


def _choose(areas: np.ndarray, holds: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
    """Which (c,) bool of the buckets to take, as an integer program.

    Variables: whether a bucket is taken; and for each pair in `holds` (c, m) which part of a shape's images goes to
    the bucket, which may be a fraction, but never is where areas differ.
    """
    # Here: they take half a second to import, and belong to this command alone.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array, eye_array, hstack

    bucket, shape = np.nonzero(holds)
    pairs, taken = np.arange(len(bucket)), len(areas)
    ones = np.ones(len(pairs))
    all_placed = coo_array((ones, (shape, pairs + taken)), shape=(len(counts), taken + len(pairs)))
    into_taken = hstack([coo_array((-ones, (pairs, bucket)), shape=(len(pairs), taken)), eye_array(len(pairs))])
    is_bucket = np.arange(taken + len(pairs)) < taken
    # In parts of 10,000: the solver stops when it is within 1e-6 of the minimum.
    mean_area = 1e4 * areas[bucket] / areas.max() * (counts / counts.sum())[shape]
    solution = milp(
        np.concatenate([np.zeros(taken), mean_area]),
        integrality=is_bucket,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(all_placed.tocsr(), 1, 1),
            LinearConstraint(into_taken.tocsr(), -np.inf, 0),
            LinearConstraint(is_bucket[None].astype(float), 0, most),
        ],
        options={"mip_rel_gap": 0},
    )
    assert solution.success, solution.message  # one bucket that holds everything is always among the candidates
    return solution.x[:taken] > 0.5


def _tightened(buckets: np.ndarray, shapes: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The buckets, by area, cut to the shapes that go to each; those that no shape goes to are left out."""
    buckets = buckets[np.argsort(buckets.prod(axis=1), kind="stable")]
    home = np.all(buckets[:, None] >= shapes, axis=-1).argmax(axis=0)
    tight = [shapes[home == i].max(axis=0) for i in np.unique(home)]
    return tuple(sorted(((int(h), int(w)) for h, w in tight), key=lambda b: (b[0] * b[1], b)))

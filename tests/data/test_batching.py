"""Buckets and the plan of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.data.batching import BatchPlan, choose_buckets, scale_for, scaled_size

BUCKETS = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))


def chosen(height: int, width: int) -> tuple[int, int]:
    index = choose_buckets(np.array([[height, width]]), BUCKETS, shortest_edge=800, longest_edge=1333)[0]
    return BUCKETS[index]


@pytest.mark.parametrize(
    ("size", "bucket", "scaled"),
    [
        ((480, 640), (800, 1088), (800, 1067)),  # the common COCO sizes, as Detectron2 scales them
        ((640, 480), (1088, 800), (1067, 800)),
        ((427, 640), (800, 1344), (800, 1199)),
        ((640, 427), (1344, 800), (1199, 800)),
        ((500, 500), (800, 1088), (800, 800)),  # the first of two equals
        ((100, 640), (800, 1344), (208, 1333)),  # the longer edge decides
        ((2000, 30), (1344, 800), (1333, 20)),
        ((1, 1), (800, 1088), (800, 800)),
        ((20000, 3), (1344, 800), (1333, 1)),  # at least one pixel
    ],
)
def test_bucket_and_size(size: tuple[int, int], bucket: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert chosen(*size) == bucket
    scale = scale_for(np.array(size), bucket, shortest_edge=800, longest_edge=1333)
    assert tuple(scaled_size(np.array(size), scale, bucket)) == scaled


def test_equal_buckets_give_way_to_the_smaller_area() -> None:
    buckets = ((128, 256), (128, 128), (256, 128))
    assert choose_buckets(np.array([[50, 50]]), buckets, shortest_edge=128, longest_edge=256).tolist() == [1]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_an_image_fits_its_bucket_and_no_bucket_shows_it_larger(height: int, width: int) -> None:
    bucket = chosen(height, width)
    size = np.array([height, width])
    scale = scale_for(size, bucket, shortest_edge=800, longest_edge=1333)
    assert (scaled_size(size, scale, bucket) <= bucket).all()
    assert all(scale >= scale_for(size, other, shortest_edge=800, longest_edge=1333) for other in BUCKETS)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 5))
def test_every_epoch_shows_every_image_of_one_bucket_at_a_time(seed: int, assignment: list[int], batch: int) -> None:
    buckets = ((32, 32), (32, 64), (64, 32))
    plan = BatchPlan(seed, np.array(assignment), buckets, batch)
    for epoch in range(2):
        steps = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        batches = [plan.batch(step) for step in steps]
        assert all(b.epoch == epoch and b.valid.all() and len(b.indices) == batch for b in batches)
        for b in batches:
            assert {buckets[assignment[i]] for i in b.indices} == {b.bucket}
        shown = np.concatenate([b.indices for b in batches])
        counts = np.bincount(shown, minlength=len(assignment))
        assert (counts >= 1).all()
        for k in range(3):  # repeated: only what fills the last batch of a bucket, evenly
            members = np.flatnonzero(np.array(assignment) == k)
            if len(members):
                assert counts[members].sum() - len(members) < batch
                assert np.ptp(counts[members]) <= 1


def test_evaluation_shows_every_image_once_in_order() -> None:
    assignment = np.array([0, 1, 0, 0, 1, 0, 0])
    plan = BatchPlan(0, assignment, ((32, 32), (64, 64)), 3, shuffle=False, remainder="pad")
    batches = [plan.batch(step) for step in range(plan.batches_per_epoch)]
    assert [b.indices[b.valid].tolist() for b in batches] == [[0, 2, 3], [5, 6], [1, 4]]
    assert [b.valid.tolist() for b in batches] == [[True] * 3, [True, True, False], [True, True, False]]


def test_the_plan_is_a_function_of_seed_and_step() -> None:
    assignment = np.zeros(20, int)

    def order(seed: int, steps: list[int]) -> list[list[int]]:
        plan = BatchPlan(seed, assignment, ((32, 32),), 3)
        return [plan.batch(step).indices.tolist() for step in steps]

    forward = order(1, list(range(30)))
    assert order(1, list(range(29, -1, -1))) == forward[::-1]
    assert forward[:7] != forward[7:14]  # another epoch, another order
    assert order(2, list(range(30))) != forward

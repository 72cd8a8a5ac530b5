"""Tests of buckets and of the plan of batches."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.data import load_split, train_batches
from mrcnn_jax.data.batching import BatchPlan, PlannedBatch, choose_buckets, scale_for, scaled_size
from mrcnn_jax.errors import DataError

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


@st.composite
def settings_of_plans(draw: st.DrawFn) -> dict[str, Any]:
    """Any sizes in the four buckets, any batch, seed, policy and epoch."""
    edges = st.one_of(st.integers(1, 4000), st.sampled_from([427, 480, 640]))
    sizes = np.array(draw(st.lists(st.tuples(edges, edges), min_size=1, max_size=40)))
    return {
        "assignment": choose_buckets(sizes, BUCKETS, shortest_edge=800, longest_edge=1333),
        "batch_size": draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**63)),
        "remainder": draw(st.sampled_from(["repeat", "pad", "drop"])),
        "epoch": draw(st.sampled_from([0, 1, 2, 1000])),
    }


def epoch_of(plan: BatchPlan, epoch: int) -> list[PlannedBatch]:
    count = plan.batches_per_epoch
    return [plan.batch(step) for step in range(epoch * count, (epoch + 1) * count)]


def shown_in(batches: list[PlannedBatch], images: int) -> np.ndarray:
    """How often each image stands in a valid slot."""
    shown = [batch.indices[batch.valid] for batch in batches]
    return np.bincount(np.concatenate([*shown, np.zeros(0, np.int64)]), minlength=images)


@settings(max_examples=100)
@given(settings_of_plans())
def test_an_epoch_shows_every_image_as_often_as_the_policy_says(case: dict[str, Any]) -> None:
    epoch, assignment, size, remainder = (case.pop(k) for k in ("epoch", "assignment", "batch_size", "remainder"))
    sizes = np.bincount(assignment, minlength=len(BUCKETS))
    if remainder == "drop" and any(0 < count < size for count in sizes):
        with pytest.raises(DataError, match=r"data\.remainder=drop"):
            BatchPlan(case["seed"], assignment, BUCKETS, size, remainder=remainder)
        return
    plan = BatchPlan(case["seed"], assignment, BUCKETS, size, remainder=remainder)
    batches = epoch_of(plan, epoch)
    shown = shown_in(batches, len(assignment))
    for batch in batches:
        assert batch.epoch == epoch
        assert batch.indices.shape == batch.valid.shape == (size,)
        assert {BUCKETS[i] for i in assignment[batch.indices]} == {batch.bucket}
        assert batch.valid[0]
        distinct = set(batch.indices[batch.valid].tolist())
        assert len(distinct) == min(batch.valid.sum(), sizes[assignment[batch.indices[0]]])  # no image twice in a batch
    for i, count in enumerate(sizes):
        members, rest = shown[assignment == i], count % size
        if remainder == "pad":
            assert (members == 1).all()
        elif remainder == "drop":
            assert sorted(members) == [0] * rest + [1] * (count - rest)
        elif count:
            assert members.sum() == -(-count // size) * size  # so fewer than a batch more than `count`
            assert members.min() >= 1
            assert np.ptp(members) <= 1


@settings()
@given(settings_of_plans(), st.integers(1, 4))
def test_the_plan_is_a_function_of_seed_and_epoch(case: dict[str, Any], processes: int) -> None:
    """Whichever steps were asked for before, and whoever asks."""
    arguments = (case["seed"], case["assignment"], BUCKETS, case["batch_size"])
    plans = [BatchPlan(*arguments, remainder="pad") for _ in range(processes)]
    count = plans[0].batches_per_epoch
    for i, plan in enumerate(plans):
        plan.batch(i * count)
    step = case["epoch"] * count + case["seed"] % count
    first, *others = (plan.batch(step) for plan in plans)
    for other in others:
        assert (other.bucket, other.epoch) == (first.bucket, first.epoch)
        np.testing.assert_array_equal(other.indices, first.indices)
        np.testing.assert_array_equal(other.valid, first.valid)


@pytest.mark.parametrize("remainder", ["repeat", "pad", "drop"])
def test_other_epochs_and_seeds_have_other_orders_batches_and_remainders(remainder: Any) -> None:
    assignment = np.arange(103) % 2
    plans = [BatchPlan(seed, assignment, BUCKETS[:2], 8, remainder=remainder) for seed in (0, 1)]
    epochs = [epoch_of(plan, epoch) for plan in plans for epoch in range(3)]
    assert len({tuple(np.concatenate([b.indices for b in epoch])) for epoch in epochs}) == 6
    assert len({frozenset(frozenset(b.indices.tolist()) for b in epoch) for epoch in epochs}) == 6
    if remainder != "pad":  # which images are repeated or left out
        assert len({tuple(shown_in(epoch, 103)) for epoch in epochs}) == 6


def test_dropped_images_come_in_other_epochs() -> None:
    plan = BatchPlan(0, np.zeros(15, int), BUCKETS, 8, remainder="drop")  # 7 of 15 are left out of each
    shown = sum(shown_in(epoch_of(plan, epoch), 15) for epoch in range(12))
    assert shown.sum() == 12 * 8
    assert shown.min() > 0


def test_buckets_are_mixed() -> None:
    plan = BatchPlan(0, np.repeat([0, 1], 400), BUCKETS[:2], 4)
    order = [batch.bucket for batch in epoch_of(plan, 0)]
    changes = sum(a != b for a, b in pairwise(order))
    assert order.count(BUCKETS[0]) == 100
    assert 80 < changes < 120  # of 199; chance gives 100 +- 7


def test_drop_refuses_a_bucket_smaller_than_a_batch() -> None:
    message = r"train\.batch_size=4: bucket 1088x800 has 3, 1344x800 has 1; set data\.remainder=repeat or pad"
    with pytest.raises(DataError, match=message):
        BatchPlan(0, np.array([0] * 4 + [1] * 3 + [3]), BUCKETS, 4, remainder="drop")


def test_a_bucket_smaller_than_a_batch_repeats_its_images_evenly() -> None:
    batch = BatchPlan(0, np.zeros(3, int), BUCKETS, 8).batch(0)
    assert sorted(np.bincount(batch.indices)) == [2, 3, 3]


def test_the_order_does_not_change_between_versions() -> None:
    """A run that goes on after an update, or processes that differ in it, would lose the thread."""
    plan = BatchPlan(7, np.array([0, 1] * 6), BUCKETS[:2], 4)
    assert [plan.batch(step).indices.tolist() for step in range(4, 8)] == [
        [8, 10, 6, 0],
        [9, 11, 5, 1],
        [6, 0, 4, 2],
        [3, 7, 9, 11],
    ]


def test_planning_coco_takes_no_time() -> None:
    """118,287 images take .02 s (see benchmarks/RESULTS.md); a step within the same epoch takes nothing."""
    assignment = np.random.default_rng(0).choice(4, 118_287, p=[0.55, 0.2, 0.2, 0.05])
    start = time.process_time()
    plan = BatchPlan(0, assignment, BUCKETS, 16)
    plan.batch(20 * plan.batches_per_epoch + 77)  # as a resumed run begins
    for step in range(1000):
        plan.batch(step)
    assert time.process_time() - start < 1


def test_training_follows_the_setting(shared_folder: Any) -> None:
    """Seven images, one bucket, batches of two."""
    config = shared_folder.config(buckets=((96, 96),))
    dataset = load_split(config.data, "train")
    valid = {}
    for remainder in ("repeat", "pad", "drop"):
        data = dataclasses.replace(config.data, remainder=remainder)
        with train_batches(dataset, dataclasses.replace(config, data=data)) as batches:
            first = [next(batches) for _ in range(6)]
        valid[remainder] = [int(batch.valid.sum()) for batch in first]
        for batch in first:
            assert not batch.ground_truth.valid[~batch.valid].any()
    assert valid["repeat"] == valid["drop"] == [2] * 6
    assert sorted(valid["pad"][:4]) == [1, 2, 2, 2]


def test_evaluation_shows_every_image_once_in_order() -> None:
    assignment = np.array([0, 1, 0, 0, 1, 0, 0])
    plan = BatchPlan(0, assignment, ((32, 32), (64, 64)), 3, shuffle=False, remainder="pad")
    batches = [plan.batch(step) for step in range(plan.batches_per_epoch)]
    assert [b.indices[b.valid].tolist() for b in batches] == [[0, 2, 3], [5, 6], [1, 4]]
    assert [b.valid.tolist() for b in batches] == [[True] * 3, [True, True, False], [True, True, False]]

"""Tests of the random choices: reproducible, independent of each other, and distributed as configured."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support.samples import annotation

from mrcnn_jax.config import AugmentConfig, DataConfig
from mrcnn_jax.data.augment import random_choices
from mrcnn_jax.data.augment.color_jitter import JitterFactors
from mrcnn_jax.data.augment.random_choices import Choices
from mrcnn_jax.data.sample import make_sample

BUCKET = (800, 1088)
SIZE = (480, 640)
EVERYTHING = AugmentConfig(
    scale_jitter=(0.1, 2.0), crop=0.5, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, copy_paste=0.5
)
DATA = DataConfig(vertical_flip=0.3, augment=EVERYTHING)


def choose(data: DataConfig, count: int = 1, size: Any = SIZE, bucket: Any = BUCKET) -> list[Choices]:
    """For the images 0..count - 1 of an epoch."""
    return [
        random_choices.draw_choices(data, random_choices.image_generator(0, 0, i), size, bucket) for i in range(count)
    ]


def change(data: DataConfig, **augment: Any) -> DataConfig:
    return dataclasses.replace(data, augment=dataclasses.replace(data.augment, **augment))


def numbers(*arguments: int) -> list[float]:
    return random_choices.image_generator(*arguments).random(4).tolist()


def test_random_choices_depend_on_seed_epoch_and_image() -> None:
    ids = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), 139]
    drawn = [numbers(3, 5, image_id) for image_id in ids]
    assert drawn == [numbers(3, 5, image_id) for image_id in ids]
    others = [numbers(4, 5, 139), numbers(3, 6, 139), numbers(5, 3, 139)]
    with_partners = [numbers(3, 5, a, b) for a in ids for b in ids]  # nor is a partner's chance an image's own
    everything = drawn + others + with_partners
    assert len({tuple(row) for row in everything}) == len(everything)


def test_small_ids_are_seeds_as_numpy_takes_them() -> None:
    assert numbers(3, 5, 139) == np.random.default_rng([3, 5, 139]).random(4).tolist()


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"scale_jitter": None}, {"flips", "factors", "partner"}),
        ({"scale_jitter": (0.5, 0.6)}, {"flips", "factors", "partner"}),
        ({"crop": 0.0}, {"flips", "factors", "partner"}),
        ({"crop_size": (0.1, 0.2)}, {"flips", "factors", "partner"}),
        ({"hue": 0.0, "contrast": 0.0, "brightness": 0.9}, {"window", "scaled", "flips", "partner"}),
        ({"copy_paste": 0.0}, {"window", "scaled", "flips", "factors"}),
    ],
)
def test_one_augmentation_does_not_change_what_the_others_do(fields: dict[str, Any], kept: set[str]) -> None:
    before, after = choose(DATA, 60), choose(change(DATA, **fields), 60)
    changed = {
        name
        for a, b in zip(before, after, strict=True)
        for name, old, new in zip(Choices._fields, a, b, strict=True)
        if old != new
    }
    assert changed
    assert not changed & kept


def test_flips_and_edges_do_not_change_what_the_others_do() -> None:
    data = dataclasses.replace(change(DATA, scale_jitter=None), shortest_edge_train=(640, 800))
    for fields in ({"horizontal_flip": 0.0, "vertical_flip": 0.0}, {"shortest_edge_train": (500,)}):
        for a, b in zip(choose(data, 60), choose(dataclasses.replace(data, **fields), 60), strict=True):
            assert (a.window, a.factors, a.partner) == (b.window, b.factors, b.partner)
            assert a.flips == b.flips if "shortest_edge_train" in fields else a.scaled == b.scaled


def test_colors_do_not_change_each_other() -> None:
    for name in ("brightness", "contrast", "saturation", "hue"):
        for a, b in zip(choose(DATA, 20), choose(change(DATA, **{name: 0.0}), 20), strict=True):
            assert b.factors == a.factors._replace(**{name: getattr(JitterFactors(), name)})


def test_without_augmentation_the_whole_image_is_scaled() -> None:
    data = DataConfig(horizontal_flip=0.0, shortest_edge_train=(640,))
    assert choose(data, 3) == [Choices(window=(0, 0, 640, 480), scaled=(640, 853))] * 3
    assert random_choices.deterministic_choices(DATA, SIZE, BUCKET) == Choices(
        window=(0, 0, 640, 480), scaled=(800, 1067)
    )


@pytest.mark.medium
def test_frequencies_of_choices() -> None:
    count = 4000
    drawn = choose(DATA, count)
    whole = choose(change(DATA, scale_jitter=None), count)
    shares = {
        0.5: [
            np.mean([c.flips[0] for c in drawn]),
            np.mean([c.window != (0, 0, 640, 480) for c in whole]),
            np.mean([c.partner is not None for c in drawn]),
        ],
        0.3: [np.mean([c.flips[1] for c in drawn])],
        0.15: [np.mean([c.flips == (True, True) for c in drawn])],
    }
    for probability, found in shares.items():
        np.testing.assert_allclose(found, probability, atol=4 * np.sqrt(0.25 / count))
    partners = np.array([c.partner for c in drawn if c.partner is not None])
    assert_uniform(partners, 0, 1)
    edges = [c.scaled[0] for c in choose(DataConfig(), count)]
    np.testing.assert_allclose(np.bincount(edges)[[640, 672, 704, 736, 768, 800]] / count, 1 / 6, atol=0.03)
    chosen = np.bincount(
        np.concatenate(
            [random_choices.draw_pasted_instances(random_choices.image_generator(0, 0, i), 20) for i in range(500)]
        )
    )
    np.testing.assert_allclose(chosen / 500, 0.5, atol=4 * np.sqrt(0.25 / 500))


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Within low..high, to the ends, and every tenth of it as often (4 standard deviations)."""
    assert low <= values.min() < low + 0.02 * (high - low)
    assert high >= values.max() > high - 0.02 * (high - low)
    share = np.histogram(values, 10, (low, high))[0] / len(values)
    np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.09 / len(values)))


def test_factors_are_uniform_around_1() -> None:
    factors = np.array([c.factors for c in choose(change(DATA, brightness=1.5), 4000)])
    assert_uniform(factors[:, 0], 0, 2.5)  # as torchvision: from max(0, 1 - b)
    assert_uniform(factors[:, 1], 0.7, 1.3)
    assert_uniform(factors[:, 2], 0.8, 1.2)
    assert_uniform(factors[:, 3], -0.1, 0.1)
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.07


@pytest.mark.medium
@pytest.mark.parametrize(("size", "bucket"), [((480, 640), (1024, 1024)), ((1500, 1000), (1088, 800))])
def test_large_scale_jitter_is_relative_to_what_fills_the_bucket(size: Any, bucket: Any) -> None:
    drawn = choose(change(DATA, crop=0.0), 4000, size, bucket)
    windows, scaled = np.array([c.window for c in drawn]), np.array([c.scaled for c in drawn])
    extents = windows[:, [3, 2]] - windows[:, [1, 0]]
    fill = min(bucket[0] / size[0], bucket[1] / size[1])
    scales = np.clip((scaled / extents).max(axis=1) / fill, 0.1, 2)  # known up to the rounding of the sizes
    assert_uniform(scales, 0.1, 2.0)
    smaller = scales <= 1
    assert (extents[smaller] == size).all()  # seen whole
    assert (scaled <= bucket).all()
    # Enlarged, it fills the bucket as far as it goes, up to a pixel of the original, and one of the result.
    expected = np.minimum(np.asarray(size) * (fill * scales)[:, None], bucket)
    assert (np.abs(scaled - expected) <= 1 + fill * scales[:, None]).all()
    larger = scales > 1.2
    for axis in (0, 1):  # x, then y
        room = size[1 - axis] - extents[:, 1 - axis]
        moves = larger & (room > 50)
        assert_uniform(windows[moves, axis] / room[moves], 0, 1)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= size[::-1]).all()


def test_crops_are_parts_of_the_stated_size_anywhere() -> None:
    data = change(DATA, scale_jitter=None, crop=1.0, crop_size=(0.3, 0.8))
    drawn = choose(data, 4000, (1000, 2000), BUCKET)
    x0, y0, x1, y1 = np.array([c.window for c in drawn]).T
    assert_uniform((x1 - x0) / 2000, 0.3, 0.8)
    assert_uniform((y1 - y0) / 1000, 0.3, 0.8)
    assert abs(np.corrcoef(x1 - x0, y1 - y0)[0, 1]) < 0.07
    assert_uniform(x0 / (2000 - (x1 - x0)), 0, 1)
    assert_uniform(y0 / (1000 - (y1 - y0)), 0, 1)
    # Then as if the part were the image.
    edges = {min(c.scaled) for c in drawn if c.scaled[0] < 800 and c.scaled[1] < 1088}
    assert edges == {640, 672, 704, 736, 768}


@settings(max_examples=50)
@given(
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)) | st.sampled_from([(1, 1), (30, 20_000), (20_000, 30)]),
    st.sampled_from([(800, 1088), (1344, 800), (64, 64)]),
    st.sampled_from([None, (0.1, 2.0), (0.001, 50.0)]),
    st.integers(-(2**63), 2**63 - 1),
)
def test_every_image_has_a_part_that_fits(size: Any, bucket: Any, jitter: Any, image_id: int) -> None:
    choices = random_choices.draw_choices(
        change(DATA, scale_jitter=jitter), random_choices.image_generator(0, 1, image_id), size, bucket
    )
    x0, y0, x1, y1 = choices.window
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]
    assert 1 <= choices.scaled[0] <= bucket[0]
    assert 1 <= choices.scaled[1] <= bucket[1]
    factor = random_choices.decode_reduction(choices)
    assert factor == 1 or ((x1 - x0) >= factor * choices.scaled[1] and (y1 - y0) >= factor * choices.scaled[0])
    assert all(type(value) is int for value in (*choices.window, *choices.scaled))


def test_reduction_leaves_as_many_pixels_as_are_needed() -> None:
    for (height, width), expected in {(480, 640): 1, (240, 321): 1, (240, 320): 2, (60, 80): 8, (10, 10): 8}.items():
        assert random_choices.decode_reduction(Choices(window=(0, 0, 640, 480), scaled=(height, width))) == expected
    assert random_choices.decode_reduction(Choices(window=(100, 100, 300, 260), scaled=(100, 100))) == 1
    assert random_choices.decode_reduction(Choices(window=(0, 0, 640, 480), scaled=(480, 80))) == 1


@settings(max_examples=30)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 4, 8]),
    st.tuples(st.integers(40, 70), st.integers(40, 70)),
    st.tuples(st.booleans(), st.booleans()),
)
def test_a_reduced_image_shows_the_same(
    seed: int, reduced: int, size: tuple[int, int], flips: tuple[bool, bool]
) -> None:
    """Decoded at 1 / r of a size that r need not divide: keypoints, boxes and picture are where they would be."""
    rng = np.random.default_rng(seed)
    height, width = size
    x0, y0 = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    window = (x0, y0, int(rng.integers(x0 + 16, width + 1)), int(rng.integers(y0 + 16, height + 1)))
    choices = Choices(window, (int(rng.integers(10, 60)), int(rng.integers(10, 60))), flips)
    pixels = [(x, y) for x in range(0, width, 7) for y in range(0, height, 7)]
    keypoints = [float(v) for x, y in pixels for v in (x, y, 2)]
    annotations = [annotation([0, 0, width, height], keypoints=keypoints), annotation([x0 + 2, y0 + 3, 9.5, 8.25])]

    def carried_out(reduced: int) -> Any:
        # Three levels a pixel: the mean of the r x r pixels that become one, those beyond the edge included.
        x, y = (np.arange(-(-extent // reduced)) * reduced + reduced / 2 for extent in (width, height))
        image = np.rint(3 * np.stack(np.broadcast_arrays(x, y[:, None], 0), axis=-1)).astype(np.uint8)
        sample = make_sample(
            image, annotations, {3: 1}, size, reduction=reduced, num_keypoints=len(pixels), masks=False
        )
        return random_choices.apply_choices(choices, sample, reduction=reduced, flip_map=tuple(range(len(pixels))))

    found, expected = carried_out(reduced), carried_out(1)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-9)
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-9)
    assert found.image.shape == (*choices.scaled, 3)
    assert len(found.boxes) == 2
    scale = np.array(choices.scaled[::-1]) / (np.array(window[2:]) - window[:2])
    for (x, y, visible), (true_x, true_y) in zip(found.keypoints[0], pixels, strict=True):
        # At the rim a picture repeats its last pixel.
        rim = (0.5 + reduced / 2) * scale
        if visible and rim[0] < x < choices.scaled[1] - rim[0] and rim[1] < y < choices.scaled[0] - rim[1]:
            said = bilinear(found.image, x, y) / 3
            np.testing.assert_allclose(said, [true_x + 0.5, true_y + 0.5], atol=0.35)


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Red and green at a point in continuous pixels."""
    column, row = np.clip(x - 0.5, 0, image.shape[1] - 1), np.clip(y - 0.5, 0, image.shape[0] - 1)
    i, j = min(int(row), image.shape[0] - 2), min(int(column), image.shape[1] - 2)
    part = image[i : i + 2, j : j + 2, :2].astype(float)
    rows = part[0] + (row - i) * (part[1] - part[0])
    return rows[0] + (column - j) * (rows[1] - rows[0])


def test_image_is_written_to_the_output_array() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    sample = make_sample(image, [], {}, (40, 60))
    for choices in (
        Choices((0, 0, 60, 40), (50, 50)),
        Choices((3, 5, 50, 30), (20, 60), (True, True), JitterFactors(1.1, 0.9, 1.2, 0.1)),
    ):
        canvas = np.full((64, 64, 3), 7, np.uint8)
        height, width = choices.scaled
        result = random_choices.apply_choices(choices, sample, reduction=1, out=canvas[:height, :width])
        assert np.shares_memory(result.image, canvas)
        np.testing.assert_array_equal(result.image, random_choices.apply_choices(choices, sample, reduction=1).image)
        assert (canvas[height:] == 7).all()
        assert (canvas[:, width:] == 7).all()
        odd = random_choices.apply_choices(
            choices._replace(window=(1, 1, 60, 39)), sample, reduction=2, out=canvas[:height, :width]
        )
        assert np.shares_memory(odd.image, canvas)
        assert (canvas[height:] == 7).all()
        assert (canvas[:, width:] == 7).all()

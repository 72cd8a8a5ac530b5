"""Tests of the kind "outlines": classes that differ only in their outline."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from mrcnn_jax.data.synthetic import outlines
from mrcnn_jax.data.synthetic.scene import MIN_VISIBLE, Figure

NAMES = tuple(outlines.OUTLINES)


@pytest.fixture(scope="module")
def scenes() -> list[list[Figure]]:
    return [outlines.render(np.random.default_rng([5, k]), 128)[1] for k in range(120)]


def masks(name: str, angles: int) -> np.ndarray:
    """(2 * angles, pixels) float32: a figure of radius 30 and its mirror image, each at many angles."""
    turned = [
        outlines.draw_mask(name, angle, np.array([32.0, 32.0]), 30.0, 64, mirrored=mirrored)
        for angle in np.linspace(0, 2 * np.pi, angles, endpoint=False)
        for mirrored in (False, True)
    ]
    return np.stack(turned).reshape(2 * angles, -1).astype(np.float32)


@pytest.mark.medium
def test_no_two_classes_are_equal_when_rotated_or_mirrored() -> None:
    upright = {name: masks(name, 1)[0] for name in NAMES}
    turned = {name: masks(name, 120) for name in NAMES}
    areas = {name: masks.sum(axis=1) for name, masks in turned.items()}
    for a, b in itertools.combinations(NAMES, 2):
        common = turned[b] @ upright[a]
        union = areas[b] + upright[a].sum() - common
        assert (common / union).max() < 0.95, (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_and_thinnest_are_in_one_piece(name: str) -> None:
    radius = outlines.OUTLINES[name].smallest / 2
    for angle in np.linspace(0, 2 * np.pi, 12):
        for shift in (0.0, 0.3, 0.5):
            mask = outlines.draw_mask(name, angle, np.array([32 + shift, 32.0]), radius, 64)
            assert mask.sum() > 10
            assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2  # the ground, and the figure


@pytest.mark.parametrize("name", NAMES)
def test_figures_stay_within_their_radius_and_reach_it_nearly(name: str) -> None:
    y, x = np.nonzero(outlines.draw_mask(name, 0.4, np.array([64.0, 64.0]), 50.0, 128))
    furthest = np.hypot(x + 0.5 - 64, y + 0.5 - 64).max()
    assert 0.84 * 50 < furthest <= 50


@pytest.mark.parametrize("name", NAMES)
def test_the_window_that_is_computed_cuts_nothing_off(name: str) -> None:
    whole = outlines.draw_mask(name, 0.9, np.array([50.0, 50.0]), 30.0, 100)
    cut = outlines.draw_mask(name, 0.9, np.array([10.0, 15.0]), 30.0, 60)
    assert (cut == whole[35:95, 40:100]).all()


def test_a_hoop_has_a_hole_and_thin_lines() -> None:
    hoop = outlines.draw_mask("hoop", 0.0, np.array([64.0, 64.0]), 50.0, 128)
    assert not hoop[64, 64]
    assert hoop[64].sum() == pytest.approx(2 * 6, abs=2)


def test_every_class_occurs_small_and_large(scenes: list[list[Figure]]) -> None:
    figures = [figure for scene in scenes for figure in scene]
    counts = {name: sum(figure.name == name for figure in figures) for name in NAMES}
    assert min(counts.values()) > 10
    sides = np.array([max(np.ptp(np.nonzero(figure.mask), axis=1)) + 1 for figure in figures if figure.mask.any()])
    assert (sides < 24).mean() > 0.2
    assert (sides > 50).mean() > 0.05
    assert sides.max() <= 0.6 * 128 + 1


def test_objects_stay_visible_and_own_their_pixels(scenes: list[list[Figure]]) -> None:
    for figures in scenes:
        assert np.sum([figure.mask for figure in figures], axis=0).max() == 1
        assert all(figure.mask.sum() >= MIN_VISIBLE * figure.area > 0 for figure in figures)


def test_objects_of_one_class_overlap(scenes: list[list[Figure]]) -> None:
    grown = np.ones((3, 3), np.uint8)
    across = 0
    for figures in scenes:
        for a, b in itertools.combinations(figures, 2):
            touch = (cv2.dilate(a.mask.astype(np.uint8), grown) > 0) & b.mask
            across += a.name == b.name and a.mask.sum() < a.area and bool(touch.any())
    assert across > 0.5 * len(scenes)  # one in every other image, at least

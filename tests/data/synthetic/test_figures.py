"""Tests of the figures as functions of the plane."""

from __future__ import annotations

import numpy as np
import pytest

from mrcnn_jax.data.synthetic import figures, simple


@pytest.mark.parametrize(
    ("name", "area"), [("circle", np.pi * 0.81), ("square", 2.25), ("triangle", 1.299), ("star", 1.176), ("cross", 1.8)]
)
def test_figures_have_the_area_of_their_formula(name: str, area: float) -> None:
    for angle in (0.0, 0.7):
        mask = simple._draw_mask(name, angle, np.array([100.0, 100.0]), 80.0, 200)
        assert mask.sum() / 80**2 == pytest.approx(area, rel=0.02)  # the outline passes through about 1 % of the pixels


def test_a_polygon_with_dents_has_the_area_of_the_shoelace_formula() -> None:
    corners = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.25), (0.0, 1.0))
    x = (np.arange(400) + 0.5) / 400
    assert figures.polygon(*corners)(x[None], x[:, None]).mean() == pytest.approx(0.625, abs=0.005)


def test_strokes_are_capsules() -> None:
    x = (np.arange(800) + 0.5) / 400 - 1
    bar = figures.strokes(0.1, ((-0.5, 0.0), (0.5, 0.0)))(x[None], x[:, None])
    assert 4 * bar.mean() == pytest.approx(0.2 + np.pi * 0.01, rel=0.01)
    point = figures.segment_distance(np.array([3.0]), np.array([4.0]), (0.0, 0.0), (0.0, 0.0))
    assert point.tolist() == [5.0]

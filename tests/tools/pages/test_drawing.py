"""Outlines of masks as SVG paths."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.outlines import corners, filled

from mrcnn_jax.tools.pages.drawing import svg_path, trace


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_traced_outlines_are_filled_to_the_bitmap(bitmap: np.ndarray) -> None:
    outlines = [polygon.astype(int) for polygon in trace(bitmap, 1.0)]
    np.testing.assert_array_equal(filled(outlines, bitmap.shape), bitmap)


def test_outline_of_a_disc_has_only_its_corners() -> None:
    disc = cv2.circle(np.zeros((200, 200), np.uint8), (100, 100), 80, 1, -1)
    (outline,) = (polygon.astype(int) for polygon in trace(disc, 1.0))
    turns = np.diff(np.concatenate([outline, outline[:2]]), axis=0)
    assert np.all(np.any(turns[:-1] != turns[1:], axis=1) & ((turns[:-1] * turns[1:]).sum(axis=1) == 0))
    np.testing.assert_array_equal(filled([outline], disc.shape), disc)


@given(arrays(np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=st.floats(-50, 700)))
def test_path_is_exact_to_half_a_step(polygon: np.ndarray) -> None:
    rounded = np.rint(polygon * 10)
    keep = np.concatenate([[True], np.any(np.diff(rounded, axis=0) != 0, axis=1)])
    if keep.sum() > 1:
        (written,) = corners(svg_path([polygon], 10))
        np.testing.assert_array_equal(written, rounded[keep])
        assert np.abs(written / 10 - polygon[keep]).max() <= 0.05 + 1e-9


@pytest.mark.parametrize("steps", [1, 10])
def test_polygon_smaller_than_a_step_is_visible(steps: int) -> None:
    assert svg_path([np.full((4, 2), 3.01)], steps) == f"M{3 * steps} {3 * steps}h1v1h-1z"

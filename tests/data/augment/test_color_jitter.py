"""Tests of color jitter against the formulas of torchvision, computed in floating point."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from mrcnn_jax.data.augment.color_jitter import JitterFactors, jitter

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
GRAY = IMAGE @ np.array([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale


def blend(first: np.ndarray, second: np.ndarray | float, factor: float) -> np.ndarray:
    return np.clip(factor * first + (1 - factor) * second, 0, 255)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.9, 1.4, 2.5])
def test_blends_are_torchvisions_within_rounding(factor: float) -> None:
    image = IMAGE.astype(float)
    expected = {
        "brightness": blend(image, 0, factor),
        "contrast": blend(image, GRAY.mean(), factor),
        "saturation": blend(image, GRAY[..., None], factor),
    }
    for name, values in expected.items():
        found = jitter(IMAGE, JitterFactors(**{name: factor}))
        assert found.dtype == np.uint8
        # Half a level of the result, and what the rounded gray adds; the weights of gray have three or four digits.
        assert np.abs(found - values).max() <= 0.5 + abs(1 - factor) * (0.5 + 0.06), name
        if factor:  # else all are one number, rounded
            assert abs((found - values).mean()) < 0.05


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.01, 0.1, 1 / 3, 0.5])
def test_hue_turns_as_in_the_color_circle(turn: float) -> None:
    found = jitter(IMAGE, JitterFactors(hue=turn)).reshape(-1, 3)
    for pixel, ours in zip(IMAGE.reshape(-1, 3)[:400], found[:400], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
        assert np.abs(ours - expected).max() <= 0.51


def test_a_third_of_the_circle_makes_green_of_red() -> None:
    red = np.full((2, 2, 3), (200, 20, 20), np.uint8)
    assert jitter(red, JitterFactors(hue=1 / 3))[0, 0].tolist() == [20, 200, 20]
    assert jitter(red, JitterFactors(hue=-1 / 3))[0, 0].tolist() == [20, 20, 200]


def test_neutral_factors_give_the_image_itself_and_others_a_new_one() -> None:
    assert jitter(IMAGE, JitterFactors()) is IMAGE
    before = IMAGE.copy()
    for factors in (
        JitterFactors(0.5),
        JitterFactors(contrast=0.5),
        JitterFactors(saturation=0.5),
        JitterFactors(hue=0.2),
    ):
        assert (jitter(IMAGE, factors) != IMAGE).any()
        np.testing.assert_array_equal(IMAGE, before)


def test_the_order_is_brightness_contrast_saturation_hue() -> None:
    one_by_one = IMAGE
    for factors in (
        JitterFactors(0.6),
        JitterFactors(contrast=1.8),
        JitterFactors(saturation=0.4),
        JitterFactors(hue=0.3),
    ):
        one_by_one = jitter(one_by_one, factors)
    np.testing.assert_array_equal(jitter(IMAGE, JitterFactors(0.6, 1.8, 0.4, 0.3)), one_by_one)

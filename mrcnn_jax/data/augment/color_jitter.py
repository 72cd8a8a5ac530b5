"""Colors of an image, changed as torchvision's ColorJitter does, but always in this order: brightness, contrast,
saturation, hue. Results are rounded to whole numbers, where torchvision cuts off.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Factors(NamedTuple):
    """How much; these defaults change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # part of the whole circle, -1/2..1/2


def jitter(image: np.ndarray, factors: Factors) -> np.ndarray:
    """The image (h, w, 3) uint8 RGB with other colors; itself where the factors change nothing."""
    if factors.brightness != 1:
        image = _look_up(image, np.arange(256) * factors.brightness)
    if factors.contrast != 1:
        mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
        image = _look_up(image, mean + (np.arange(256) - mean) * factors.contrast)
    if factors.saturation != 1:
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, factors.saturation, gray, 1 - factors.saturation, 0)
    if factors.hue:
        image = _turn_hue(image, factors.hue)
    return image


def _look_up(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each value v of the image becomes values[v], rounded and within 0..255."""
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """In floating point: 8 bits for a hue are steps of six levels of a color, and OpenCV's do not come back."""
    hsv: np.ndarray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * turn % 360  # what is beyond the circle OpenCV takes to be in its next round
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

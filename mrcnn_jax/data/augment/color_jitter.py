"""Color jitter, as torchvision's ColorJitter in the fixed order brightness, contrast, saturation, hue.

Results are rounded to integers, where torchvision truncates.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class JitterFactors(NamedTuple):
    """Factors of a color jitter; the defaults change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # fraction of the color circle, -1/2..1/2


def jitter(image: np.ndarray, factors: JitterFactors) -> np.ndarray:
    """Return the image (h, w, 3) uint8 RGB with changed colors, or itself if the factors change nothing."""
    if factors.brightness != 1:
        image = _apply_table(image, np.arange(256) * factors.brightness)
    if factors.contrast != 1:
        mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
        image = _apply_table(image, mean + (np.arange(256) - mean) * factors.contrast)
    if factors.saturation != 1:
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, factors.saturation, gray, 1 - factors.saturation, 0)
    if factors.hue:
        image = _shift_hue(image, factors.hue)
    return image


def _apply_table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replace each value v of the image by values[v], rounded and clipped to 0..255."""
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Shift the hue in floating point; 8-bit hues are too coarse and OpenCV's conversion does not invert exactly."""
    hsv: np.ndarray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * shift % 360  # OpenCV takes hues modulo 360
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

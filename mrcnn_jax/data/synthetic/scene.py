"""Rendering shared by all kinds of procedural datasets: background, textures, colors and occlusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

MIN_VISIBLE = 0.6  # fraction of every object that must stay visible


class Figure(NamedTuple):
    """One object of an image."""

    name: str  # of its category
    mask: np.ndarray  # (S, S) bool, the visible part
    area: int  # pixels, including the hidden part
    keypoints: np.ndarray | None = None  # (K, 3): x, y, visibility in COCO's format


def keeps_others_visible(mask: np.ndarray, others: Sequence[Figure]) -> bool:
    """Whether MIN_VISIBLE of all others is visible when `mask` (S, S) covers them."""
    return all((other.mask & ~mask).sum() >= MIN_VISIBLE * other.area for other in others)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a background image (S, S, 3) float32."""
    return texture(rng, size, _muted_color(rng), contrast=0.1)


def add_camera_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add slight blur and noise to an image: (S, S, 3) uint8."""
    image = cv2.GaussianBlur(image, (3, 3), 0.5) + 3 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, size: int, color: np.ndarray, contrast: float) -> np.ndarray:
    """Return `color` modulated by stripes, a checkerboard or smooth noise: (S, S, 3) float32, with S at least 8."""
    grid = np.arange(size, dtype=np.float32) * (2 * np.pi / rng.uniform(6, 16))
    angle = rng.uniform(0, 2 * np.pi)
    u = np.add.outer(grid * np.sin(angle), grid * np.cos(angle))
    v = np.subtract.outer(grid * np.cos(angle), grid * np.sin(angle))
    kind = rng.integers(3)
    if kind == 0:
        pattern = np.sin(u)
    elif kind == 1:
        pattern = np.sign(np.sin(u) * np.sin(v))
    else:
        coarse = rng.uniform(-1, 1, (size // 8, size // 8)).astype(np.float32)
        pattern = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return color.astype(np.float32) * (1 + contrast * pattern[:, :, None])


def fill_texture(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    color: np.ndarray,
    contrast: float,
    shade: np.ndarray | None = None,
) -> None:
    """Fill the pixels of `mask` (S, S) with a texture, multiplied by `shade` (S, S) if given."""
    if not mask.any():
        return
    top, left, height, width = bounding_box(mask)
    area = slice(top, top + height), slice(left, left + width)
    pattern = texture(rng, max(height, width, 16), color, contrast)[:height, :width]  # faster than for the whole image
    if shade is not None:
        pattern = pattern * shade[area][:, :, None]
    inside = mask[area][:, :, None]
    np.copyto(image[area], pattern, where=inside)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the bounding box of a mask with at least one pixel."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def contrasting_color(rng: np.random.Generator, *grounds: np.ndarray) -> np.ndarray:
    """Return a random color (3,) in 0..255 that contrasts with all given colors."""
    colors = rng.uniform(20, 250, (8, 3))
    distances = [np.linalg.norm(colors - background, axis=1) for background in grounds]
    return colors[np.argmax(np.min(distances, axis=0) > 80)]


def _muted_color(rng: np.random.Generator) -> np.ndarray:
    """Return a random grayish color (3,) in 0..255."""
    return rng.uniform(60, 180) + rng.uniform(-20, 20, 3)

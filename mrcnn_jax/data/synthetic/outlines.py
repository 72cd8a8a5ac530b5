"""The kind "outlines": many classes that differ only in their outline, some of them thin or with holes.

Objects are small and large, and objects of one class often overlap. Size says little about the class, color and
texture nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data.synthetic import scene
from mrcnn_jax.data.synthetic.figures import OUTLINES
from mrcnn_jax.data.synthetic.scene import Figure

_OVERLAP_PROBABILITY = 0.4  # that an object is placed over another of its class
_ATTEMPTS = 30  # at placing one object
_LINE_HALF_WIDTH = 0.06  # of thin figures, as a fraction of the radius; at least a pixel


class OutlineOptions(NamedTuple):
    """Options of `render`."""

    names: tuple[str, ...]  # of the classes
    diameters: tuple[float, float] = (0.0, 0.6)  # least and greatest, as fractions of the image side
    objects: tuple[int, int] = (4, 10)  # least and greatest number in an image


CATEGORIES: list[dict[str, Any]] = [{"id": k, "name": name} for k, name in enumerate(OUTLINES, 1)]


DEFAULT_OPTIONS = OutlineOptions(tuple(OUTLINES))


def render(
    rng: np.random.Generator, size: int, options: OutlineOptions = DEFAULT_OPTIONS
) -> tuple[np.ndarray, list[Figure]]:
    """Render an image (S, S, 3) uint8 RGB and its figures, from back to front."""
    image = scene.background(rng, size)
    figures: list[Figure] = []
    for _ in range(rng.integers(options.objects[0], options.objects[1] + 1)):
        if figures and rng.random() < _OVERLAP_PROBABILITY:
            name, mask = _place_overlapping(rng, figures[rng.integers(len(figures))], figures, options)
        else:
            name, mask = place_randomly(rng, size, figures, options)
        if mask is None:
            continue
        paint(rng, image, mask, figures)
        figures = [figure._replace(mask=figure.mask & ~mask) for figure in figures]
        figures.append(Figure(name, mask, int(mask.sum())))
    return scene.add_camera_noise(rng, image), figures


def paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, others: list[Figure]) -> None:
    """Fill `mask` with a texture that contrasts with the background and the figures that it covers."""
    covered = [mask & other.mask for other in others]
    grounds = [image[area].mean(axis=0) for area in [mask, *covered] if area.any()]
    scene.fill_texture(rng, image, mask, scene.contrasting_color(rng, *grounds), contrast=0.2)


def draw_mask(
    name: str, angle: float, center: np.ndarray, radius: float, size: int, *, mirrored: bool = False
) -> np.ndarray:
    """Return the mask (S, S) of the pixels whose center is inside a figure of this radius."""
    low = np.clip(np.floor(center - radius), 0, size).astype(int)
    high = np.clip(np.ceil(center + radius), 0, size).astype(int)
    x = (np.arange(low[0], high[0])[None, :] + 0.5 - center[0]) / radius
    y = (np.arange(low[1], high[1])[:, None] + 0.5 - center[1]) / radius
    across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = OUTLINES[name].inside(max(_LINE_HALF_WIDTH, 1 / radius))
    mask = np.zeros((size, size), bool)
    mask[low[1] : high[1], low[0] : high[0]] = inside(-across if mirrored else across, down)
    return mask


def place_randomly(
    rng: np.random.Generator, size: int, others: list[Figure], options: OutlineOptions = DEFAULT_OPTIONS
) -> tuple[str, np.ndarray | None]:
    """Return a random class and a mask that keeps the others visible; None for the mask if no attempt succeeds."""
    name = str(rng.choice(options.names))
    for _ in range(_ATTEMPTS):
        radius = float(np.exp(rng.uniform(*np.log(_radii(name, size, options)))))  # log-uniform
        center = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)  # the edge of the image can cut the figure
        mask = _draw_randomly_rotated(rng, name, center, radius, size)
        if mask.any() and scene.keeps_others_visible(mask, others):
            return name, mask
    return name, None


def _place_overlapping(
    rng: np.random.Generator, other: Figure, others: list[Figure], options: OutlineOptions
) -> tuple[str, np.ndarray | None]:
    """Return the class of `other` and a mask that overlaps it, and keeps all others visible."""
    size = len(other.mask)
    ys, xs = np.nonzero(other.mask)
    middle = np.array([xs.mean(), ys.mean()]) + 0.5
    reach = np.hypot(xs + 0.5 - middle[0], ys + 0.5 - middle[1]).max()
    for _ in range(_ATTEMPTS):
        radius = np.clip(reach * rng.uniform(0.6, 1.6), *_radii(other.name, size, options))
        away, direction = rng.uniform(0.2, 1) * (reach + radius), rng.uniform(0, 2 * np.pi)
        center = middle + away * np.array([np.cos(direction), np.sin(direction)])
        if (center < 0.8 * radius).any() or (center > size - 0.8 * radius).any():
            continue
        mask = _draw_randomly_rotated(rng, other.name, center, radius, size)
        if (mask & other.mask).any() and scene.keeps_others_visible(mask, others):
            return other.name, mask
    return other.name, None


def _draw_randomly_rotated(
    rng: np.random.Generator, name: str, center: np.ndarray, radius: float, size: int
) -> np.ndarray:
    """Return the mask of the figure, randomly rotated and mirrored, which makes no two classes equal."""
    return draw_mask(name, rng.uniform(0, 2 * np.pi), center, radius, size, mirrored=rng.random() < 0.5)


def _radii(name: str, size: int, options: OutlineOptions) -> tuple[float, float]:
    low, high = (part * size / 2 for part in options.diameters)
    return min(max(low, OUTLINES[name].smallest / 2), high), high

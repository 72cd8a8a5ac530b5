"""The kind "simple": five classes of overlapping figures. The published AP of the quickstart depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn_jax.data.synthetic import scene
from mrcnn_jax.data.synthetic.figures import InsideFunction, cross, regular_polygon, star
from mrcnn_jax.data.synthetic.scene import Figure

_CATEGORY_IDS = {"star": 44, "circle": 3, "triangle": 17, "square": 8, "cross": 90}  # with gaps, as in COCO
CATEGORIES: list[dict[str, Any]] = [{"id": category_id, "name": name} for name, category_id in _CATEGORY_IDS.items()]

_OBJECTS = (3, 8)  # least and greatest number in an image
_SIZES = (16 / 128, 64 / 128)  # least and greatest diameter, as fractions of the image side
_ATTEMPTS = 20  # at placing one object


def render(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Figure]]:
    """Render an image (S, S, 3) uint8 RGB and its figures, from back to front."""
    image = scene.background(rng, size)
    figures: list[Figure] = []
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)):
        name = str(rng.choice(sorted(_CATEGORY_IDS)))
        mask = _place(rng, size, name, figures)
        if mask is None:
            continue
        ground = image[mask].mean(axis=0)
        image[mask] = scene.texture(rng, size, scene.contrasting_color(rng, ground), contrast=0.2)[mask]
        figures = [figure._replace(mask=figure.mask & ~mask) for figure in figures]
        figures.append(Figure(name, mask, int(mask.sum())))
    return scene.add_camera_noise(rng, image), figures


def _place(rng: np.random.Generator, size: int, name: str, others: list[Figure]) -> np.ndarray | None:
    """Return the mask (S, S) of a figure that keeps the others visible; None if no attempt succeeds."""
    for _ in range(_ATTEMPTS):
        radius = size * rng.uniform(*_SIZES) / 2
        center = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)  # the edge of the image can cut the figure
        mask = _draw_mask(name, rng.uniform(0, 2 * np.pi), center, radius, size)
        if scene.keeps_others_visible(mask, others):
            return mask
    return None


def _draw_mask(name: str, angle: float, center: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Return the mask (S, S) of the pixels whose center is inside a figure of this radius."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    x, y = (grid[None, :] - center[0]) / radius, (grid[:, None] - center[1]) / radius
    return _FIGURES[name](x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))


_FIGURES: dict[str, InsideFunction] = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.75,
    "triangle": regular_polygon(3),
    "star": star(5, 0.4),
    "cross": cross(0.3, 0.9),
}

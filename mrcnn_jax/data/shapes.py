"""A procedural data set: textured, overlapping figures on textured ground, with the masks of what is visible.

It is written as a COCO JSON and PNG files and read like any other data. Colours and textures say nothing about the
class; only the outline does. Category ids have gaps and are listed out of order, as in people's own data.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from mrcnn_jax.config import ShapesConfig
from mrcnn_jax.data.errors import DataError

_FORMAT = 1  # raise it when the pictures change
_CATEGORY_IDS = {"star": 44, "circle": 3, "triangle": 17, "square": 8, "cross": 90}
_OBJECTS = (3, 8)  # in an image, both included
_SIZES = (16 / 128, 64 / 128)  # diameter, as parts of the image's side
_VISIBLE = 0.6  # part of every object that later ones must leave uncovered
_ATTEMPTS = 20  # at placing one object


class Figure(NamedTuple):
    """One object of an image."""

    name: str
    mask: np.ndarray  # (S, S) bool, what is visible of it
    area: int  # pixels it had before others covered some


def write(config: ShapesConfig, root: Path) -> None:
    """Write train.json, val.json and the folders train/ and val/ to `root`, unless the same set is already there.

    A folder appears whole or not at all. Raises DataError where `root` holds something that this did not write.
    """
    if not str(root) or root == Path():
        raise DataError("data.root is empty; name a folder for the procedural data set")
    recipe = {"format": _FORMAT, **dataclasses.asdict(config)}
    if root.exists():
        if _recipe_of(root) == recipe:
            return
        if any(root.iterdir()) and _recipe_of(root) is None:
            raise DataError(f"data.root={root} holds other files; name an empty folder for the procedural data set")
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_split(building, "train", config.train_images, config.image_size, [config.seed, 0])
        _write_split(building, "val", config.eval_images, config.image_size, [config.seed, 1])
        (building / "shapes.json").write_text(json.dumps(recipe))
        building.chmod(0o755)  # mkdtemp makes it private
        _replace(building, root, recipe)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def render(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Figure]]:
    """One image (S, S, 3) uint8 RGB and its figures, back to front."""
    image = _texture(rng, size, _muted(rng), contrast=0.1)
    figures: list[Figure] = []
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)):
        name = str(rng.choice(sorted(_CATEGORY_IDS)))
        mask = _place(rng, size, name, figures)
        if mask is None:
            continue
        ground = image[mask].mean(axis=0)
        image[mask] = _texture(rng, size, _distinct(rng, ground), contrast=0.2)[mask]
        figures = [figure._replace(mask=figure.mask & ~mask) for figure in figures]
        figures.append(Figure(name, mask, int(mask.sum())))
    image = cv2.GaussianBlur(image, (3, 3), 0.5) + 3 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), figures


def _recipe_of(root: Path) -> dict[str, Any] | None:
    """The recipe a folder was written by; None if it was not written here."""
    try:
        return json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return None


def _replace(building: Path, root: Path, recipe: dict[str, Any]) -> None:
    """Put `building` in the place of `root`, unless another process has just put the same there."""
    if root.exists() and _recipe_of(root) != recipe:
        shutil.rmtree(root)
    try:
        building.rename(root)
    except OSError:  # there is a folder that is not empty
        if _recipe_of(root) != recipe:
            raise


def _write_split(root: Path, name: str, count: int, size: int, seed: list[int]) -> None:
    """Write one folder of images and its JSON. Image ids start at 1."""
    (root / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        image, figures = render(np.random.default_rng([*seed, image_id]), size)
        file_name = f"{image_id:06d}.png"
        cv2.imwrite(str(root / name / file_name), image[:, :, ::-1])
        images.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for figure in figures:
            annotations.append(_annotation(figure, image_id, len(annotations) + 1))
    categories = [{"id": category_id, "name": figure} for figure, category_id in _CATEGORY_IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


def _annotation(figure: Figure, image_id: int, annotation_id: int) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(figure.mask, np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": _CATEGORY_IDS[figure.name],
        "bbox": mask_utils.toBbox(rle).tolist(),
        "area": float(mask_utils.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def _place(rng: np.random.Generator, size: int, name: str, others: list[Figure]) -> np.ndarray | None:
    """Mask (S, S) of a figure that leaves enough of the others visible; None if no place was found."""
    for _ in range(_ATTEMPTS):
        radius = size * rng.uniform(*_SIZES) / 2
        centre = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)  # some reach a little beyond the edge
        mask = _outline(name, rng.uniform(0, 2 * np.pi), centre, radius, size)
        if all((other.mask & ~mask).sum() >= _VISIBLE * other.area for other in others):
            return mask
    return None


def _outline(name: str, angle: float, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Mask (S, S) of the pixels whose centre lies within the figure of this radius."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    x, y = (grid[None, :] - centre[0]) / radius, (grid[:, None] - centre[1]) / radius
    return _FIGURES[name](x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))


def _within_polygon(x: np.ndarray, y: np.ndarray, corners: int, depth: float) -> np.ndarray:
    """Inside the figure that joins `corners` outer points (radius 1) and as many inner points (radius `depth`)."""
    sector = np.pi / corners
    # Every point is folded into the half sector between an outer point (angle 0) and an inner point (angle `sector`).
    angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    inner_x, inner_y = depth * np.cos(sector), depth * np.sin(sector)
    return (inner_x - 1) * py - inner_y * (px - 1) >= 0


_FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.75,
    "triangle": lambda x, y: _within_polygon(x, y, 3, 0.5),
    "star": lambda x, y: _within_polygon(x, y, 5, 0.4),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.9),
}


def _texture(rng: np.random.Generator, size: int, colour: np.ndarray, contrast: float) -> np.ndarray:
    """(S, S, 3) float32: `colour` modulated by stripes, a checkerboard or smooth noise."""
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
    return colour.astype(np.float32) * (1 + contrast * pattern[:, :, None])


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A greyish colour for the ground, (3,) in 0..255."""
    return rng.uniform(60, 180) + rng.uniform(-20, 20, 3)


def _distinct(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A colour that stands out from what it covers, (3,) in 0..255."""
    colours = rng.uniform(20, 250, (8, 3))
    return colours[np.argmax(np.linalg.norm(colours - ground, axis=1) > 80)]

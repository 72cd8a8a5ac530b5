"""A procedural data set: textured, overlapping objects on textured ground, with the masks of what is visible.

It is written as a COCO JSON and PNG files and read like any other data. `ShapesConfig.kind` says what is in the
pictures; `drawing` has a module for each kind.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from mrcnn_jax.config import ShapesConfig
from mrcnn_jax.data.synthetic import outlines, people, simple
from mrcnn_jax.data.synthetic.scene import Figure
from mrcnn_jax.errors import DataError
from mrcnn_jax.runtime import files

_FORMAT = 1  # raise it when the pictures change
_KINDS: dict[str, ModuleType] = {"simple": simple, "outlines": outlines, "people": people}


def write(config: ShapesConfig, root: Path) -> None:
    """Write train.json, val.json and the folders train/ and val/ to `root`, unless the same set is already there.

    A folder appears whole or not at all. Raises DataError where `root` holds something that this did not write.
    """
    if not str(root) or root == Path():
        raise DataError("data.root is empty; name a folder for the procedural data set")
    recipe = _recipe(config)
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.folder_lock(root.parent):  # nobody replaces it meanwhile
        there = _recipe_of(root)
        if there == recipe:
            return
        if there is None and root.exists() and any(root.iterdir()):
            raise DataError(f"data.root={root} holds other files; name an empty folder for the procedural data set")
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_split(building, config, "train", config.train_images, [config.seed, 0])
        _write_split(building, config, "val", config.eval_images, [config.seed, 1])
        (building / "shapes.json").write_text(json.dumps(recipe))
        _replace(building, root, recipe)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _recipe(config: ShapesConfig) -> dict[str, Any]:
    """What is written beside the pictures, as it is read back."""
    return json.loads(json.dumps({"format": _FORMAT, **dataclasses.asdict(config)}))


def _recipe_of(root: Path) -> dict[str, Any] | None:
    """The recipe a folder was written by; None if it was not written here."""
    try:
        recipe = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return None
    # Folders from the time when there was one kind do not name it, nor the fields of others.
    return _recipe(ShapesConfig()) | recipe if isinstance(recipe, dict) else None


def _replace(building: Path, root: Path, recipe: dict[str, Any]) -> None:
    """Put `building` in the place of `root`, unless another process has just put the same there."""
    with files.folder_lock(root.parent):
        if _recipe_of(root) != recipe:
            files.replace_folder(building, root)


def _write_split(root: Path, config: ShapesConfig, name: str, count: int, seed: list[int]) -> None:
    """Write one folder of images and its JSON. Image ids start at 1."""
    size, render = config.image_size, _renderer(config)
    categories, category_ids = _categories(config)
    (root / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        image, figures = render(np.random.default_rng([*seed, image_id]), size)
        file_name = f"{image_id:06d}.png"
        cv2.imwrite(str(root / name / file_name), image[:, :, ::-1])
        images.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for figure in figures:
            annotations.append(_annotation(figure, category_ids[figure.name], image_id, len(annotations) + 1))
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


def _categories(config: ShapesConfig) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """COCO's categories, and the id of each figure by name."""
    categories: list[dict[str, Any]] = _KINDS[config.kind].CATEGORIES
    if config.kind == "outlines" and config.outlines:
        categories = [category for category in categories if category["name"] in config.outlines]
    ids = {category["name"]: category["id"] for category in categories}
    if config.kind == "outlines" and config.one_class:
        return [{"id": 1, "name": "figure"}], dict.fromkeys(ids, 1)
    return categories, ids


def _renderer(config: ShapesConfig) -> Callable[[np.random.Generator, int], tuple[np.ndarray, list[Figure]]]:
    """What draws an image of this size. Raises DataError for an outline that is not known."""
    if config.kind != "outlines":
        return _KINDS[config.kind].render
    unknown = sorted(set(config.outlines) - set(outlines.OUTLINES))
    if unknown:
        raise DataError(f"data.shapes.outlines names {', '.join(unknown)}; there are {', '.join(outlines.OUTLINES)}")
    choice = outlines.Choice(config.outlines or outlines.ALL.names, config.diameters, config.objects)
    return functools.partial(outlines.render, choice=choice)


def _annotation(figure: Figure, category_id: int, image_id: int, annotation_id: int) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(figure.mask, np.uint8))
    annotation = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": mask_utils.toBbox(rle).tolist(),
        "area": float(mask_utils.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
    if figure.keypoints is not None:
        annotation["keypoints"] = figure.keypoints.reshape(-1).tolist()
        annotation["num_keypoints"] = int((figure.keypoints[:, 2] > 0).sum())
    return annotation

"""Procedural datasets: textured, overlapping objects on a textured background, with masks of their visible parts.

They are written as COCO JSON and PNG files and read like any other dataset. `ShapesConfig.kind` selects the module that
renders the images.
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

_FORMAT = 1  # increase it when the images change
_KINDS: dict[str, ModuleType] = {"simple": simple, "outlines": outlines, "people": people}


def write_dataset(config: ShapesConfig, root: Path) -> None:
    """Write train.json, val.json and the folders train/ and val/ to `root`, unless it has the same dataset.

    The dataset is written to a temporary folder, which is then renamed. Raises DataError if `root` has other files.
    """
    if not str(root) or root == Path():
        raise DataError("data.root is empty; set it to a folder for the procedural dataset")
    recipe = _recipe(config)
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.folder_lock(root.parent):  # another process could be replacing it
        existing = _read_recipe(root)
        if existing == recipe:
            return
        if existing is None and root.exists() and any(root.iterdir()):
            raise DataError(f"data.root={root} has other files; set it to an empty folder for the procedural dataset")
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_split(temporary, config, "train", config.train_images, [config.seed, 0])
        _write_split(temporary, config, "val", config.eval_images, [config.seed, 1])
        (temporary / "shapes.json").write_text(json.dumps(recipe))
        with files.folder_lock(root.parent):
            if _read_recipe(root) != recipe:  # another process can have written the same dataset meanwhile
                files.replace_folder(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _recipe(config: ShapesConfig) -> dict[str, Any]:
    """Return the content of shapes.json, as it is after reading it."""
    return json.loads(json.dumps({"format": _FORMAT, **dataclasses.asdict(config)}))


def _read_recipe(root: Path) -> dict[str, Any] | None:
    """Return the content of shapes.json, or None if the folder is not a procedural dataset."""
    try:
        recipe = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return None
    # Early versions wrote no `kind` and no fields of other kinds; the defaults stand for them.
    return _recipe(ShapesConfig()) | recipe if isinstance(recipe, dict) else None


def _write_split(root: Path, config: ShapesConfig, name: str, count: int, seed: list[int]) -> None:
    """Write a folder of images and its JSON; image ids start at 1."""
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
    """Return the list of COCO categories, and the category id of each figure name."""
    categories: list[dict[str, Any]] = _KINDS[config.kind].CATEGORIES
    if config.kind == "outlines" and config.outlines:
        categories = [category for category in categories if category["name"] in config.outlines]
    ids = {category["name"]: category["id"] for category in categories}
    if config.kind == "outlines" and config.one_class:
        return [{"id": 1, "name": "figure"}], dict.fromkeys(ids, 1)
    return categories, ids


def _renderer(config: ShapesConfig) -> Callable[[np.random.Generator, int], tuple[np.ndarray, list[Figure]]]:
    """Return the function that renders an image. Raises DataError for unknown outlines."""
    if config.kind != "outlines":
        return _KINDS[config.kind].render
    unknown = sorted(set(config.outlines) - set(outlines.OUTLINES))
    if unknown:
        raise DataError(
            f"data.shapes.outlines has unknown names {', '.join(unknown)}; choose from {', '.join(outlines.OUTLINES)}"
        )
    names = config.outlines or outlines.DEFAULT_OPTIONS.names
    options = outlines.OutlineOptions(names, config.diameters, config.objects)
    return functools.partial(outlines.render, options=options)


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

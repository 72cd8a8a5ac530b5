"""Prediction on image files: a picture for each with what was found drawn on it, and all results as COCO records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mrcnn_jax.evaluation.postprocess import Prediction
from mrcnn_jax.predictor import ImageError, Predictor, read_image
from mrcnn_jax.progress import track
from mrcnn_jax.visualize import draw


def predict_files(predict: Predictor, paths: Sequence[Path], output: Path, *, threshold: float = 0.5) -> list[str]:
    """Write `output/<name of the image>` for every image and `output/results.json`; return what could not be read.

    Instances that score at least `threshold` are drawn; the records hold all. A record's `image_id` is the position of
    its file in `paths`, from 1, and `file_name` the path. A file that cannot be read is skipped.
    """
    output.mkdir(parents=True, exist_ok=True)
    pictures = picture_paths(paths, output)
    failures: list[str] = []
    read: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}  # by order of reading: place in `paths`, pixels

    def readable() -> Iterator[np.ndarray[Any, Any]]:
        count = 0
        for place, path in enumerate(track(paths, len(paths), "images")):
            try:
                pixels = read_image(path)
            except ImageError as error:
                failures.append(str(error))
                continue
            read[count] = (place, pixels)
            count += 1
            yield pixels

    records: dict[int, list[dict[str, Any]]] = {}
    for order, prediction in predict.stream(readable()):
        place, pixels = read.pop(order)
        records[place] = _records(prediction, place + 1, paths[place])
        _write_picture(pictures[place], draw(pixels, prediction, threshold=threshold))
    in_order = [record for place in sorted(records) for record in records[place]]
    (output / "results.json").write_text(json.dumps(in_order))
    return failures


def picture_paths(paths: Sequence[Path], output: Path) -> list[Path]:
    """Where the picture of each file goes: its own name, as JPEG or PNG; names that are taken get a number."""
    taken: set[str] = set()
    pictures = []
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name, number = path.stem + suffix, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name.lower())
        pictures.append(output / name)
    return pictures


def _records(prediction: Prediction, image_id: int, path: Path) -> list[dict[str, Any]]:
    names = prediction.names
    return [
        {**record, "file_name": str(path), "category": names[i]}
        for i, record in enumerate(prediction.to_coco(image_id))
    ]


def _write_picture(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    if not cv2.imwrite(str(path), pixels[:, :, ::-1]):
        raise OSError(f"cannot write {path}")

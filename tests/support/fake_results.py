"""A small dataset with results of every kind, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 120, 160
NAMES = {3: "boat", 7: "kite", 9: "person", 12: "kiwi"}  # there is no kiwi in any image
POSE = {"keypoints": ["head", "hand", "foot"], "skeleton": [[1, 2], [2, 3]]}
POINTS = [10, 5, 2, 20, 20, 2, 10, 35, 1]  # of a person whose box begins at 0, 0
# (category, box, prediction: (category, box, score)). Image 0 has every kind of error.
IMAGES: list[list[tuple[Any, ...]]] = [
    [
        (3, (10, 10, 40, 40), (3, (10, 10, 40, 40), 0.95)),  # correct
        (3, (10, 10, 40, 40), (3, (12, 10, 40, 40), 0.6), "again"),  # a duplicate
        (7, (100, 10, 40, 40), (3, (100, 10, 40, 40), 0.9)),  # of another class
        (7, (10, 70, 40, 40), (7, (30, 70, 40, 40), 0.8)),  # badly localized
        (9, (100, 70, 40, 40), (7, (120, 70, 40, 40), 0.7)),  # both
        (None, None, (3, (60, 40, 15, 15), 0.65)),  # background
        (7, (70, 80, 10, 10), None),  # missed
    ],
    [(3, (20, 20, 60, 60), (3, (20, 20, 60, 60), 0.99)), (9, (90, 20, 30, 40), (9, (90, 20, 30, 40), 0.97))],
    [(7, (20, 20, 60, 60), (7, (22, 20, 60, 60), 0.75))],
    [(9, (20, 20, 30, 40), (9, (20, 20, 30, 40), 0.3))],  # a score below the threshold
    [],
]


def make(folder: Path, names: dict[int, str] = NAMES) -> tuple[Path, Path]:
    """Write images/, annotations.json and results.json to `folder`; return the paths of the two files."""
    (folder / "images").mkdir(parents=True)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    results = []
    for category_id, name in names.items():
        truth["categories"].append({"id": category_id, "name": name, **(POSE if category_id == 9 else {})})
    rng = np.random.default_rng(0)
    for i, content in enumerate(IMAGES):
        file_name = f"{i}.png"
        truth["images"].append({"id": 100 + i, "file_name": file_name, "height": HEIGHT, "width": WIDTH})
        noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / file_name), cv2.resize(noise, (WIDTH, HEIGHT)))
        for category_id, box, _, *again in content:
            if box is not None and not again:
                entry = {"id": len(truth["annotations"]) + 1, "iscrowd": 0, "area": box[2] * box[3]}
                truth["annotations"].append({**entry, **_record(100 + i, category_id, box)})
        results += list(_results(100 + i, content))
    annotations, records = folder / "annotations.json", folder / "results.json"
    annotations.write_text(json.dumps(truth))
    records.write_text(json.dumps(results))
    return annotations, records


def _results(image_id: int, content: list[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for _, _, found, *_ in content:
        if found is not None:
            yield {**_record(image_id, found[0], found[1], every=True), "score": found[2]}


def _record(image_id: int, category_id: int, box: tuple[int, ...], every: bool = False) -> dict[str, Any]:
    """A record with an ellipse in the box as mask. `every`: with keypoints for any class, as results have."""
    x, y, width, height = box
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(bitmap, (x + width // 2, y + height // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    runs = coco_mask.encode(np.asfortranarray(bitmap))
    keypoints = np.add(np.reshape(POINTS, (3, 3)), (x, y, 0)).ravel().tolist()
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
        **({"keypoints": keypoints} if every or category_id == 9 else {}),
    }

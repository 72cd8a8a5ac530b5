"""Made-up annotations, and the empty slots that they go to: what tests of the data pipeline share."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.structures import GroundTruth


def rle_of(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    """COCO RLE of a bitmap (h, w)."""
    if compressed:
        return coco_mask.encode(np.asfortranarray(mask, np.uint8))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def annotation(box: list[float], **fields: Any) -> dict[str, Any]:
    """An instance of category 3 in a COCO box x y w h; its polygon is the box unless `fields` says otherwise."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": box, "category_id": 3, "iscrowd": 0, "segmentation": [polygon], **fields}


def empty_truth(slots: int, side: int, points: int = 0) -> GroundTruth:
    """Slots of one image, with mask crops of `side` and `points` keypoints."""
    return GroundTruth(
        np.zeros((slots, 4), np.float32),
        np.zeros(slots, np.int32),
        np.zeros((slots, side, side), np.uint8),
        np.zeros((slots, 4), np.float32),
        np.zeros((slots, points, 3), np.float32),
        np.zeros(slots, bool),
    )

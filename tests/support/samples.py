"""Random annotations and empty ground truth, for the tests of the data pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.augment.geometry import crop_and_resize, full_window
from mrcnn_jax.data.mask_crops import Masks, Raster
from mrcnn_jax.data.sample import Sample
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
    """An annotation of category 3 with a box x y w h, by default with its box as polygon."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": box, "category_id": 3, "iscrowd": 0, "segmentation": [polygon], **fields}


def empty_truth(slots: int, side: int, points: int = 0) -> GroundTruth:
    """Empty ground truth of one image, with mask crops of `side` and `points` keypoints."""
    return GroundTruth(
        np.zeros((slots, 4), np.float32),
        np.zeros(slots, np.int32),
        np.zeros((slots, side, side), np.uint8),
        np.zeros((slots, 4), np.float32),
        np.zeros((slots, points, 3), np.float32),
        np.zeros(slots, bool),
    )


def full_frame(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a mask (h, w) uint8 on the whole image with pycocotools."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def star(rng: np.random.Generator, low: float, high: float) -> list[float]:
    """A star-shaped polygon around a point of the square low..high, which it may exceed, without thin tips."""
    corners = rng.integers(6, 12)
    angles = (np.arange(corners) + rng.uniform(0, 0.5, corners)) * (2 * np.pi / corners)
    radii = rng.uniform(0.6, 1, corners) * rng.uniform(2, (high - low) / 2)
    points = rng.uniform(low, high, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.ravel().tolist()


def some_masks(rng: np.random.Generator, count: int, size: tuple[int, int]) -> tuple[list[Any], np.ndarray]:
    """Polygons and RLE masks inside of the image, with their tight boxes (count, 4)."""
    segmentations: list[Any] = []
    boxes = np.zeros((0, 4))
    while len(segmentations) < count:
        polygons = [star(rng, 0, max(size)) for _ in range(rng.integers(1, 3))]
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        if points.min() < 0 or np.any(points > size[::-1]):
            continue
        box, bitmap = np.concatenate([points.min(axis=0), points.max(axis=0)]), full_frame(polygons, *size)
        if rng.random() < 0.5 and bitmap.any():
            segmentations.append(rle_of(bitmap, compressed=bool(rng.random() < 0.5)))
            box = coco_mask.toBbox(rle_of(bitmap))
            box[2:] += box[:2]
        else:
            segmentations.append(polygons)
        boxes = np.concatenate([boxes, box[None]])
    return segmentations, boxes


def some_annotations(
    rng: np.random.Generator, count: int, size: tuple[int, int], points: int = 0
) -> list[dict[str, Any]]:
    """Annotations of category 3 in an image of `size`, each with `points` labeled keypoints at random positions."""
    segmentations, boxes = some_masks(rng, count, size)
    return [
        annotation(
            [x0, y0, x1 - x0, y1 - y0],
            segmentation=segmentation,
            keypoints=[float(v) for x, y in rng.integers(0, size[::-1], (points, 2)) for v in (x, y, 2)],
        )
        for segmentation, (x0, y0, x1, y1) in zip(segmentations, boxes.tolist(), strict=True)
    ]


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize a whole sample to `size` (height, width)."""
    return crop_and_resize(sample, full_window(sample.image.shape[:2]), size)


def assert_same_mask(found: np.ndarray, expected: np.ndarray, masks: Masks, instance: int, reach: float = 0.2) -> None:
    """Compare two bitmaps (h, w) of a mask; pixels whose center is within `reach` of the outline may differ.

    pycocotools rounds corners to a fifth of a pixel (those left of the image towards 0), and points exactly on an edge
    may belong to either side. RLE masks are exact, except at centers exactly between two pixels of the bitmap.
    """
    mask = masks[instance]
    for center in np.argwhere(found != expected)[:, ::-1] + 0.5:
        if isinstance(mask, Raster):
            place = (center - mask.window[:2]) * mask.bitmap.shape[::-1] / (mask.window[2:] - mask.window[:2])
            assert np.abs(place - np.rint(place)).min() < 1e-6, f"an RLE mask is another one at {center}"
            continue
        assert min(_distance(center, polygon) for polygon in mask) < reach, f"another mask at {center}"


def _distance(point: np.ndarray, polygon: np.ndarray) -> float:
    """Return the distance of a point from the outline of a polygon (p, 2)."""
    edge = np.roll(polygon, -1, axis=0) - polygon
    part = np.clip(((point - polygon) * edge).sum(axis=1) / np.maximum((edge**2).sum(axis=1), 1e-12), 0, 1)
    return float(np.linalg.norm(polygon + part[:, None] * edge - point, axis=1).min())

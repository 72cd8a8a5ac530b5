"""One image and its annotations, from COCO's terms to the network's: decode, resize, flip, crop the masks.

Full-frame masks are made only for instances that come as RLE, one at a time; polygons are rasterised inside their box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from mrcnn_jax.structures import GroundTruth

Annotation = dict[str, Any]


def decode(content: bytes) -> np.ndarray | None:
    """Pixels (H, W, 3) uint8 BGR of an encoded file, EXIF rotation applied; None if it cannot be decoded."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def resize_into(bgr: np.ndarray, canvas: np.ndarray, size: Sequence[int]) -> None:
    """Resize (bilinear, no antialiasing) to `size` (height, width) and write it as RGB at the top left of `canvas`."""
    height, width = int(size[0]), int(size[1])
    resized = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas[:height, :width] = resized[:, :, ::-1]


def select_instances(annotations: Sequence[Annotation], slots: int) -> list[Annotation]:
    """The annotations to train on: no crowds, and of more than `slots` those with the largest boxes, in their order."""
    instances = [a for a in annotations if not a.get("iscrowd")]
    if len(instances) <= slots:
        return instances
    areas = np.array([a["bbox"][2] * a["bbox"][3] for a in instances])
    return [instances[i] for i in np.sort(np.argsort(-areas, kind="stable")[:slots])]


def ground_truth(
    annotations: Sequence[Annotation],
    class_of: Mapping[int, int],
    *,
    size: Sequence[int],
    scaled: Sequence[int],
    slots: int,
    mask_size: int,
) -> GroundTruth:
    """Padded ground truth of one image.

    size, scaled: height and width of the original and of the resized image. mask_size: M; 0 leaves the masks out.
    """
    instances = select_instances(annotations, slots)
    count = len(instances)
    boxes = np.zeros((slots, 4), np.float32)
    classes = np.zeros(slots, np.int32)
    masks = np.zeros((slots, mask_size, mask_size), np.uint8)
    if count:
        original = np.array([a["bbox"] for a in instances], np.float64)
        original[:, 2:] += original[:, :2]
        ratio = np.asarray(scaled, np.float64) / np.asarray(size)
        boxes[:count] = original * ratio[[1, 0, 1, 0]]
        classes[:count] = [class_of[a["category_id"]] for a in instances]
        if mask_size:
            masks[:count] = crop_masks([a["segmentation"] for a in instances], original, size, mask_size)
    return GroundTruth(boxes, classes, masks, boxes.copy(), np.arange(slots) < count)


def flip(image: np.ndarray, size: Sequence[int], truth: GroundTruth, *, horizontal: bool) -> None:
    """Mirror the picture inside its padded canvas, its boxes and its mask crops, in place.

    image: (H, W, 3) canvas; size: height and width of the picture in it. horizontal: left-right, else top-bottom.
    """
    height, width = int(size[0]), int(size[1])
    picture = image[:height, :width]
    picture[:] = cv2.flip(picture, 1 if horizontal else 0)
    low, high, extent = (0, 2, width) if horizontal else (1, 3, height)
    for boxes in (truth.boxes, truth.mask_windows):
        boxes[truth.valid, low], boxes[truth.valid, high] = (
            extent - boxes[truth.valid, high],
            extent - boxes[truth.valid, low],
        )
    truth.masks[:] = truth.masks[:, :, ::-1].copy() if horizontal else truth.masks[:, ::-1].copy()


def crop_masks(segmentations: Sequence[Any], boxes: np.ndarray, size: Sequence[int], side: int) -> np.ndarray:
    """Rasters (n, M, M) uint8 of the instances, each inside its own box.

    segmentations: polygons, or RLE (compressed or not) of the original image. boxes: (n, 4) in its pixels.
    """
    crops = np.zeros((len(segmentations), side, side), np.uint8)
    polygons: list[list[float]] = []
    owners: list[int] = []
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            crops[i] = _crop_rle(segmentation, boxes[i], size, side)
            continue
        origin, extent = boxes[i, :2], boxes[i, 2:] - boxes[i, :2]
        for polygon in segmentation:
            points = (np.asarray(polygon, np.float64).reshape(-1, 2) - origin) * (side / extent)
            polygons.append(points.ravel().tolist())
            owners.append(i)
    if polygons:  # one call for all polygons of the image; those of one instance are joined
        rasters = mask_utils.decode(mask_utils.frPyObjects(polygons, side, side))
        for owner, raster in zip(owners, rasters.transpose(2, 0, 1), strict=True):
            crops[owner] |= raster
    return crops


def _crop_rle(rle: dict[str, Any], box: np.ndarray, size: Sequence[int], side: int) -> np.ndarray:
    """Raster (M, M) of an RLE mask inside `box`: the mask pixel under the centre of every raster pixel."""
    if isinstance(rle["counts"], list):
        rle = mask_utils.frPyObjects(rle, *rle["size"])
    bitmap = mask_utils.decode(rle)
    centres = (np.arange(side) + 0.5) / side
    x = np.clip(box[0] + centres * (box[2] - box[0]), 0, size[1] - 1).astype(np.intp)
    y = np.clip(box[1] + centres * (box[3] - box[1]), 0, size[0] - 1).astype(np.intp)
    return bitmap[y[:, None], x]

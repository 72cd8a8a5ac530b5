"""One image and its annotations, from COCO's terms to the network's: decode, resize, flip, crop masks, keypoints.

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
Size = Sequence[int] | np.ndarray  # height, width


def decode(content: bytes) -> np.ndarray | None:
    """Pixels (h, w, 3) uint8 RGB of an encoded file, EXIF rotation applied; None if it cannot be decoded."""
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def resize_into(image: np.ndarray, canvas: np.ndarray, scaled: Size) -> None:
    """Resize (bilinear, no antialiasing) to `scaled` (height, width) and write it at the top left of `canvas`."""
    height, width = int(scaled[0]), int(scaled[1])
    # OpenCV writes through the view; it does not make an array of its own when shape and type fit.
    cv2.resize(image, (width, height), dst=canvas[:height, :width], interpolation=cv2.INTER_LINEAR)


def flip_image(image: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """The image mirrored left-right, top-bottom, both or neither."""
    if not (horizontal or vertical):
        return image
    return cv2.flip(image, -1 if horizontal and vertical else int(horizontal))


def flip_truth(
    truth: GroundTruth, scaled: Size, horizontal: bool, vertical: bool, flip_map: Sequence[int] = ()
) -> None:
    """Mirror boxes, mask crops and keypoints in place, within a picture of height and width `scaled`.

    flip_map: for each keypoint the one that takes its place in a mirror image, where a left hand is a right hand.
    """
    count = int(truth.valid.sum())  # the instances come first
    for wanted, axis, extent in ((horizontal, 0, int(scaled[1])), (vertical, 1, int(scaled[0]))):
        if not wanted:
            continue
        for boxes in (truth.boxes, truth.mask_windows):
            boxes[:count, [axis, axis + 2]] = extent - boxes[:count, [axis + 2, axis]]
        masks = truth.masks[:count]
        masks[:] = np.flip(masks, axis=2 - axis).copy()
        positions = truth.keypoints[:count, :, axis]
        positions[:] = np.where(truth.keypoints[:count, :, 2] > 0, extent - positions, 0)
    if horizontal != vertical and truth.keypoints.size:  # mirrored twice is turned by 180 degrees: left stays left
        truth.keypoints[:count] = truth.keypoints[:count, flip_map]


def select_instances(annotations: Sequence[Annotation], slots: int) -> list[Annotation]:
    """The annotations to train on: no crowds, and of more than `slots` those with the largest boxes, in their order."""
    instances = [a for a in annotations if not a.get("iscrowd")]
    if len(instances) <= slots:
        return instances
    areas = np.array([a["bbox"][2] * a["bbox"][3] for a in instances])
    return [instances[i] for i in np.sort(np.argsort(-areas, kind="stable")[:slots])]


def fill_truth(
    truth: GroundTruth, annotations: Sequence[Annotation], class_of: Mapping[int, int], *, size: Size, scaled: Size
) -> None:
    """Write the instances of one image to its empty slots (arrays of zeros, without a batch axis), in place.

    size, scaled: height and width of the original and of the resized image. Masks of side 0 are left out, and
    keypoints where `truth` has room for none.
    """
    instances = select_instances(annotations, len(truth.valid))
    if not instances:
        return
    count, side = len(instances), truth.masks.shape[-1]
    original = np.array([a["bbox"] for a in instances], np.float64)
    original[:, 2:] += original[:, :2]
    ratio = np.asarray(scaled, np.float64) / np.asarray(size)
    truth.boxes[:count] = original * ratio[[1, 0, 1, 0]]
    truth.mask_windows[:count] = truth.boxes[:count]
    truth.classes[:count] = [class_of[a["category_id"]] for a in instances]
    truth.valid[:count] = True
    if side:
        truth.masks[:count] = crop_masks([a["segmentation"] for a in instances], original, size, side)
    if points := truth.keypoints.shape[-2]:
        truth.keypoints[:count] = scale_keypoints([a.get("keypoints") for a in instances], points, size, ratio)


def scale_keypoints(keypoints: Sequence[Sequence[float] | None], points: int, size: Size, ratio: Size) -> np.ndarray:
    """COCO's keypoints as (n, K, 3) float32: x, y in continuous pixel coordinates times `ratio`, visibility.

    keypoints: of each instance x, y, visibility of each of its K = `points` keypoints in a row, or nothing. COCO gives
    the pixel that a keypoint lies on, counted from 0, so that the middle of this pixel is where it is: 1/2 is added
    (as Detectron2 does; torchvision does not, and loses one pixel in mirrored images). `Prediction.to_coco` takes it
    away again. Keypoints outside the image (height and width `size`) count as not labelled. Zeros where not labelled.
    """
    found = np.zeros((len(keypoints), points, 3))
    for row, flat in zip(found, keypoints, strict=True):
        if flat:
            row[:] = np.reshape(flat, (points, 3))
    found[..., :2] += 0.5
    inside = (found[..., :2] >= 0) & (found[..., :2] <= np.asarray(size)[::-1])
    found[~(inside.all(axis=-1) & (found[..., 2] > 0))] = 0
    found[..., :2] *= np.asarray(ratio)[::-1]
    return found.astype(np.float32)


def crop_masks(segmentations: Sequence[Any], boxes: np.ndarray, size: Size, side: int) -> np.ndarray:
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


def _crop_rle(rle: dict[str, Any], box: np.ndarray, size: Size, side: int) -> np.ndarray:
    """Raster (M, M) of an RLE mask inside `box`: the mask pixel under the centre of every raster pixel."""
    if isinstance(rle["counts"], list):
        rle = mask_utils.frPyObjects(rle, *rle["size"])
    bitmap = mask_utils.decode(rle)
    centres = (np.arange(side) + 0.5) / side
    x = np.clip(box[0] + centres * (box[2] - box[0]), 0, size[1] - 1).astype(np.intp)
    y = np.clip(box[1] + centres * (box[3] - box[1]), 0, size[0] - 1).astype(np.intp)
    return bitmap.T.take(x, axis=0).take(y, axis=1).T  # columns first: that is how the bitmap lies in memory

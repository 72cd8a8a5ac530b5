"""`Sample`, an image with its instances, its creation from COCO annotations, and its conversion to ground truth.

Coordinates are continuous pixels of the sample's image (pixel i covers [i, i + 1]). Masks stay polygons or bitmaps
through flips, crops and scales, and are rasterized once at the end, inside their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data.mask_crops import Masks, crop_masks, has_mask, read_masks, transform_masks
from mrcnn_jax.structures import GroundTruth

Annotation = dict[str, Any]
Size = Sequence[int] | np.ndarray  # height, width


class Sample(NamedTuple):
    """An image and its n instances, without crowds."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes: np.ndarray  # (n, 4) float64, x0 y0 x1 y1 inside the image
    classes: np.ndarray  # (n,) int32, 1..C
    masks: Masks | None  # None if masks are not used
    keypoints: np.ndarray  # (n, K, 3) float64: x, y, visibility; all 0 for keypoints that are not labeled


def make_sample(
    image: np.ndarray,
    annotations: Sequence[Annotation],
    class_of: Mapping[int, int],
    size: Size,
    *,
    reduction: int = 1,
    masks: bool = True,
    num_keypoints: int = 0,
) -> Sample:
    """Return the sample of a decoded image (h, w, 3) and its validated COCO annotations, without crowds.

    Boxes are clipped to the image. COCO's keypoint coordinates are pixel indices, so 1/2 is added to get the center of
    the pixel, as Detectron2 does (torchvision does not, which shifts keypoints by a pixel in mirrored images);
    `Prediction.to_coco` subtracts it. Keypoints outside the image become not labeled.

    Args:
      image: the image, decoded at 1 / `reduction` of its original size, rounded up.
      annotations: its annotations.
      class_of: class index 1..C by category id.
      size: height and width of the original image.
      reduction: see `image`.
      masks: whether masks are needed.
      num_keypoints: K, or 0 if keypoints are not needed.
    """
    instances = [a for a in annotations if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in instances], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, np.tile(np.asarray(size)[::-1], 2))
    sample_masks = read_masks([a.get("segmentation") for a in instances], boxes, int(size[0])) if masks else None
    keypoints = _read_keypoints([a.get("keypoints") for a in instances], num_keypoints, size)
    keypoints[..., :2] /= reduction
    return Sample(
        image=image,
        boxes=boxes / reduction,
        classes=np.array([class_of[a["category_id"]] for a in instances], np.int32),
        masks=transform_masks(sample_masks, 1 / reduction) if sample_masks and reduction > 1 else sample_masks,
        keypoints=keypoints,
    )


def select_instances(sample: Sample, keep: np.ndarray) -> Sample:
    """Return the sample with the instances `keep`, indices (k,) in increasing order."""
    keep = np.asarray(keep, np.int64)
    masks = sample.masks and [sample.masks[i] for i in keep]
    return Sample(sample.image, sample.boxes[keep], sample.classes[keep], masks, sample.keypoints[keep])


def write_ground_truth(sample: Sample, truth: GroundTruth) -> None:
    """Write the instances of a sample to the ground truth of one image: arrays of zeros without a batch axis.

    If there are more instances than slots, those with the largest boxes are used, in their order. Masks and keypoints
    are omitted if `truth` has none (size 0). The mask window of an instance without a mask stays 0.
    """
    slots = len(truth.valid)
    if len(sample.boxes) > slots:
        extents = sample.boxes[:, 2:] - sample.boxes[:, :2]
        sample = select_instances(sample, np.sort(np.argsort(-extents.prod(axis=1), kind="stable")[:slots]))
    count = len(sample.boxes)
    if not count:
        return
    truth.boxes[:count] = truth.mask_windows[:count] = sample.boxes
    truth.classes[:count] = sample.classes
    truth.valid[:count] = True
    if truth.keypoints.size:
        truth.keypoints[:count] = sample.keypoints
    if truth.masks.size:
        assert sample.masks is not None, "the ground truth has masks"
        truth.masks[:count] = crop_masks(sample.masks, sample.boxes, truth.masks.shape[-1])
        truth.mask_windows[:count][~has_mask(sample.masks)] = 0


def _read_keypoints(keypoints: Sequence[Sequence[float] | None], count: int, size: Size) -> np.ndarray:
    """Return keypoints (n, K, 3) float64 from COCO's flat lists of x, y, visibility; K is `count`."""
    result = np.zeros((len(keypoints), count, 3))
    if not count:
        return result
    for row, flat in zip(result, keypoints, strict=True):
        if flat:
            row[:] = np.reshape(flat, (count, 3))
    result[..., :2] += 0.5
    inside = (result[..., :2] >= 0) & (result[..., :2] <= np.asarray(size)[::-1])
    result[~(inside.all(axis=-1) & (result[..., 2] > 0))] = 0
    result[..., 2] = np.minimum(result[..., 2], 2)  # COCO has 0, 1 and 2, but other numbers can occur
    return result

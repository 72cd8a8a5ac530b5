"""One image with its instances, as the augmentations see it, and how it becomes ground truth of a batch.

Coordinates are continuous pixels of the sample's own image (pixel i covers [i, i + 1]). Masks stay what they came as,
corners of polygons or a bitmap of a part of the picture, through any flip, crop and scale: they are rasterized once,
at the end, inside their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data.mask_crops import Masks, crop_masks, move_masks, read_masks, select_masks
from mrcnn_jax.structures import GroundTruth

Annotation = dict[str, Any]
Size = Sequence[int] | np.ndarray  # height, width


class Sample(NamedTuple):
    """An image and its n instances (no crowds)."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes: np.ndarray  # (n, 4) float64, x0 y0 x1 y1 inside the image
    classes: np.ndarray  # (n,) int32, 1..C
    masks: Masks | None  # None: of boxes only
    keypoints: np.ndarray  # (n, K, 3) float64: x, y, visibility; zeros where it is 0


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
    """The sample of a decoded image (h, w, 3) and its checked COCO annotations; crowds are left out.

    size: height and width of the original; `image` may have been decoded at 1 / `reduction` of it, rounded up. Boxes
    are clipped to the picture. COCO gives the pixel that a keypoint lies on, counted from 0, so that the middle of
    this pixel is where it is: 1/2 is added (as Detectron2 does; torchvision does not, and loses one pixel in mirrored
    images), and `Prediction.to_coco` takes it away again. Keypoints outside the image count as not labeled.
    """
    instances = [a for a in annotations if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in instances], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, np.tile(np.asarray(size)[::-1], 2))
    outlines = read_masks([a.get("segmentation") for a in instances], boxes, int(size[0])) if masks else None
    keypoints = _read_keypoints([a.get("keypoints") for a in instances], num_keypoints, size)
    keypoints[..., :2] /= reduction
    return Sample(
        image=image,
        boxes=boxes / reduction,
        classes=np.array([class_of[a["category_id"]] for a in instances], np.int32),
        masks=outlines and move_masks(outlines, 1 / reduction),
        keypoints=keypoints,
    )


def select(sample: Sample, keep: np.ndarray) -> Sample:
    """The instances `keep`, indices (k,) in increasing order; the image stays."""
    keep = np.asarray(keep, np.int64)
    masks = sample.masks and select_masks(sample.masks, keep, len(sample.boxes))
    return Sample(sample.image, sample.boxes[keep], sample.classes[keep], masks, sample.keypoints[keep])


def write(sample: Sample, truth: GroundTruth) -> None:
    """Fill the empty slots of one image (arrays of zeros, without a batch axis), in place.

    Of more instances than slots those with the largest boxes are kept, in their order; of equal ones the first.
    Masks are left out where `truth` has room for none (side 0), and keypoints likewise. The window of an instance
    without a mask stays empty.
    """
    slots = len(truth.valid)
    if len(sample.boxes) > slots:
        extents = sample.boxes[:, 2:] - sample.boxes[:, :2]
        sample = select(sample, np.sort(np.argsort(-extents.prod(axis=1), kind="stable")[:slots]))
    count = len(sample.boxes)
    if not count:
        return
    truth.boxes[:count] = truth.mask_windows[:count] = sample.boxes
    truth.classes[:count] = sample.classes
    truth.valid[:count] = True
    if truth.keypoints.size:
        truth.keypoints[:count] = sample.keypoints
    if truth.masks.size:
        assert sample.masks is not None, "a data set without masks has no room for them"
        truth.masks[:count] = crop_masks(sample.masks, sample.boxes, truth.masks.shape[-1])
        truth.mask_windows[:count][~sample.masks.present(count)] = 0


def _read_keypoints(keypoints: Sequence[Sequence[float] | None], count: int, size: Size) -> np.ndarray:
    """(n, K, 3) float64 from x, y, visibility of each of the K = `count` keypoints in a row, or nothing."""
    found = np.zeros((len(keypoints), count, 3))
    if not count:
        return found
    for row, flat in zip(found, keypoints, strict=True):
        if flat:
            row[:] = np.reshape(flat, (count, 3))
    found[..., :2] += 0.5
    inside = (found[..., :2] >= 0) & (found[..., :2] <= np.asarray(size)[::-1])
    found[~(inside.all(axis=-1) & (found[..., 2] > 0))] = 0
    found[..., 2] = np.minimum(found[..., 2], 2)  # the largest of COCO's; any number may stand there
    return found

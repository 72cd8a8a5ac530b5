"""Copy-paste (Ghiasi et al. 2021): instances of one picture laid over another, which they hide where they lie.

Without the paper's optional blurring of outlines, which makes no difference there.
"""

from __future__ import annotations

import cv2
import numpy as np

from mrcnn_jax.data.augment.geometry import crop
from mrcnn_jax.data.mask_crops import (
    Masks,
    Raster,
    bitmaps,
    join_masks,
    pixel_windows,
    replace_masks,
    select_masks,
    visible_boxes,
)
from mrcnn_jax.data.sample import Sample, select


def paste(sample: Sample, other: Sample, chosen: np.ndarray) -> Sample:
    """`sample` with the instances `chosen` (k,) of `other` laid over it, top left on top left, cut at its edges.

    What they hide of an instance is taken from its mask to the pixel. Its box becomes that of what is left, and without
    a pixel left the instance is gone. A hidden keypoint stays labeled, as not visible (1), COCO's own meaning. Pasted
    instances come last; those without a pixel are not pasted. `sample` stays as it is. Raises ValueError unless both
    have masks.
    """
    if sample.masks is None or other.masks is None:
        raise ValueError("instances without masks cannot be pasted")
    height, width = np.minimum(sample.image.shape[:2], other.image.shape[:2])
    other = crop(select(other, chosen), (0, 0, width, height))
    assert other.masks is not None, "as before"
    cover, pasted = np.zeros(sample.image.shape[:2], np.uint8), []
    windows = pixel_windows(other.boxes)
    for i, ((x0, y0, x1, y1), bitmap) in enumerate(zip(windows, bitmaps(other.masks, windows), strict=True)):
        cover[y0:y1, x0:x1] |= bitmap
        if bitmap.any():
            pasted.append(i)
    if not pasted:
        return sample
    image = sample.image.copy()
    cv2.copyTo(other.image, cover[:height, :width], image[:height, :width])
    return _join(_hide(sample, sample.masks, cover), select(other, np.array(pasted)))._replace(image=image)


def _hide(sample: Sample, masks: Masks, cover: np.ndarray) -> Sample:
    """The instances of `sample`, whose masks are `masks`, without what lies under `cover` (h, w) uint8, 0 or 1."""
    windows = pixel_windows(sample.boxes)
    below = np.array([cover[y0:y1, x0:x1].any() for x0, y0, x1, y1 in windows], bool)
    touched = np.flatnonzero(below)
    cut, gone = {}, []
    outlines = bitmaps(select_masks(masks, touched, len(windows)), windows[touched])
    for i, outline in zip(touched.tolist(), outlines, strict=True):
        x0, y0, x1, y1 = windows[i]
        hidden = cover[y0:y1, x0:x1]
        left = outline & (1 - hidden)
        # Smaller than a pixel, an instance may have none to lose: it is hidden with the pixels that its box touches.
        if not left.any() and (outline.any() or hidden.all()):
            gone.append(i)
        elif np.any(left != outline):
            cut[i] = Raster(i, left, windows[i].astype(np.float64))
    boxes, which = sample.boxes.copy(), np.array(list(cut), np.int64)
    masks = replace_masks(masks, cut)
    boxes[which] = visible_boxes(select_masks(masks, which, len(boxes)), boxes[which])
    keypoints = sample.keypoints.copy()
    keypoints[_lie_under(keypoints, cover), 2] = 1
    keep = np.setdiff1d(np.arange(len(boxes)), gone)
    return select(sample._replace(boxes=boxes, masks=masks, keypoints=keypoints), keep)


def _lie_under(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Which labeled ones of the keypoints (n, K, 3) lie on a pixel of `cover`, (n, K)."""
    height, width = cover.shape
    x = np.minimum(keypoints[..., 0].astype(int), width - 1)  # the right and lower edge belong to the last pixel
    y = np.minimum(keypoints[..., 1].astype(int), height - 1)
    return (keypoints[..., 2] > 0) & (cover[y, x] > 0)


def _join(first: Sample, second: Sample) -> Sample:
    """The image of `first` with the instances of both, those of `second` behind."""
    assert first.masks is not None, "pasting needs masks"
    assert second.masks is not None, "pasting needs masks"
    return Sample(
        image=first.image,
        boxes=np.concatenate([first.boxes, second.boxes]),
        classes=np.concatenate([first.classes, second.classes]),
        masks=join_masks(first.masks, second.masks, len(first.boxes)),
        keypoints=np.concatenate([first.keypoints, second.keypoints]),
    )

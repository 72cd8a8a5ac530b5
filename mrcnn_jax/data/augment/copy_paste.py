"""Copy-paste augmentation (Ghiasi et al. 2021): instances of one image are pasted onto another.

Without the paper's optional blending of edges, which made no difference in its experiments.
"""

from __future__ import annotations

import cv2
import numpy as np

from mrcnn_jax.data.augment.geometry import crop
from mrcnn_jax.data.mask_crops import Masks, Raster, pixel_windows, rasterize_masks, visible_boxes
from mrcnn_jax.data.sample import Sample, select_instances


def paste(sample: Sample, other: Sample, indices: np.ndarray) -> Sample:
    """Return `sample` with the instances `indices` (k,) of `other` pasted onto it, aligned at the top left.

    Pasted instances are cropped to the image, and follow those of `sample`; instances without a pixel are not pasted.
    Hidden pixels are removed from the masks of `sample`, whose boxes are updated; an instance without a visible pixel
    is removed. Hidden keypoints stay labeled with visibility 1. The arguments do not change.

    Raises ValueError unless both samples have masks.
    """
    if sample.masks is None or other.masks is None:
        raise ValueError("copy-paste needs samples with masks")
    height, width = np.minimum(sample.image.shape[:2], other.image.shape[:2])
    other = crop(select_instances(other, indices), (0, 0, width, height))
    assert other.masks is not None, "cropping keeps the masks"
    cover, pasted = np.zeros(sample.image.shape[:2], np.uint8), []
    windows = pixel_windows(other.boxes)
    for i, ((x0, y0, x1, y1), bitmap) in enumerate(zip(windows, rasterize_masks(other.masks, windows), strict=True)):
        cover[y0:y1, x0:x1] |= bitmap
        if bitmap.any():
            pasted.append(i)
    if not pasted:
        return sample
    image = sample.image.copy()
    cv2.copyTo(other.image, cover[:height, :width], image[:height, :width])
    behind, front = _remove_hidden(sample, sample.masks, cover), select_instances(other, np.array(pasted))
    return Sample(
        image=image,
        boxes=np.concatenate([behind.boxes, front.boxes]),
        classes=np.concatenate([behind.classes, front.classes]),
        masks=(behind.masks or []) + (front.masks or []),
        keypoints=np.concatenate([behind.keypoints, front.keypoints]),
    )


def _remove_hidden(sample: Sample, masks: Masks, cover: np.ndarray) -> Sample:
    """Return `sample`, which has these masks, without what is under `cover` (h, w) uint8, 0 or 1."""
    windows = pixel_windows(sample.boxes)
    touched = np.flatnonzero(np.array([cover[y0:y1, x0:x1].any() for x0, y0, x1, y1 in windows], bool))
    boxes, keypoints, masks, removed = sample.boxes.copy(), sample.keypoints.copy(), masks.copy(), []
    bitmaps = rasterize_masks([masks[i] for i in touched], windows[touched])
    for i, bitmap in zip(touched.tolist(), bitmaps, strict=True):
        x0, y0, x1, y1 = windows[i]
        hidden = cover[y0:y1, x0:x1]
        visible = bitmap & (1 - hidden)
        # An instance smaller than a pixel can have an empty bitmap; it is hidden if its whole window is.
        if not visible.any() and (bitmap.any() or hidden.all()):
            removed.append(i)
        elif np.any(visible != bitmap):
            masks[i] = Raster(visible, windows[i].astype(np.float64))
            boxes[i] = visible_boxes([masks[i]], boxes[[i]])[0]
    keypoints[_are_covered(keypoints, cover), 2] = 1
    keep = np.setdiff1d(np.arange(len(boxes)), removed)
    return select_instances(sample._replace(boxes=boxes, masks=masks, keypoints=keypoints), keep)


def _are_covered(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return which labeled keypoints (n, K, 3) are on a pixel of `cover`, (n, K) bool."""
    height, width = cover.shape
    x = np.minimum(keypoints[..., 0].astype(int), width - 1)  # the right and lower edges belong to the last pixel
    y = np.minimum(keypoints[..., 1].astype(int), height - 1)
    return (keypoints[..., 2] > 0) & (cover[y, x] > 0)

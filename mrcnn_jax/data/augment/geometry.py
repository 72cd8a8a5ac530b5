"""Flips, crops and resizes of a sample: image, boxes, masks and keypoints.

No function changes its arguments; the result can share unchanged arrays with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mrcnn_jax.data.mask_crops import has_mask, transform_masks, visible_boxes
from mrcnn_jax.data.sample import Sample, Size, select_instances

_MIN_SIDE = 1.0  # pixels of the result; cropped instances of less width or height are removed


def flip(sample: Sample, horizontal: bool, vertical: bool, flip_map: Sequence[int] = ()) -> Sample:
    """Mirror a sample left-right, top-bottom, both or neither.

    flip_map: index of the keypoint that replaces each keypoint in a mirror image, where a left hand is a right hand. It
    is not applied if both axes are mirrored, which is a rotation by 180 degrees.

    Raises ValueError if the flip map does not have one index for each keypoint.
    """
    if not (horizontal or vertical):
        return sample
    if len(flip_map) != sample.keypoints.shape[1]:
        raise ValueError(f"flip_map has {len(flip_map)} indices for {sample.keypoints.shape[1]} keypoints")
    extent = np.array(sample.image.shape[1::-1], np.float64)
    mirrored = np.array([horizontal, vertical])
    scale, offset = np.where(mirrored, -1.0, 1.0), np.where(mirrored, extent, 0.0)
    corners = sample.boxes.reshape(-1, 2, 2) * scale + offset
    keypoints = _transform_keypoints(sample.keypoints, scale, offset)
    if horizontal != vertical and len(flip_map):
        keypoints = keypoints[:, list(flip_map)]
    return sample._replace(
        image=cv2.flip(sample.image, -1 if horizontal and vertical else int(horizontal)),
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        masks=sample.masks and transform_masks(sample.masks, scale, offset),
        keypoints=keypoints,
    )


def crop_and_resize(sample: Sample, window: np.ndarray, size: Sequence[int], out: np.ndarray | None = None) -> Sample:
    """Crop a sample to `window` (x0, y0, x1, y1) and resize it to `size` (height, width).

    The window can have fractional coordinates. The box of an instance that it cuts becomes the box of the visible part
    of the mask, or the clipped box if there is no mask; the instance is removed if that is less than a pixel wide or
    high. Keypoints outside the window become not labeled. The image is written to `out` (height, width, 3) uint8 if
    given.
    """
    height, width = int(size[0]), int(size[1])
    window = np.asarray(window, np.float64)
    scale = (width, height) / (window[2:] - window[:2])
    offset = -window[:2] * scale
    corners = (sample.boxes.reshape(-1, 2, 2) * scale + offset).reshape(-1, 4)
    clipped = np.clip(corners, 0, (width, height, width, height))
    keypoints = _transform_keypoints(sample.keypoints, scale, offset)
    inside = np.all((keypoints[..., :2] >= 0) & (keypoints[..., :2] <= (width, height)), axis=-1)
    moved = sample._replace(
        image=resample(sample.image, window, (height, width), out),
        boxes=clipped,
        masks=sample.masks and transform_masks(sample.masks, scale, offset),
        keypoints=np.where(inside[..., None], keypoints, 0.0),
    )
    # The tolerance ignores rounding errors of boxes that end at the edge of the image.
    return _update_cut_instances(moved, np.abs(clipped - corners).max(axis=1, initial=0) > 1e-6)


def resample(image: np.ndarray, window: np.ndarray, size: Size, out: np.ndarray | None = None) -> np.ndarray:
    """Resample `window` (x0, y0, x1, y1) of an image to `size` (height, width), into `out` if given.

    Bilinear without antialiasing; the edge of the image is repeated outside of it.
    """
    height, width = int(size[0]), int(size[1])
    x0, y0, x1, y1 = window
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if np.all(window == np.floor(window)) and min(x0, y0) >= 0 and x1 <= image.shape[1] and y1 <= image.shape[0]:
        part = image[int(y0) : int(y1), int(x0) : int(x1)]
        # OpenCV writes into `dst`, even if it is a view, when shape and type match.
        cv2.resize(part, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return out
    # Maps pixel centers of the result to the image; OpenCV's coordinates are 0 at the center of the first pixel.
    step_x, step_y = (x1 - x0) / width, (y1 - y0) / height
    matrix = np.array([[step_x, 0, x0 + step_x / 2 - 0.5], [0, step_y, y0 + step_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(image, matrix, (width, height), dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out


def crop(sample: Sample, window: Sequence[int]) -> Sample:
    """Crop a sample to `window` (x0, y0, x1, y1) in whole pixels."""
    x0, y0, x1, y1 = window
    return crop_and_resize(sample, np.array(window), (y1 - y0, x1 - x0))


def full_window(size: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the window (x0, y0, x1, y1) of a whole image of `size` (height, width)."""
    return np.array([0, 0, size[1], size[0]])


def _update_cut_instances(sample: Sample, cut: np.ndarray) -> Sample:
    """Set the boxes of instances that were `cut` (n,) to their visible part, and remove those that are too small."""
    if not cut.any():
        return sample
    boxes = sample.boxes.copy()
    if sample.masks is not None:
        indices = np.flatnonzero(cut & has_mask(sample.masks))
        boxes[indices] = visible_boxes([sample.masks[i] for i in indices], boxes[indices])
    removed = cut & np.any(boxes[:, 2:] - boxes[:, :2] < _MIN_SIDE, axis=1)
    return select_instances(sample._replace(boxes=boxes), np.flatnonzero(~removed))


def _transform_keypoints(keypoints: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return positions * scale + offset; keypoints that are not labeled stay 0."""
    transformed = keypoints.copy()
    transformed[..., :2] = np.where(keypoints[..., 2:] > 0, keypoints[..., :2] * scale + offset, 0.0)
    return transformed

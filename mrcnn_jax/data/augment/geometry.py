"""Flips, crops and scales of a sample: image, boxes, masks and keypoints move together, exactly.

No function changes its argument; arrays that stay as they are may be shared with the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mrcnn_jax.data.mask_crops import move_masks, select_masks, visible_boxes
from mrcnn_jax.data.sample import Sample, Size, select

_SMALLEST = 1.0  # pixels of the result: what a crop leaves of an instance is kept from this width and height on


def flip(sample: Sample, horizontal: bool, vertical: bool, flip_map: Sequence[int] = ()) -> Sample:
    """The mirror image: left-right, top-bottom, both or neither.

    flip_map: for each keypoint the one that takes its place in a mirror image, where a left hand is a right hand.
    Mirrored twice is turned by 180 degrees: left stays left. Raises ValueError where it is not one for each keypoint.
    """
    if not (horizontal or vertical):
        return sample
    if len(flip_map) != sample.keypoints.shape[1]:
        raise ValueError(f"a flip map of {len(flip_map)} for {sample.keypoints.shape[1]} keypoints")
    extent = np.array(sample.image.shape[1::-1], np.float64)
    mirrored = np.array([horizontal, vertical])
    scale, offset = np.where(mirrored, -1.0, 1.0), np.where(mirrored, extent, 0.0)
    corners = sample.boxes.reshape(-1, 2, 2) * scale + offset
    keypoints = _move_keypoints(sample.keypoints, scale, offset)
    if horizontal != vertical and len(flip_map):
        keypoints = keypoints[:, list(flip_map)]
    return Sample(
        image=cv2.flip(sample.image, -1 if horizontal and vertical else int(horizontal)),
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        classes=sample.classes,
        masks=sample.masks and move_masks(sample.masks, scale, offset),
        keypoints=keypoints,
    )


def view(sample: Sample, window: np.ndarray, size: Sequence[int], out: np.ndarray | None = None) -> Sample:
    """The part `window` (x0, y0, x1, y1) of the picture, scaled to `size` (height, width): a crop, a resize, or both.

    The window may begin and end inside pixels. Instances that it cuts get the box of what is seen of them (of the
    mask, to a pixel, where they have one), or are left out when that is less than a pixel wide or high; keypoints
    outside it are not labeled any more. The image is written to `out` (height, width, 3) uint8 when it is given.
    """
    height, width = int(size[0]), int(size[1])
    window = np.asarray(window, np.float64)
    scale = (width, height) / (window[2:] - window[:2])
    offset = -window[:2] * scale
    corners = (sample.boxes.reshape(-1, 2, 2) * scale + offset).reshape(-1, 4)
    clipped = np.clip(corners, 0, (width, height, width, height))
    keypoints = _move_keypoints(sample.keypoints, scale, offset)
    inside = np.all((keypoints[..., :2] >= 0) & (keypoints[..., :2] <= (width, height)), axis=-1)
    moved = Sample(
        image=resample(sample.image, window, (height, width), out),
        boxes=clipped,
        classes=sample.classes,
        masks=sample.masks and move_masks(sample.masks, scale, offset),
        keypoints=np.where(inside[..., None], keypoints, 0.0),
    )
    # Rounding is no cut: a box that ends with the picture does not become smaller by it.
    return _trim(moved, np.abs(clipped - corners).max(axis=1, initial=0) > 1e-6)


def resample(image: np.ndarray, window: np.ndarray, size: Size, out: np.ndarray | None = None) -> np.ndarray:
    """The part `window` (x0, y0, x1, y1) of an image at `size` (height, width), in `out` if given.

    Bilinear, without antialiasing; pixels beyond the image repeat its edge.
    """
    height, width = int(size[0]), int(size[1])
    x0, y0, x1, y1 = window
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if np.all(window == np.floor(window)) and min(x0, y0) >= 0 and x1 <= image.shape[1] and y1 <= image.shape[0]:
        part = image[int(y0) : int(y1), int(x0) : int(x1)]
        # OpenCV writes through the view; it does not make an array of its own when shape and type fit.
        cv2.resize(part, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return out
    # From the center of a pixel of the result to the image, where OpenCV counts from the center of the first pixel.
    step_x, step_y = (x1 - x0) / width, (y1 - y0) / height
    matrix = np.array([[step_x, 0, x0 + step_x / 2 - 0.5], [0, step_y, y0 + step_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(image, matrix, (width, height), dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out


def crop(sample: Sample, window: Sequence[int]) -> Sample:
    """The part `window` (x0, y0, x1, y1), in whole pixels, at the same scale."""
    x0, y0, x1, y1 = window
    return view(sample, np.array(window), (y1 - y0, x1 - x0))


def resize(sample: Sample, size: Sequence[int]) -> Sample:
    """The whole picture at another `size` (height, width)."""
    return view(sample, whole(sample.image.shape[:2]), size)


def whole(size: Sequence[int] | np.ndarray) -> np.ndarray:
    """The window (x0, y0, x1, y1) that is all of a picture of `size` (height, width)."""
    return np.array([0, 0, size[1], size[0]])


def _trim(sample: Sample, cut: np.ndarray) -> Sample:
    """Give the instances that were `cut` (n,) the boxes of what is seen of them, and leave out those gone."""
    if not cut.any():
        return sample
    boxes = sample.boxes.copy()
    if sample.masks is not None:
        which = np.flatnonzero(cut & sample.masks.present(len(boxes)))
        boxes[which] = visible_boxes(select_masks(sample.masks, which, len(boxes)), boxes[which])
    gone = cut & np.any(boxes[:, 2:] - boxes[:, :2] < _SMALLEST, axis=1)
    return select(sample._replace(boxes=boxes), np.flatnonzero(~gone))


def _move_keypoints(keypoints: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Positions times `scale` plus `offset`; zeros stay where a keypoint is not labeled."""
    moved = keypoints.copy()
    moved[..., :2] = np.where(keypoints[..., 2:] > 0, keypoints[..., :2] * scale + offset, 0.0)
    return moved

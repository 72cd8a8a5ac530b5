"""Color indices of instances, kept from one image to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.inference.postprocess import Prediction

_MIN_IOU = 0.3  # of boxes in consecutive images, to be the same instance


class ColorIndices:
    """Assigns color indices to the instances of consecutive images: video frames, or ground truth and prediction.

    An instance takes the index of the box of its class with the largest overlap in the previous image; instances with
    better scores choose first. A new instance takes the smallest index used in neither image. This is not a tracker.
    """

    def __init__(self) -> None:
        self._boxes = np.zeros((0, 4), np.float32)
        self._labels = np.zeros(0, np.int32)
        self._indices: list[int] = []

    def assign(self, prediction: Prediction) -> list[int]:
        """Return an index for each instance of the next image."""
        overlaps = _iou(prediction.boxes, self._boxes) * (prediction.labels[:, None] == self._labels)
        indices: list[int] = []
        for row in overlaps:
            previous = int(row.argmax()) if row.size else -1
            if previous >= 0 and row[previous] >= _MIN_IOU:
                indices.append(self._indices[previous])
                overlaps[:, previous] = 0
            else:
                indices.append(-1)
        used = {*indices, *self._indices}
        for i in [i for i, index in enumerate(indices) if index < 0]:
            indices[i] = next(index for index in range(len(used) + 1) if index not in used)
            used.add(indices[i])
        self._boxes, self._labels, self._indices = prediction.boxes, prediction.labels, indices
        return indices


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return IoU (n, m) of boxes (n, 4) and (m, 4) with positive areas."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return np.asarray(intersection / (areas[0][:, None] + areas[1][None] - intersection))

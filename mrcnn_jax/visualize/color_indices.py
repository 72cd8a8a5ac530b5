"""Colors that stay with their instances from picture to picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.inference.postprocess import Prediction

_SAME = 0.3  # IoU of boxes in consecutive pictures from which they are one instance


class ColorIndices:
    """Numbers of colors for the instances of one picture after the other: frames of a film, or truth and prediction.

    An instance takes the number of the box of its class in the picture before that it overlaps most, the better score
    first; a new one takes the least number that neither picture uses. This is for the eye; it is no tracker.
    """

    def __init__(self) -> None:
        self._boxes = np.zeros((0, 4), np.float32)
        self._labels = np.zeros(0, np.int32)
        self._numbers: list[int] = []

    def of(self, prediction: Prediction) -> list[int]:
        overlaps = _iou(prediction.boxes, self._boxes) * (prediction.labels[:, None] == self._labels)
        numbers: list[int] = []
        for row in overlaps:
            before = int(row.argmax()) if row.size else -1
            if before >= 0 and row[before] >= _SAME:
                numbers.append(self._numbers[before])
                overlaps[:, before] = 0
            else:
                numbers.append(-1)
        used = {*numbers, *self._numbers}
        for place in [i for i, number in enumerate(numbers) if number < 0]:
            numbers[place] = next(number for number in range(len(used) + 1) if number not in used)
            used.add(numbers[place])
        self._boxes, self._labels, self._numbers = prediction.boxes, prediction.labels, numbers
        return numbers


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, m) of boxes (n, 4) and (m, 4), all of them with area."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared))

"""Color indices of video frames follow moving instances, whatever the order of the scores."""

from __future__ import annotations

import numpy as np

from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.visualize import ColorIndices


def frame(*boxes, labels=None):
    count = len(boxes)
    return Prediction(
        image_size=(100, 100),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.array(labels or [1] * count, np.int32),
        category_ids=np.ones(count, np.int64),
        names=("dog",) * count,
        mask_probabilities=None,
    )


A, B, C = (0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20)


def moved(box, by=4):
    return (box[0] + by, box[1], box[2] + by, box[3])


def test_colors_follow_the_boxes():
    colors = ColorIndices()
    assert colors.assign(frame(A, B)) == [0, 1]
    assert colors.assign(frame(moved(B), moved(A))) == [1, 0]
    assert colors.assign(frame(C, moved(A, 8), moved(B, 8))) == [2, 0, 1]
    assert colors.assign(frame()) == []
    assert colors.assign(frame(B)) == [0]


def test_new_instances_take_no_color_of_the_previous_frame():
    colors = ColorIndices()
    assert colors.assign(frame(A, B)) == [0, 1]
    assert colors.assign(frame(C)) == [2]
    assert colors.assign(frame(A)) == [0]


def test_a_color_is_assigned_once_and_within_a_class():
    colors = ColorIndices()
    colors.assign(frame(A))
    assert colors.assign(frame(A, moved(A))) == [0, 1]
    assert colors.assign(frame(A, moved(A), labels=[2, 1])) == [2, 1]

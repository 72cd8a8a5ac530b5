"""Colors of a film: they stay with what moves, whatever the order of the scores."""

from __future__ import annotations

import numpy as np

from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.visualize.color_indices import ColorIndices


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
    assert colors.of(frame(A, B)) == [0, 1]
    assert colors.of(frame(moved(B), moved(A))) == [1, 0]
    assert colors.of(frame(C, moved(A, 8), moved(B, 8))) == [2, 0, 1]
    assert colors.of(frame()) == []
    assert colors.of(frame(B)) == [0]


def test_a_new_instance_takes_no_color_of_the_frame_before():
    colors = ColorIndices()
    assert colors.of(frame(A, B)) == [0, 1]
    assert colors.of(frame(C)) == [2]
    assert colors.of(frame(A)) == [0]


def test_one_color_goes_to_one_instance_of_the_same_class():
    colors = ColorIndices()
    colors.of(frame(A))
    assert colors.of(frame(A, moved(A))) == [0, 1]
    assert colors.of(frame(A, moved(A), labels=[2, 1])) == [2, 1]

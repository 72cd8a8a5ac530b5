"""Flips and views: image, boxes, masks and keypoints move together."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from samples import annotation, empty_truth, rle_of

from mrcnn_jax.data.augment.geometry import flip, resample, resize, whole
from mrcnn_jax.data.sample import Sample, make_sample, write
from mrcnn_jax.structures import GroundTruth

FLIPS = [(True, False), (False, True), (True, True), (False, False)]
NOSE, LEFT, RIGHT, TAIL = range(4)
FLIP_MAP = (NOSE, RIGHT, LEFT, TAIL)


def written(sample: Sample, slots: int, side: int) -> GroundTruth:
    truth = empty_truth(slots, side, sample.keypoints.shape[1])
    write(sample, truth)
    return truth


@pytest.mark.parametrize(("horizontal", "vertical"), FLIPS)
def test_flipping_image_and_truth_agree(horizontal: bool, vertical: bool) -> None:
    """Painting the masks and flipping the picture equals flipping the truth and painting it."""
    rng = np.random.default_rng(2)
    mask = rng.random((24, 32)) > 0.5
    annotations = [annotation([4, 8, 8, 8], segmentation=rle_of(mask)), annotation([16, 0, 16, 16])]
    sample = make_sample(np.zeros((24, 32, 3), np.uint8), annotations, {3: 1}, (24, 32))

    def paint(truth: GroundTruth) -> np.ndarray:
        picture = np.zeros((24, 32, 3), np.uint8)
        for k in range(2):
            x0, y0, x1, y1 = truth.boxes[k].astype(int)
            picture[y0:y1, x0:x1, k] = cv2.resize(truth.masks[k], (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
        return picture

    before = paint(written(sample, 4, 8))
    assert 0 < before.mean() < 1
    flipped = flip(sample._replace(image=before), horizontal, vertical)
    truth = written(flipped, 4, 8)
    np.testing.assert_array_equal(paint(truth), flipped.image)
    np.testing.assert_array_equal(truth.boxes, truth.mask_windows)
    assert not truth.boxes[2:].any()  # the padding stays as it was
    expected = before[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    np.testing.assert_array_equal(flipped.image, expected)


@pytest.mark.parametrize(("horizontal", "vertical"), FLIPS)
def test_flipped_keypoints_stay_on_their_pixels_and_change_sides(horizontal: bool, vertical: bool) -> None:
    """Each keypoint's pixel has a colour of its own; after the flip it is found there under its mirrored name."""
    size = (20, 30)
    pixels = [(3, 4), (29, 0), (0, 19), (11, 12)]  # x, y
    image = np.zeros((*size, 3), np.uint8)
    for colour, (x, y) in enumerate(pixels, 1):
        image[y, x] = colour
    points = [float(v) for x, y in pixels for v in (x, y, 2)]
    points[-1] = 0  # the tail is not labelled
    sample = make_sample(image, [annotation([0, 0, 30, 20], keypoints=points)], {3: 1}, size, num_keypoints=4)
    flipped = flip(sample, horizontal, vertical, FLIP_MAP)
    colours = [int(flipped.image[int(y), int(x), 0]) - 1 for x, y, _ in flipped.keypoints[0, :TAIL]]
    assert colours == ([NOSE, RIGHT, LEFT] if horizontal != vertical else [NOSE, LEFT, RIGHT])
    assert flipped.keypoints[0, :, 2].tolist() == [2, 2, 2, 0]
    assert not flipped.keypoints[0, TAIL].any()
    truth = written(flipped, 3, 0)
    np.testing.assert_array_equal(truth.keypoints[0], flipped.keypoints[0])
    assert not truth.keypoints[1:].any()
    again = flip(flipped, horizontal, vertical, FLIP_MAP)
    np.testing.assert_array_equal(again.keypoints, sample.keypoints)  # halves are exact
    np.testing.assert_array_equal(again.image, sample.image)


def test_resize_writes_into_the_canvas() -> None:
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    canvas = np.full((64, 64, 3), 7, np.uint8)
    resample(image, whole((20, 30)), (40, 60), canvas[:40, :60])
    expected = cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(canvas[:40, :60], expected)
    assert (canvas[40:] == 7).all()
    assert (canvas[:, 60:] == 7).all()
    sample: Any = make_sample(image, [], {}, (20, 30))
    np.testing.assert_array_equal(resize(sample, (40, 60)).image, expected)

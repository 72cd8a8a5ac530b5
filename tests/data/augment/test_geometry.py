"""Tests that flips, crops and resizes transform image, boxes, masks and keypoints together."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from support.samples import annotation, empty_truth, resize, rle_of

from mrcnn_jax.data.augment.geometry import crop_and_resize, flip, full_window, resample
from mrcnn_jax.data.sample import Sample, make_sample, write_ground_truth
from mrcnn_jax.structures import GroundTruth

FLIPS = [(True, False), (False, True), (True, True), (False, False)]
NOSE, LEFT, RIGHT, TAIL = range(4)
FLIP_MAP = (NOSE, RIGHT, LEFT, TAIL)


def written(sample: Sample, slots: int, side: int) -> GroundTruth:
    truth = empty_truth(slots, side, sample.keypoints.shape[1])
    write_ground_truth(sample, truth)
    return truth


@pytest.mark.parametrize(("horizontal", "vertical"), FLIPS)
def test_flips_of_image_and_ground_truth_agree(horizontal: bool, vertical: bool) -> None:
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
    """Each keypoint's pixel has a color of its own; after the flip it is found there under its mirrored name."""
    size = (20, 30)
    pixels = [(3, 4), (29, 0), (0, 19), (11, 12)]  # x, y
    image = np.zeros((*size, 3), np.uint8)
    for color, (x, y) in enumerate(pixels, 1):
        image[y, x] = color
    points = [float(v) for x, y in pixels for v in (x, y, 2)]
    points[-1] = 0  # the tail is not labeled
    sample = make_sample(image, [annotation([0, 0, 30, 20], keypoints=points)], {3: 1}, size, num_keypoints=4)
    flipped = flip(sample, horizontal, vertical, FLIP_MAP)
    colors = [int(flipped.image[int(y), int(x), 0]) - 1 for x, y, _ in flipped.keypoints[0, :TAIL]]
    assert colors == ([NOSE, RIGHT, LEFT] if horizontal != vertical else [NOSE, LEFT, RIGHT])
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
    resample(image, full_window((20, 30)), (40, 60), canvas[:40, :60])
    expected = cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(canvas[:40, :60], expected)
    assert (canvas[40:] == 7).all()
    assert (canvas[:, 60:] == 7).all()
    sample: Any = make_sample(image, [], {}, (20, 30))
    np.testing.assert_array_equal(resize(sample, (40, 60)).image, expected)


@pytest.mark.parametrize("window", [[0, 0, 29.5, 19.5], [-0.5, 0.25, 30.5, 20], [3.5, 2, 12.25, 20]])
def test_pixels_outside_the_image_repeat_its_edge(window: list[float]) -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    assert (resample(image, np.array(window), (25, 47)) == 200).all()


def test_flip_needs_a_map_of_all_keypoints() -> None:
    image, keypoints = np.zeros((20, 30, 3), np.uint8), [3.0, 4, 2] * 4
    sample = make_sample(image, [annotation([0, 0, 9, 9], keypoints=keypoints)], {3: 1}, (20, 30), num_keypoints=4)
    with pytest.raises(ValueError, match="flip_map has 0 indices for 4 keypoints"):
        flip(sample, True, False)
    assert flip(sample, False, False) is sample


@pytest.mark.parametrize("masks", [True, False])
def test_instances_cut_to_less_than_a_pixel_are_removed(masks: bool) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = [[0, 0, 10, 10], [9.5, 2, 3, 3], [11, 1, 0.5, 0.5], [12, 4, 10, 10]]
    sample = make_sample(image, [annotation(list(box)) for box in boxes], {3: 1}, (20, 30), masks=masks)
    cut = crop_and_resize(sample, np.array([9.5, 0, 20, 10]), (10, 20))
    # The first shows half a pixel, enlarged to nearly one; what is not cut stays, however small it is.
    expected = np.array([[0, 2, 3, 5], [1.5, 1, 2, 1.5], [2.5, 4, 10.5, 10]]) * [20 / 10.5, 1, 20 / 10.5, 1]
    np.testing.assert_allclose(cut.boxes[:2], expected[:2])
    if masks:  # from the first pixel of its mask on
        assert np.abs(cut.boxes[2] - expected[2]).max() <= 1
    else:
        np.testing.assert_allclose(cut.boxes[2], expected[2])
    assert len(cut.boxes) == 3


def test_a_cut_instance_without_a_mask_keeps_the_part_of_its_box() -> None:
    """Beside one whose mask decides; and it is gone where less than a pixel is left."""
    figures = [annotation([4, 4, 12, 8]), annotation([4, 4, 12, 8], segmentation=[]), annotation([0, 0, 8.5, 8])]
    figures[2]["segmentation"] = []
    sample = make_sample(np.zeros((20, 30, 3), np.uint8), figures, {3: 1}, (20, 30))
    left = crop_and_resize(sample, np.array([8, 0, 30, 20]), (20, 22))
    assert left.boxes.tolist() == [[0, 4, 8, 12]] * 2
    truth = written(left, 3, 4)
    assert truth.mask_windows.tolist() == [[0, 4, 8, 12], [0] * 4, [0] * 4]

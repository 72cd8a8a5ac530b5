"""Overlays: colors, places and line widths at any image size."""

from __future__ import annotations

import numpy as np
import pytest

from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.visualize import compare, draw


def prediction(size, boxes, scores=None, masks=True, **fields):
    count = len(boxes)
    return Prediction(
        **fields,
        image_size=size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.full(count, 0.9, np.float32) if scores is None else np.array(scores, np.float32),
        labels=np.ones(count, np.int32),
        category_ids=np.ones(count, np.int64),
        names=("traffic light",) * count,
        mask_probabilities=np.ones((count, 28, 28), np.float32) if masks else None,
    )


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_without_detections_is_copied():
    image = noise(600, 500)
    drawn = draw(image, prediction((600, 500), []))
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image
    assert drawn.dtype == np.uint8


def test_only_the_instance_is_drawn_and_the_input_is_unchanged():
    image = noise(700, 600)
    before = image.copy()
    drawn = draw(image, prediction((700, 600), [[100, 300, 400, 500]]))
    np.testing.assert_array_equal(image, before)
    changed = np.any(drawn != image, axis=2)
    assert changed[310:490, 110:390].mean() > 0.99  # the mask
    changed[240:510, 90:410] = False  # box, mask, and the label above
    assert not changed.any()


def test_masks_are_translucent():
    image = noise(700, 600)
    drawn = draw(image, prediction((700, 600), [[100, 300, 400, 500]]))
    inside = np.s_[320:480, 120:380, 1]
    assert np.corrcoef(image[inside].ravel(), drawn[inside].ravel())[0, 1] > 0.99


def test_weak_detections_are_not_drawn():
    image = noise(600, 600)
    weak = prediction((600, 600), [[100, 300, 400, 500]], scores=[0.4])
    np.testing.assert_array_equal(draw(image, weak), image)
    assert np.any(draw(image, weak, threshold=0.3) != image)


def test_instances_of_a_class_get_different_colors():
    image = np.zeros((600, 800, 3), np.uint8)
    drawn = draw(image, prediction((600, 800), [[50, 200, 250, 400], [450, 200, 650, 400]]))
    assert np.any(drawn[300, 150] != drawn[300, 550])


def test_color_indices_select_the_colors_of_instances():
    image = np.zeros((600, 800, 3), np.uint8)
    boxes, points = (
        [[50, 200, 250, 400], [450, 200, 650, 400]],
        np.array([[[150, 300, 1]], [[550, 300, 1]]], np.float32),
    )
    usual = draw(image, prediction((600, 800), boxes, keypoints=points))
    np.testing.assert_array_equal(draw(image, prediction((600, 800), boxes, keypoints=points), colors=[0, 1]), usual)
    swapped = draw(image, prediction((600, 800), boxes, keypoints=points), colors=[1, 0])
    np.testing.assert_array_equal(swapped[:, 40:300], usual[:, 440:700])
    np.testing.assert_array_equal(swapped[:, 440:700], usual[:, 40:300])
    weak = prediction((600, 800), boxes, scores=[0.2, 0.9], keypoints=points)
    np.testing.assert_array_equal(draw(image, weak, colors=[7, 1])[:, 440:], usual[:, 440:])


@pytest.mark.parametrize(("size", "expected"), [((96, 128), (384, 512)), ((1, 40), (13, 520)), ((512, 30), (512, 30))])
def test_small_images_are_enlarged_by_an_integer_factor(size, expected):
    boxes = [[0, 0, size[1], size[0]], [5, 0, 20, 1]]
    assert draw(noise(*size), prediction(size, boxes)).shape == (*expected, 3)


def test_labels_stay_inside_and_line_widths_scale_with_the_image():
    image = np.zeros((3000, 4000, 3), np.uint8)
    drawn = draw(image, prediction((3000, 4000), [[3900, 0, 4000, 60]], masks=False))
    rows, columns = np.nonzero(np.all(drawn == 255, axis=2))  # the text is white
    assert rows.min() > 0
    assert columns.max() < 3999
    assert np.ptp(rows) > 30  # readable when the image is shown at a third of its size
    line = np.any(draw(image, prediction((3000, 4000), [[1000, 1000, 2000, 2000]], masks=False)) != 0, axis=2)[1500]
    assert 8 <= line[900:1100].sum() <= 12


def test_labels_do_not_cover_each_other():
    image = np.zeros((600, 600, 3), np.uint8)
    boxes = [[100, 300, 400, 500], [102, 301, 402, 502]]
    both = draw(image, prediction((600, 600), boxes, masks=False))
    first = draw(image, prediction((600, 600), boxes[:1], masks=False))
    text = np.all(first > 180, axis=2)  # not each OpenCV has pure white in small letters
    assert text.any()
    np.testing.assert_array_equal(np.all(both > 180, axis=2), text)


def test_a_prediction_of_another_image_size_raises():
    with pytest.raises(ValueError, match="600"):
        draw(noise(600, 500), prediction((500, 600), []))


def skeletons(points, *, score="probability", skeleton=((0, 1),), size=(600, 600), box=(50, 50, 550, 550)):
    """Draw one person's keypoints on black; returns the overlay and the pixels that keypoints changed."""
    keypoints = np.array([points], np.float32)
    given = prediction(size, [box], masks=False, keypoints=keypoints, keypoint_score=score, skeleton=skeleton)
    plain = draw(np.zeros((*size, 3), np.uint8), prediction(size, [box], masks=False))
    drawn = draw(np.zeros((*size, 3), np.uint8), given)
    return drawn, np.any(drawn != plain, axis=2)


def test_skeletons_connect_keypoints():
    drawn, changed = skeletons([[200, 300, 1], [400, 300, 1], [300, 450, 1]])
    assert changed[300, 200:400].all()  # the line
    assert changed[450, 300]  # a keypoint without an edge
    changed[290:311, 190:411] = False
    changed[440:461, 290:311] = False
    assert not changed.any()
    assert set(map(tuple, drawn[280:320, 300])) == {(0, 0, 0), (255, 255, 255), tuple(drawn[300, 300])}
    np.testing.assert_array_equal(drawn[300, 300], drawn[50, 300])  # the color of its box


def test_keypoints_without_a_skeleton_are_points():
    _, changed = skeletons([[200, 300, 1], [400, 300, 1]], skeleton=())
    assert changed[300, 200]
    assert changed[300, 400]
    assert not changed[300, 220:380].any()


@pytest.mark.parametrize(("score", "low", "high"), [("probability", 0.04, 0.06), ("logit", 1.9, 2.1)])
def test_unlikely_keypoints_and_their_lines_are_left_out(score, low, high):
    points = [[200, 300, high], [400, 300, low]]
    _, changed = skeletons(points, score=score)
    assert changed[300, 200]
    assert not changed[:, 210:].any()
    points[1][2] = high
    assert skeletons(points, score=score)[1][300, 400]


def test_skeletons_are_enlarged_with_the_image():
    _, changed = skeletons([[20.5, 30.5, 1], [60.5, 30.5, 1]], size=(100, 100), box=(5, 5, 95, 95))
    assert changed.shape == (600, 600)
    assert changed[183, 123:363].all()
    assert not changed[183, 380:].any()


def test_lines_are_thinner_on_small_instances():
    widths = []
    for box in ((100, 100, 1500, 1500), (500, 500, 600, 600)):
        _, changed = skeletons([[520, 550, 1], [580, 550, 1]], size=(1600, 1600), box=box)
        widths.append(changed[:, 550].sum())
    assert 0 < widths[1] < widths[0] - 2


def test_keypoints_outside_the_image_are_clipped():
    _, changed = skeletons([[-500, 300, 1], [700, 300, 1]])
    assert changed[300].sum() > 500


def test_compare_matches_the_colors_of_ground_truth_and_prediction():
    image = np.zeros((600, 600, 3), np.uint8)
    truth = prediction((600, 600), [[50, 100, 150, 200], [300, 300, 450, 450]])
    # The second instance is detected, the first is missed; one detection is wrong, one below the threshold.
    found = prediction((600, 600), [[300, 310, 450, 450], [400, 50, 550, 150], [50, 400, 150, 500]], [0.9, 0.8, 0.3])
    drawn = compare(image, truth, found)
    assert drawn.shape == (30 + 600, 600 + 6 + 600, 3)
    left, right = drawn[30:, :600], drawn[30:, -600:]
    missed, matched = left[150, 100], left[375, 375]
    np.testing.assert_array_equal(right[375, 375], matched)
    assert not right[150, 100].any()
    assert not left[100, 475].any()
    wrong = right[100, 475]
    assert wrong.any()
    assert len({tuple(color) for color in (missed, matched, wrong)}) == 3
    assert not right[450, 100].any()
    assert drawn[:30].min() < 128 < drawn[:30].mean()  # titles in black on white


@pytest.mark.parametrize(("height", "width"), [(600, 12), (12, 600), (1, 1), (3000, 1), (1, 3000), (600, 199)])
def test_narrow_images_have_titles(height, width):
    image = np.full((height, width, 3), 90, np.uint8)
    one = prediction((height, width), [[0, 0, width, height]])
    drawn = compare(image, prediction((height, width), []), one)
    factor = max(1, -(-512 // max(height, width)))
    side = max(256, width * factor)
    strip = side // 20
    assert drawn.shape == (strip + height * factor, side + max(4, side // 100) + side, 3)
    for title in (drawn[:strip, :side], drawn[:strip, -side:]):
        assert title.min() < 200 < title.mean()
    left, right = drawn[strip:, :side], drawn[strip:, -side:]
    assert (left[:, : width * factor] == 90).all()
    assert (left[:, width * factor :] == 255).all()
    assert (right[:, : width * factor] != 90).any()


def test_labels_without_scores():
    image = np.zeros((600, 600, 3), np.uint8)
    one = prediction((600, 600), [[100, 300, 400, 500]])
    labels = [draw(image, one, scores=scores)[280:299, 100:] for scores in (True, False)]
    widths = [np.flatnonzero(label.any(axis=(0, 2))).max() for label in labels]
    assert widths[0] > widths[1] > 0

"""Tests of the kind "people": bodies, their rendering and their keypoint labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mrcnn_jax.data.categories import infer_flip_map
from mrcnn_jax.data.synthetic import bodies, people
from mrcnn_jax.data.synthetic.scene import MIN_VISIBLE, Figure
from mrcnn_jax.weights.coco_categories import PERSON_KEYPOINTS

FLIPPED = np.array(infer_flip_map(PERSON_KEYPOINTS))
LEFT = np.array([name.startswith("left") for name in PERSON_KEYPOINTS])


@pytest.fixture(scope="module")
def scenes() -> list[list[Figure]]:
    return [people.render(np.random.default_rng([3, k]), 160)[1] for k in range(60)]


def standing(
    seed: int, yaw: float, size: int = 200, height: float = 120
) -> tuple[people.PersonDrawing, bodies.BodyPose]:
    """Somebody in the middle of an image, alone."""
    pose = bodies.draw_pose(np.random.default_rng(seed))
    return drawn(pose, yaw, size, height), pose


def drawn(pose: bodies.BodyPose, yaw: float, size: int, height: float) -> people.PersonDrawing:
    body = bodies.project_body(pose, yaw, 8)
    keypoints = people.body_keypoints(body, height)
    keypoints[:, :2] += size / 2
    parts = [part._replace(points=part.points + size / 2) for part in people.body_parts(body, height)]
    return people.draw_person(parts, keypoints, size)


@pytest.mark.parametrize("yaw", [0.0, 25.0, 170.0])
@pytest.mark.parametrize("seed", range(8))
def test_mirrored_image_equals_image_of_mirrored_person(seed: int, yaw: float) -> None:
    drawing, pose = standing(seed, yaw)
    other = drawn(bodies.mirror_pose(pose), -yaw, 200, 120)
    assert (drawing.materials[:, ::-1] != other.materials).mean() < 1e-4  # rounding, on outlines
    expected = drawing.keypoints[FLIPPED]
    expected[:, 0] = np.where(expected[:, 2] > 0, 199 - expected[:, 0], 0)
    np.testing.assert_allclose(other.keypoints, expected, atol=0.011)


def test_left_side_of_a_person_facing_the_viewer_is_on_the_right() -> None:
    pose = bodies.BodyPose(0, 0, (0, 0), (bodies._HANGING, bodies._HANGING), (bodies._STRAIGHT, bodies._STRAIGHT))
    front, back = bodies.project_body(pose, 0, 0).joints[:, 0], bodies.project_body(pose, 180, 0).joints[:, 0]
    assert (front[LEFT] > 0).all()
    assert (back[LEFT] < 0).all()
    heights = bodies.project_body(pose, 0, 0).joints[:, 1]
    assert (np.diff(heights[[1, 0, 5, 7, 9]]) > 0).all()  # eye, nose, shoulder, elbow, wrist, downwards
    assert (np.diff(heights[[5, 11, 13, 15]]) > 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_a_face_is_drawn_and_labeled_from_the_front_only(seed: int) -> None:
    eyes, nose = (1 + people._MATERIALS.index(name) for name in ("eyes", "nose"))
    front, _ = standing(seed, 10)
    x, y = np.rint(front.keypoints[0, :2]).astype(int)
    assert front.materials[y, x] == nose
    assert (front.materials == eyes).any()
    assert (front.keypoints[bodies.FACE_KEYPOINTS, 2] == 2).all()
    back, _ = standing(seed, 190)
    assert not np.isin(back.materials, [eyes, nose]).any()
    assert not back.keypoints[bodies.FACE_KEYPOINTS].any()
    assert (back.keypoints[3:, 2] > 0).all()


@pytest.mark.parametrize("height", [40, 150])
def test_keypoints_lie_on_the_person(height: float) -> None:
    for seed in range(20):
        drawing, _ = standing(seed, 30, size=320, height=height)
        points = drawing.keypoints[drawing.keypoints[:, 2] > 0]
        x, y = np.rint(points[:, :2].T).astype(int)
        assert (drawing.materials[y, x] > 0).all()


def test_what_lies_outside_is_not_labeled() -> None:
    drawing, _ = standing(0, 0, size=60, height=120)
    x, y, visibility = drawing.keypoints.T
    assert (visibility == 0).any()
    assert (visibility == 2).any()
    assert not drawing.keypoints[visibility == 0].any()
    assert (np.abs(np.stack([x, y]) - 29.5) <= 30).all()


def test_what_lies_on_the_edge_is_inside() -> None:
    """Written in hundredths of a pixel, a place just before the right or lower edge must not pass it."""
    size = 64
    keypoints = np.tile([0.0, size - 0.001, 2.0], (17, 1))
    keypoints[::2, :2] = keypoints[::2, 1::-1]
    body = bodies.project_body(bodies.draw_pose(np.random.default_rng(0)), 0, 8)
    drawing = people.draw_person(people.body_parts(body, 20), keypoints, size)
    assert (drawing.keypoints[:, 2] == 2).all()
    person = Figure("person", drawing.materials > 0, 1, drawing.keypoints)
    covered = people._hide_behind(person, np.ones((size, size), bool))
    assert covered.keypoints is not None
    assert (covered.keypoints[:, 2] == 1).all()


def test_hidden_people_keep_labels_that_are_not_visible() -> None:
    keypoints = np.zeros((17, 3))
    keypoints[:4] = [[2, 2, 2], [9.6, 5, 2], [9.4, 5, 2], [12, 5, 1]]
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    person = people._hide_behind(Figure("person", np.ones((20, 20), bool), 400, keypoints), mask)
    assert person.keypoints is not None
    assert person.keypoints[:5, 2].tolist() == [2, 1, 2, 1, 0]
    assert person.mask.sum() == 200
    assert keypoints[1, 2] == 2  # what was given is left as it is


def test_visibility_follows_from_depth_order(scenes: list[list[Figure]]) -> None:
    seen = []
    for figures in scenes:
        assert np.sum([figure.mask for figure in figures], axis=0).max() == 1
        for k, figure in enumerate(figures):
            assert figure.keypoints is not None
            assert figure.mask.sum() >= MIN_VISIBLE * figure.area
            in_front = np.any([other.mask for other in figures[k + 1 :]] or [np.zeros_like(figure.mask)], axis=0)
            x, y = np.floor(figure.keypoints[:, :2].T + 0.5).astype(int)
            visibility = figure.keypoints[:, 2]
            assert not in_front[y, x][visibility == 2].any()
            assert figure.mask[y, x][visibility == 2].all()
            body = np.delete(np.arange(17), [3, 4])  # ears may be behind the person's own head
            assert in_front[y, x][body][visibility[body] == 1].all()
            seen += visibility.tolist()
    assert min(seen.count(v) for v in (0.0, 1.0, 2.0)) > 0.02 * len(seen)


def test_people_are_of_all_sizes_and_in_one_piece_each(scenes: list[list[Figure]]) -> None:
    assert {len(figures) for figures in scenes} == {1, 2, 3, 4}
    tall = [np.ptp(np.nonzero(figure.mask)[0]) + 1 for figures in scenes for figure in figures]
    assert min(tall) < 50
    assert max(tall) > 110
    for seed in range(20):
        drawing, _ = standing(seed, 20)
        assert cv2.connectedComponents((drawing.materials > 0).astype(np.uint8))[0] == 2

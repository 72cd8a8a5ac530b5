"""Result files of a prediction: instance maps, JSON lists, videos."""

from __future__ import annotations

import json
from fractions import Fraction

import cv2
import numpy as np
import pytest

from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.tools.predict import writers


def prediction(boxes, size=(40, 60), **fields):
    count = len(boxes)
    return Prediction(
        image_size=size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.ones(count, np.int32),
        category_ids=np.full(count, 5),
        names=("dog",) * count,
        mask_probabilities=np.ones((count, 28, 28), np.float32),
        **fields,
    )


def test_higher_score_wins_where_masks_overlap():
    numbers = writers.instance_map(prediction([[0, 0, 40, 40], [20, 0, 60, 40]]))
    assert numbers.dtype == np.uint8
    assert numbers[20, [10, 30, 50]].tolist() == [1, 1, 2]


@pytest.mark.parametrize(("count", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_more_than_255_instances_take_16_bits(tmp_path, count, dtype):
    boxes = [[4 * (i % 15), 4 * (i // 15), 4 * (i % 15) + 4, 4 * (i // 15) + 4] for i in range(count)]
    path = tmp_path / "deep" / "a.mask.png"
    writers.write_image(path, writers.instance_map(prediction(boxes, size=(80, 60))))
    numbers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert (numbers.dtype, numbers.shape, numbers.max()) == (dtype, (80, 60), count)
    for i, (left, top, _, _) in enumerate(boxes):
        assert numbers[top + 2, left + 2] == i + 1


def test_images_are_written_as_rgb(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    writers.write_image(tmp_path / "red.png", red)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]


def test_json_has_keypoints_by_name(tmp_path):
    points = np.array([[[1, 2, 0.5], [3, 4, 0.25]]], np.float32)
    pose = {"keypoints": points, "keypoint_names": ("nose", "tail")}
    writers.write_json(tmp_path / "a.json", prediction([[0, 0, 20, 20]], **pose), {"file_name": "a.jpg"})
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["keypoint_names"] == ["nose", "tail"]
    assert written["instances"][0]["keypoints"] == points[0].tolist()
    assert written["instances"][0]["category_id"] == 5


def test_results_are_valid_json_after_an_error(tmp_path):
    def fail():
        with writers.ResultsWriter(tmp_path / "r.json") as results:
            results.add([{"a": 1}, {"a": 2}])
            results.add([])
            results.add([{"a": 3}])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads((tmp_path / "r.json").read_text()) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_odd_video_loses_its_last_row_and_column(tmp_path):
    with writers.VideoWriter(tmp_path / "odd.mp4", 24000 / 1001) as video:
        for number in range(3):
            video.write(number, np.full((51, 63, 3), 80 * number, np.uint8))
    capture = cv2.VideoCapture(str(tmp_path / "odd.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(23.976, abs=0.01)
    assert [capture.read()[1].shape for _ in range(3)] == [(50, 62, 3)] * 3


def write_two_frames(path, then=lambda: None):
    with writers.VideoWriter(path, 25) as video:
        for number in range(2):
            video.write(number, np.zeros((32, 32, 3), np.uint8))
        then()


@pytest.mark.parametrize(
    ("rate", "nearest"),
    [
        (25, 25),
        (30000 / 1001, 29.97),
        (1000 / 15, 66.668),  # 16667/250; 66667/1000 has 17 bits
        (1000 / 7, 142.855),  # 28571/200
        (999.999, 1000),
        (0.5, 0.5),
        (0.0001, 0.002),
    ],
)
def test_frame_rate_becomes_the_nearest_one_of_mpeg4(tmp_path, rate, nearest):
    path = tmp_path / "film.mp4"
    with writers.VideoWriter(path, rate) as video:
        for number in range(3):
            video.write(number, np.zeros((32, 32, 3), np.uint8))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(nearest, rel=1e-4)
    assert nearest == pytest.approx(rate, abs=0.0022)


def test_every_frame_rate_has_one_near_it():
    for rate in np.random.default_rng(0).uniform(0.01, 1000, 500):
        near = Fraction(writers.nearest_frame_rate(rate)).limit_denominator(1000)
        assert near.numerator < 2**16
        assert float(near) == pytest.approx(rate, abs=0.02)


def test_image_too_large_for_its_format_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"70000x1 pixels cannot be stored as \.jpg: .*a\.jpg"):
        writers.write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))


def test_video_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(OSError, match=r"OpenCV cannot write a video of 32x32 pixels at 25 frames/s"):
        write_two_frames(tmp_path)  # a folder
    path = tmp_path / "full.mp4"
    with pytest.raises(OSError, match=r"only 0 of 2 frames .*full\.mp4"):
        write_two_frames(path, path.unlink)  # like after a full disk

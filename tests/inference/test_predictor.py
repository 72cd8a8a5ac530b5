"""The Predictor: any sizes in, input order out, at most two programs a shape, errors that name the image."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from mrcnn_jax.errors import ImageError
from mrcnn_jax.inference import detector
from mrcnn_jax.inference.predictor import Predictor, read_image
from mrcnn_jax.structures import Detections

CONFIG = Config(
    model=ModelConfig(num_classes=2, category_ids=(7, 3), category_names=("dog", "cat")),
    data=DataConfig(buckets=((64, 96), (96, 64)), shortest_edge_eval=64, longest_edge=96),
    eval=EvalConfig(batch_size=2),
)


@pytest.fixture
def shapes(monkeypatch):
    """Replace the network by one that finds the whole picture and names the brightness of its first pixel a score."""
    seen = []

    def detect(images, image_sizes):
        seen.append(images.shape)
        sizes = np.asarray(image_sizes, np.float32)
        count = len(images)
        boxes = np.concatenate([np.zeros((count, 2)), sizes[:, ::-1]], axis=1).astype(np.float32)
        return Detections(
            boxes=boxes[:, None],
            scores=(images[:, 0, 0, :1] / 255).astype(np.float32),
            classes=np.ones((count, 1), np.int32),
            masks=np.ones((count, 1, 28, 28), np.float32),
            keypoints=np.zeros((count, 1, 0, 3), np.float32),
            valid=np.ones((count, 1), bool),
            truncated=np.zeros(count, bool),
        )

    monkeypatch.setattr(detector, "compile_detect", lambda model, variables: detect)
    return seen


def picture(height, width, brightness):
    return np.full((height, width, 3), brightness, np.uint8)


def test_results_come_in_input_order_with_original_sizes(shapes):
    sizes = [(50, 80), (80, 50), (300, 200), (31, 97), (48, 48), (10, 200), (64, 96)]
    found = Predictor(CONFIG, {})([picture(*size, 10 * i) for i, size in enumerate(sizes)])
    for i, (size, prediction) in enumerate(zip(sizes, found, strict=True)):
        assert prediction.image_size == size
        np.testing.assert_allclose(prediction.scores, 10 * i / 255, rtol=1e-6)
        np.testing.assert_allclose(prediction.boxes, [[0, 0, size[1], size[0]]], rtol=1e-6)
        assert prediction.masks.mean() > 0.9  # all but the corners
    assert set(shapes) <= {(b, *bucket, 3) for b in (1, 2) for bucket in CONFIG.data.buckets}


def test_what_is_left_of_a_shape_uses_the_program_that_is_there(shapes):
    landscape, portrait = (64, 96, 3), (96, 64, 3)
    predict = Predictor(CONFIG, {})
    found = predict([picture(50, 80, 10 * i) for i in range(5)] + [picture(80, 50, 50)])
    np.testing.assert_allclose([one.scores[0] for one in found], np.arange(6) * 10 / 255, rtol=1e-6)
    assert sorted(shapes) == sorted([(2, *landscape)] * 3 + [(1, *portrait)])


def test_files_and_arrays_agree_and_colors_are_rgb(shapes, tmp_path):
    image = picture(40, 60, 0)
    image[:, :, 0] = 200  # red
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path), image)
    by_path, by_text, by_array = Predictor(CONFIG, {})([path, str(path), image])
    assert by_path.scores == by_text.scores == by_array.scores == np.float32(200 / 255)


def test_no_images_give_no_results(shapes):
    assert Predictor(CONFIG, {})([]) == []
    assert not shapes


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        None,
    ],
)
def test_an_image_of_another_kind_is_named(shapes, image):
    with pytest.raises(ImageError, match=r"image 1: expected a uint8 RGB array \(height, width, 3\) or a path, got"):
        Predictor(CONFIG, {})([picture(8, 8, 0), image])


def test_a_single_image_is_told_from_a_list(shapes, tmp_path):
    for single in (picture(8, 8, 0), str(tmp_path / "a.png"), tmp_path / "a.png"):
        with pytest.raises(TypeError, match=r"predict\(\[image\]\)"):
            Predictor(CONFIG, {})(single)


@pytest.mark.parametrize(
    ("image", "way"),
    [
        (Image.fromarray(np.zeros((8, 8), np.uint8)), 'np.asarray(image.convert("RGB"))'),
        (np.zeros((8, 8), np.uint8), "np.stack([image] * 3, axis=-1)"),
        (np.zeros((8, 8, 4), np.uint8), "image[..., :3]"),
        (np.zeros((8, 8, 3)), "(255 * image).round().astype(np.uint8)"),
    ],
)
def test_what_people_have_instead_becomes_an_image_in_the_way_that_is_said(shapes, image, way):
    with pytest.raises(ImageError, match=re.escape(way)):
        Predictor(CONFIG, {})([image])
    assert len(Predictor(CONFIG, {})([eval(way)])) == 1


def test_any_iterable_of_images_will_do(shapes):
    found = Predictor(CONFIG, {})(picture(48, 48, brightness) for brightness in (0, 255))
    assert [prediction.scores.tolist() for prediction in found] == [[0], [1]]


def test_a_predictor_says_what_it_is(shapes):
    assert repr(Predictor(CONFIG, {})) == "Predictor(mask_rcnn: 2 classes, boxes, masks)"


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        read_image(path)
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)

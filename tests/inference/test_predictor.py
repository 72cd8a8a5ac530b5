"""Predictor: order of results, at most two programs per shape, errors that name the image."""

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
    """Replace the network: it detects the whole image, with the brightness of its first pixel as score.

    Returns the list of shapes of its inputs.
    """
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


def solid_image(height, width, brightness):
    return np.full((height, width, 3), brightness, np.uint8)


def test_results_come_in_input_order_with_original_sizes(shapes):
    sizes = [(50, 80), (80, 50), (300, 200), (31, 97), (48, 48), (10, 200), (64, 96)]
    found = Predictor(CONFIG, {})([solid_image(*size, 10 * i) for i, size in enumerate(sizes)])
    for i, (size, prediction) in enumerate(zip(sizes, found, strict=True)):
        assert prediction.image_size == size
        np.testing.assert_allclose(prediction.scores, 10 * i / 255, rtol=1e-6)
        np.testing.assert_allclose(prediction.boxes, [[0, 0, size[1], size[0]]], rtol=1e-6)
        assert prediction.masks.mean() > 0.9  # all but the corners
    assert set(shapes) <= {(b, *bucket, 3) for b in (1, 2) for bucket in CONFIG.data.buckets}


def test_leftover_images_use_the_compiled_program(shapes):
    landscape, portrait = (64, 96, 3), (96, 64, 3)
    predict = Predictor(CONFIG, {})
    found = predict([solid_image(50, 80, 10 * i) for i in range(5)] + [solid_image(80, 50, 50)])
    np.testing.assert_allclose([one.scores[0] for one in found], np.arange(6) * 10 / 255, rtol=1e-6)
    assert sorted(shapes) == sorted([(2, *landscape)] * 3 + [(1, *portrait)])


def test_files_and_arrays_agree_and_colors_are_rgb(shapes, tmp_path):
    image = solid_image(40, 60, 0)
    image[:, :, 0] = 200  # red
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path), image)
    by_path, by_text, by_array = Predictor(CONFIG, {})([path, str(path), image])
    assert by_path.scores == by_text.scores == by_array.scores == np.float32(200 / 255)


def test_no_images(shapes):
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
def test_an_invalid_image_raises_with_its_index(shapes, image):
    with pytest.raises(ImageError, match=r"image 1: expected a uint8 RGB array \(height, width, 3\) or a path, got"):
        Predictor(CONFIG, {})([solid_image(8, 8, 0), image])


def test_a_single_image_raises(shapes, tmp_path):
    for single in (solid_image(8, 8, 0), str(tmp_path / "a.png"), tmp_path / "a.png"):
        with pytest.raises(TypeError, match=r"predict\(\[image\]\)"):
            Predictor(CONFIG, {})(single)


@pytest.mark.parametrize(
    ("image", "conversion"),
    [
        (Image.fromarray(np.zeros((8, 8), np.uint8)), 'np.asarray(image.convert("RGB"))'),
        (np.zeros((8, 8), np.uint8), "np.stack([image] * 3, axis=-1)"),
        (np.zeros((8, 8, 4), np.uint8), "image[..., :3]"),
        (np.zeros((8, 8, 3)), "(255 * image).round().astype(np.uint8)"),
    ],
)
def test_errors_suggest_a_conversion_that_works(shapes, image, conversion):
    with pytest.raises(ImageError, match=re.escape(conversion)):
        Predictor(CONFIG, {})([image])
    assert len(Predictor(CONFIG, {})([eval(conversion)])) == 1


def test_images_can_be_any_iterable(shapes):
    found = Predictor(CONFIG, {})(solid_image(48, 48, brightness) for brightness in (0, 255))
    assert [prediction.scores.tolist() for prediction in found] == [[0], [1]]


def test_repr(shapes):
    assert repr(Predictor(CONFIG, {})) == "Predictor(mask_rcnn: 2 classes, boxes, masks)"


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_an_unreadable_file_raises_with_its_name(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        read_image(path)
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)

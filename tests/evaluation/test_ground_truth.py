"""Ground truth as a prediction with scores of 1."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mrcnn_jax.config import DataConfig, ModelConfig, SplitConfig
from mrcnn_jax.data import load_split
from mrcnn_jax.evaluation import ground_truth

# The model has one class more than the data; the ids have gaps.
MODEL = ModelConfig(num_classes=3, category_ids=(2, 5, 9), category_names=("cat", "dog", "person"))
SQUARE = [[10, 20, 30, 20, 30, 40, 10, 40]]


def annotation(number, category, **fields):
    return {
        "id": number,
        "image_id": 7,
        "category_id": category,
        "bbox": [10, 20, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "segmentation": SQUARE,
        **fields,
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(annotations, categories):
        image = np.full((60, 80, 3), (200, 100, 50), np.uint8)  # BGR
        cv2.imwrite(str(tmp_path / "a.png"), image)
        images = [{"id": 7, "file_name": "a.png", "height": 60, "width": 80}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        split = SplitConfig("coco.json", ".")
        data = DataConfig(root=str(tmp_path), train=split, eval=split, cache_dir=str(tmp_path / "cache"))
        return ground_truth.read(load_split(data, "eval"), 0, MODEL)

    return write_and_read


def test_instances_with_masks_and_names(read):
    crowd = annotation(3, 9, iscrowd=1, segmentation={"size": [60, 80], "counts": [0, 100, 4700]})
    categories = [{"id": 9, "name": "person"}, {"id": 2, "name": "cat"}]
    image, truth = read([annotation(1, 9), annotation(2, 2), crowd], categories)
    assert image[0, 0].tolist() == [50, 100, 200]
    assert truth.image_size == (60, 80)
    assert truth.names == ("person", "cat")
    assert truth.labels.tolist() == [3, 1]
    assert truth.category_ids.tolist() == [9, 2]
    assert truth.scores.tolist() == [1, 1]
    assert truth.boxes.tolist() == [[10, 20, 30, 40]] * 2
    expected = np.zeros((60, 80), bool)
    expected[20:40, 10:30] = True
    np.testing.assert_array_equal(truth.masks, [expected, expected])
    assert truth.keypoints is None


def test_labeled_keypoints_have_score_1(read):
    pose = {"id": 9, "name": "person", "keypoints": ["nose", "hand", "foot"], "skeleton": [[1, 2]]}
    points = [12, 22, 2, 25, 35, 1, 0, 0, 0]
    _, truth = read([annotation(1, 9, keypoints=points, num_keypoints=2)], [pose])
    # COCO's keypoints are pixel indices; the pixel center is 1/2 further.
    assert truth.keypoints.tolist() == [[[12.5, 22.5, 1], [25.5, 35.5, 1], [0, 0, 0]]]
    assert truth.skeleton == ((0, 1),)


def test_data_without_masks_and_an_empty_image(read):
    boxes = annotation(1, 2)
    del boxes["segmentation"]
    categories = [{"id": 2, "name": "cat"}]
    assert read([boxes], categories)[1].masks is None
    assert len(read([], categories)[1]) == 0


def test_one_instance_without_a_mask(read):
    categories = [{"id": 2, "name": "cat"}]
    _, truth = read([annotation(1, 2), annotation(2, 2, segmentation=[])], categories)
    assert truth.boxes.tolist() == [[10, 20, 30, 40]] * 2
    assert truth.masks.sum(axis=(1, 2)).tolist() == [400, 0]

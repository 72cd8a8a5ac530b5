"""Exact mode: network inputs, batches of a dataset, evaluation."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from mrcnn_jax.config import Config, DataConfig, EvalConfig, KeypointHeadConfig, ShapesConfig, SplitConfig, presets
from mrcnn_jax.data import image_files
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.errors import DataError
from mrcnn_jax.evaluation.evaluate import evaluate_model
from mrcnn_jax.inference import detector, reference_preprocessing, single_image
from mrcnn_jax.structures import Detections

EDGES = {"shortest_edge_eval": 60, "longest_edge": 90}


def config(resize, model):
    return Config(model=model, data=DataConfig(**EDGES), eval=EvalConfig(resize=resize))


@pytest.mark.parametrize(
    ("resize", "model", "shape", "size", "dtype"),
    [
        ("torchvision", presets.torchvision(), (64, 96, 3), (60, 82), np.float32),
        ("detectron2", presets.detectron2(), (64, 96, 3), (60, 83), np.uint8),
        ("detectron2", presets.detectron2(features="c4"), (60, 83, 3), (60, 83), np.uint8),
        ("detectron2", presets.detectron2(features="dc5"), (60, 83, 3), (60, 83), np.uint8),
    ],
)
def test_a_batch_of_one(resize, model, shape, size, dtype):
    image = np.full((37, 51, 3), 255, np.uint8)
    batch = single_image.prepare(image, 7, config(resize, model))
    assert batch.images.shape == (1, *shape)
    assert batch.images.dtype == dtype
    assert batch.image_sizes.tolist() == [list(size)]
    assert batch.indices.tolist() == [7]
    assert batch.valid.all()
    white = (255 - np.array(model.pixel_mean)) / model.pixel_std if dtype == np.float32 else [255] * 3
    np.testing.assert_allclose(batch.images[0, : size[0], : size[1]], np.broadcast_to(white, (*size, 3)), rtol=1e-6)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A configuration whose evaluation split has five images of 48 x 48."""
    root = tmp_path_factory.mktemp("shapes")
    data = DataConfig(
        root=str(root / "data"),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1, eval_images=5, image_size=48),
        cache_dir=str(root / "cache"),
        **EDGES,
    )
    model = dataclasses.replace(presets.torchvision(), mask=None)
    categories = load_split(data, "eval").categories
    model = dataclasses.replace(
        model, num_classes=len(categories.ids), category_ids=categories.ids, category_names=categories.names
    )
    return Config(model=model, data=data, eval=EvalConfig(resize="torchvision", overlays=0))


def test_batches_are_in_the_order_of_the_dataset(shapes):
    dataset = load_split(shapes.data, "eval")
    found = list(single_image.batches(dataset, shapes))
    assert [batch.indices.tolist() for batch in found] == [[i] for i in range(5)]
    for i, batch in enumerate(found):
        image = cv2.imread(str(dataset.image_path(i)), cv2.IMREAD_COLOR)[:, :, ::-1]
        expected, _ = reference_preprocessing.network_input(image, shapes)
        np.testing.assert_array_equal(batch.images[0], expected)


@pytest.mark.parametrize("count", [2, 7])
def test_images_are_distributed_over_processes(shapes, count):
    """Every image once; all processes have equally many batches, some without a valid image."""
    dataset = load_split(shapes.data, "eval")
    shares = [list(single_image.batches(dataset, shapes, process_index=i, process_count=count)) for i in range(count)]
    assert {len(share) for share in shares} == {-(-5 // count)}
    valid = [int(batch.indices[0]) for share in shares for batch in share if batch.valid[0]]
    assert sorted(valid) == list(range(5))


def test_an_undecodable_file_raises_with_its_name(shapes, monkeypatch):
    dataset = load_split(shapes.data, "eval")
    monkeypatch.setattr(image_files, "decode", lambda *_: None)
    with pytest.raises(DataError, match=dataset.file_names[0]):
        list(single_image.batches(dataset, shapes))


def test_evaluation_scales_boxes_by_the_reference_sizes(shapes, tmp_path, monkeypatch):
    """The network returns the first object of each image in its own pixels."""
    dataset = load_split(shapes.data, "eval")
    order = iter(range(5))

    def detect(images, image_sizes):
        assert images.shape == (1, 64, 64, 3)
        assert images.dtype == np.float32
        x, y, width, height = dataset.record(next(order))[1][0]["bbox"]
        box = np.array([x, y, x + width, y + height], np.float32) * (image_sizes[0, 0] / 48)
        return Detections(
            boxes=box[None, None],
            scores=np.ones((1, 1), np.float32),
            classes=np.ones((1, 1), np.int32),
            masks=np.zeros((1, 1, 0, 0), np.float32),
            keypoints=np.zeros((1, 1, 0, 3), np.float32),
            valid=np.ones((1, 1), bool),
            truncated=np.zeros(1, bool),
        )

    monkeypatch.setattr(detector, "compile_detect", lambda *_: detect)
    evaluate_model(shapes, {}, tmp_path)
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    expected = [dataset.record(i)[1][0]["bbox"] for i in range(5)]
    np.testing.assert_allclose([record["bbox"] for record in results], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("resize", "expected"), [("torchvision", [10, 20]), ("detectron2", [9.5, 19.5])])
def test_keypoints_are_scored_as_by_the_reference_implementation(resize, expected, tmp_path, monkeypatch):
    """Detectron2 subtracts 1/2 from keypoints to get COCO's, and torchvision does not."""
    base = presets.torchvision()
    config = Config(
        model=dataclasses.replace(base, mask=None, num_classes=1, keypoint=KeypointHeadConfig()),
        data=DataConfig(
            root=str(tmp_path / "data"),
            train=SplitConfig("train.json", "train"),
            eval=SplitConfig("val.json", "val"),
            shapes=ShapesConfig("people", train_images=1, eval_images=1, image_size=128),
            cache_dir=str(tmp_path / "cache"),
            shortest_edge_eval=128,
            longest_edge=128,
        ),
        eval=EvalConfig(resize=resize, overlays=0),
    )
    categories = load_split(config.data, "eval").categories
    model = dataclasses.replace(config.model, category_ids=categories.ids, category_names=categories.names)
    found = Detections(
        boxes=np.float32([[[0, 0, 50, 50]]]),
        scores=np.ones((1, 1), np.float32),
        classes=np.ones((1, 1), np.int32),
        masks=np.zeros((1, 1, 0, 0), np.float32),
        keypoints=np.tile(np.float32([10, 20, 1]), (1, 1, 17, 1)),
        valid=np.ones((1, 1), bool),
        truncated=np.zeros(1, bool),
    )
    monkeypatch.setattr(detector, "compile_detect", lambda *_: lambda *_: found)
    evaluate_model(dataclasses.replace(config, model=model), {}, tmp_path)
    [record] = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert record["keypoints"] == [*expected, 1] * 17

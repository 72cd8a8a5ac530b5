"""Evaluation of a split from the files to the numbers, with detections taken from the ground truth."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig, Config, ConfigError, DataConfig, EvalConfig, ShapesConfig, SplitConfig
from mrcnn_jax.data.coco import load_split
from mrcnn_jax.evaluation import inference
from mrcnn_jax.evaluation.run import evaluate_model
from mrcnn_jax.structures import Detections


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    data = DataConfig(
        root=str(root / "data"),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1, eval_images=7, image_size=96),
        cache_dir=str(root / "cache"),
        buckets=((128, 128),),
        shortest_edge_eval=120,
        longest_edge=128,
    )
    config = Config(data=data, eval=EvalConfig(batch_size=3, overlays=2))
    categories = load_split(data, "eval").categories
    model = dataclasses.replace(
        config.model,
        num_classes=len(categories.ids),
        category_ids=categories.ids,
        category_names=categories.names,
        backbone=BackboneConfig("resnet18", norm="gn", frozen_stages=0),
    )
    return dataclasses.replace(config, model=model)


def perfect(monkeypatch):
    """Let the ground truth of each batch be what the network detects in it."""
    batches = []
    detected = iter(batches)

    def spy(original):
        def wrapped(detect, source, finish):
            def noting():
                for batch in source:
                    batches.append(batch)
                    yield batch

            return original(detect, noting(), finish)

        return wrapped

    def detect(images, image_sizes):
        truth = next(detected).ground_truth
        return Detections(
            boxes=truth.boxes,
            scores=np.full(truth.valid.shape, 0.9, np.float32),
            classes=truth.classes,
            masks=truth.masks.astype(np.float32),
            keypoints=truth.keypoints,
            valid=truth.valid,
            truncated=np.zeros(len(images), bool),
        )

    monkeypatch.setattr(inference, "run", spy(inference.run))
    monkeypatch.setattr(inference, "compile_detect", lambda model, variables: detect)


def test_perfect_detections_score_nearly_one_and_everything_is_written(config, tmp_path, monkeypatch, capsys):
    perfect(monkeypatch)
    outdated = tmp_path / "evaluation" / "overlays" / "of another split.png"
    outdated.parent.mkdir(parents=True)
    outdated.touch()
    metrics = evaluate_model(config, {}, tmp_path)
    assert metrics["bbox/AP"] > 0.99
    # What is lost: crops of 112 pixels are laid back on figures of 12 to 48 pixels, most of whose pixels are edges.
    assert metrics["segm/AP"] > 0.9
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert {record["category_id"] for record in results} <= set(config.model.category_ids)
    overlays = sorted((tmp_path / "evaluation" / "overlays").iterdir())
    assert len(overlays) == 2
    dataset = load_split(config.data, "eval")
    index = dataset.ids.tolist().index(int(overlays[0].stem))
    original = cv2.imread(str(dataset.image_path(index)), cv2.IMREAD_COLOR)
    drawn = cv2.imread(str(overlays[0]), cv2.IMREAD_COLOR)
    assert drawn.shape == (576, 576, 3)
    shrunk = cv2.resize(drawn, (96, 96), interpolation=cv2.INTER_AREA)
    for channel in range(3):  # colours in their order: the ground, most of the picture, is not painted on
        assert np.median(np.abs(original[:, :, channel].astype(int) - shrunk[:, :, channel])) < 8
    assert "7/7 images evaluated" in capsys.readouterr().out


def test_a_network_that_finds_nothing(config, tmp_path, monkeypatch):
    def nothing(images, image_sizes):
        count = len(images)
        return Detections(
            np.zeros((count, 2, 4), np.float32),
            np.zeros((count, 2), np.float32),
            np.zeros((count, 2), np.int32),
            np.zeros((count, 2, 28, 28), np.float32),
            np.zeros((count, 2, 0, 3), np.float32),
            np.zeros((count, 2), bool),
            np.zeros(count, bool),
        )

    monkeypatch.setattr(inference, "compile_detect", lambda model, variables: nothing)
    metrics = evaluate_model(config, {}, tmp_path)
    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0


def test_a_model_of_other_data_is_refused(config, tmp_path):
    names = ("dog", *config.model.category_names[1:])
    model = dataclasses.replace(config.model, category_names=names)
    with pytest.raises(ConfigError, match="'dog'"):
        evaluate_model(dataclasses.replace(config, model=model), {}, tmp_path)


def test_images_whose_candidates_were_cut_are_named(config, tmp_path, monkeypatch, caplog):
    perfect(monkeypatch)
    complete = inference.compile_detect(config.model, {})
    monkeypatch.setattr(
        inference,
        "compile_detect",
        lambda model, variables: (
            lambda images, sizes: complete(images, sizes)._replace(truncated=np.ones(len(images), bool))
        ),
    )
    evaluate_model(config, {}, tmp_path)
    assert "7 images had more candidates than model.box.nms_candidates=4096" in caplog.text

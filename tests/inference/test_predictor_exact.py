"""Predictor in exact mode, and models of torchvision and Detectron2 by name."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mrcnn_jax.config import Config, DataConfig, EvalConfig, presets
from mrcnn_jax.errors import ConfigError, WeightsError
from mrcnn_jax.inference import detector, reference_preprocessing
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.structures import Detections
from mrcnn_jax.weights import detectron2_names, reference_models, torchvision_names

pytestmark = pytest.mark.medium


@pytest.fixture
def seen(monkeypatch):
    """Replace the network by one that detects the whole image; returns the list of its inputs."""
    given = []

    def detect(images, image_sizes):
        given.append((images, image_sizes))
        corners = np.concatenate([np.zeros((1, 2)), image_sizes[:, ::-1]], axis=1).astype(np.float32)
        return Detections(
            boxes=corners[:, None],
            scores=np.ones((1, 1), np.float32),
            classes=np.ones((1, 1), np.int32),
            masks=np.ones((1, 1, 28, 28), np.float32),
            keypoints=np.zeros((1, 1, 0, 3), np.float32),
            valid=np.ones((1, 1), bool),
            truncated=np.zeros(1, bool),
        )

    monkeypatch.setattr(detector, "compile_detect", lambda model, variables: detect)
    return given


@pytest.mark.parametrize(("resize", "dtype"), [("torchvision", np.float32), ("detectron2", np.uint8)])
def test_every_image_is_processed_alone_in_the_reference_shape(seen, resize, dtype):
    config = Config(
        model=dataclasses.replace(presets.torchvision(), num_classes=2),
        data=DataConfig(shortest_edge_eval=64, longest_edge=150),
        eval=EvalConfig(resize=resize, batch_size=8),
    )
    images = [np.full((h, w, 3), 9, np.uint8) for h, w in [(50, 80), (50, 80), (90, 40), (10, 200)]]
    found = Predictor(config, {})(images)
    assert [prediction.image_size for prediction in found] == [image.shape[:2] for image in images]
    for image, prediction, (padded, size) in zip(images, found, seen, strict=True):
        expected, expected_size = reference_preprocessing.network_input(image, config)
        assert padded.dtype == dtype
        np.testing.assert_array_equal(padded, expected[None])
        assert size.tolist() == [list(expected_size)]
        np.testing.assert_allclose(prediction.boxes, [[0, 0, image.shape[1], image.shape[0]]], rtol=1e-6)


@pytest.fixture(scope="module")
def small_models():
    """For each origin a narrow model with random weights, and its state dict with the names of that origin."""

    def make(base, export):
        model = dataclasses.replace(
            base,
            num_classes=2,
            backbone=dataclasses.replace(base.backbone, name="resnet18", width=8),
            fpn=dataclasses.replace(base.fpn, channels=16),
            box=dataclasses.replace(base.box, hidden=32),
            mask=dataclasses.replace(base.mask, conv_layers=4, channels=8),
        )
        random = np.random.default_rng(0)
        shapes = variable_shapes(build_model(model))
        variables = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes)
        return model, variables, export(variables)

    return {
        "torchvision": make(presets.torchvision(), torchvision_names.export_state),
        "detectron2": make(presets.detectron2(), detectron2_names.export_state),
    }


@pytest.mark.parametrize("origin", reference_models.ORIGINS)
def test_load_a_reference_model_by_name(origin, small_models, monkeypatch):
    model, variables, state = small_models[origin]
    monkeypatch.setattr(presets, f"{origin}_model", {"small": model}.__getitem__)
    config, loaded = reference_models.load(state, origin, "small")
    assert (config.eval.resize, config.data.shortest_edge_eval, config.data.longest_edge) == (origin, 800, 1333)
    assert config.model == dataclasses.replace(model, category_ids=(1, 2))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    recipe = Config(data=DataConfig(root="here"), eval=EvalConfig(batch_size=3))
    config, _ = reference_models.load(state, origin, "small", recipe, exact=False, frozen_bn_eps=0.5)
    assert (config.eval.resize, config.eval.batch_size, config.data.root) == ("bucket", 3, "here")
    assert config.model.backbone.norm_eps == 0.5


@pytest.mark.parametrize("origin", reference_models.ORIGINS)
def test_predictors_of_reference_models(origin, seen, small_models, monkeypatch):
    model, _, state = small_models[origin]
    monkeypatch.setattr(presets, f"{origin}_model", {"small": model}.__getitem__)
    cached = []
    monkeypatch.setattr(compilation_cache, "enable", lambda: cached.append(True))
    predict = getattr(Predictor, f"from_{origin}")(state, "small")
    assert cached
    assert predict.config.eval.resize == origin
    predict([np.zeros((30, 40, 3), np.uint8)])
    assert seen[0][0].shape == (1, 800, 1088, 3)


def test_unknown_names_and_incomplete_weights_raise():
    with pytest.raises(ConfigError, match="maskrcnn_resnet50_fpn_v2"):
        Predictor.from_torchvision({}, "maskrcnn_resnet50")
    with pytest.raises(ConfigError, match="mask_rcnn_R_50_FPN"):
        Predictor.from_detectron2({}, "mask_rcnn_R_50")
    with pytest.raises(WeightsError):
        Predictor.from_detectron2({"backbone.fpn_lateral2.weight": np.zeros((256, 256, 1, 1), np.float32)})

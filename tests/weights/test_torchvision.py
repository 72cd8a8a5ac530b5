"""torchvision's names and layouts: there and back without a change, and what does not fit is listed."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig, ModelConfig
from mrcnn_jax.models.rcnn import build_model, variable_shapes
from mrcnn_jax.weights.torchvision import export_state, import_state, torchvision_name

NORMS = ("frozen_bn", "bn")


def torchvision_model(config, norm):
    """The tiny model with the pooled size that torchvision's first fully connected layer reads."""
    backbone = dataclasses.replace(config.backbone, norm=norm)
    box = BoxHeadConfig(pool_size=7, hidden=32)
    return build_model(dataclasses.replace(config, num_classes=3, backbone=backbone, box=box))


def random_variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), variable_shapes(model))


@pytest.fixture(scope="module")
def frozen_model(tiny_model_config):
    return torchvision_model(tiny_model_config, "frozen_bn")


@pytest.fixture
def state(frozen_model):
    return export_state(random_variables(frozen_model))


@pytest.mark.parametrize("norm", NORMS)
def test_there_and_back(tiny_model_config, norm):
    model = torchvision_model(tiny_model_config, norm)
    variables = random_variables(model)
    back = import_state(model, export_state(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, back)
    assert set(variables) == ({"params", "frozen"} if norm == "frozen_bn" else {"params", "batch_stats"})


def test_names_are_unique(state, frozen_model):
    assert len(state) == len(jax.tree.leaves(variable_shapes(frozen_model)))


def test_background_rows_are_zero(state):
    bias = state["roi_heads.box_predictor.bbox_pred.bias"]
    assert bias.shape == (16,)
    assert not bias[:4].any()
    assert bias[4:].all()
    assert not state["roi_heads.mask_predictor.mask_fcn_logits.weight"][0].any()


def test_golden_names_and_shapes(golden):
    """Every tensor of torchvision's maskrcnn_resnet50_fpn, and no other."""
    theirs = json.loads(golden.file("tv_keys_maskrcnn.json").read_text())
    classes = theirs["roi_heads.box_predictor.cls_score.bias"][0] - 1
    variables = variable_shapes(build_model(ModelConfig(num_classes=classes)))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    ours = {name: list(value.shape) for name, value in export_state(empty).items()}
    assert ours == {name: list(shape) for name, shape in theirs.items() if not name.endswith("num_batches_tracked")}


def test_layouts(frozen_model):
    """Where one marked weight of each kind of layer goes."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(frozen_model))
    params = zeros["params"]
    params["fpn"]["output3"]["kernel"][0, 2, 3, 4] = 1  # row, column, in, out
    params["mask_head"]["deconv"]["kernel"][0, 1, 2, 3] = 1  # row, column, in, out
    params["box_head"]["fc2"]["kernel"][3, 5] = 1  # in, out
    params["box_head"]["fc1"]["kernel"][(2 * 7 + 4) * 16 + 9, 5] = 1  # row 2, column 4, channel 9; out
    params["box_head"]["deltas"]["kernel"][6, 4 * 1 + 2] = 1  # in; the third delta of class 2
    state = export_state(zeros)
    assert state["backbone.fpn.layer_blocks.1.0.weight"][4, 3, 0, 2] == 1
    assert state["roi_heads.mask_predictor.conv5_mask.weight"][2, 3, 0, 1] == 1
    assert state["roi_heads.box_head.fc7.weight"][5, 3] == 1
    assert state["roi_heads.box_head.fc6.weight"][5, 9 * 49 + 2 * 7 + 4] == 1
    assert state["roi_heads.box_predictor.bbox_pred.weight"][4 * 2 + 2, 6] == 1
    assert sum(np.count_nonzero(value) for value in state.values()) == 5


def test_counters_of_batch_norm_are_ignored(frozen_model, state):
    state["backbone.body.bn1.num_batches_tracked"] = np.int64(7)
    import_state(frozen_model, state)


def test_everything_that_does_not_fit_is_listed(frozen_model, state):
    del state["rpn.head.cls_logits.bias"]
    del state["backbone.body.bn1.running_var"]
    state["roi_heads.keypoint_head.0.weight"] = np.zeros(3, np.float32)
    state["roi_heads.box_predictor.cls_score.weight"] = np.zeros((91, 32), np.float32)
    state["roi_heads.box_head.fc6.weight"] = np.zeros((32, 400), np.float32)
    state["backbone.body.conv1.weight"] = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="do not fit") as error:
        import_state(frozen_model, state)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines[:3] == [
        "missing: backbone.body.bn1.running_var",
        "missing: rpn.head.cls_logits.bias",
        "unexpected: roi_heads.keypoint_head.0.weight",
    ]
    assert len(lines) == 6
    for line, name in zip(
        sorted(lines[3:]),
        ("backbone.body.conv1.weight", "roi_heads.box_head.fc6.weight", "roi_heads.box_predictor.cls_score.weight"),
        strict=True,
    ):
        assert line.startswith(f"shape: {name} is ")
    assert "(91, 32)" in str(error.value)


def test_modules_that_torchvision_lacks_are_named():
    with pytest.raises(KeyError, match="torchvision has no counterpart of mask_head/extra/kernel"):
        torchvision_name(("mask_head", "extra", "kernel"))


def test_other_pooled_sizes_are_refused(tiny_model_config):
    model = build_model(dataclasses.replace(tiny_model_config, num_classes=3))
    with pytest.raises(ValueError, match="fc6 reads RoIs of 7 x 7 cells, the model's has 144 inputs"):
        export_state(random_variables(model))

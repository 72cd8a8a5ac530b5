"""torchvision's names and layouts: exact round trips, golden names, and the list of mismatches."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from mrcnn_jax.config import FPNConfig, KeypointHeadConfig, presets
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.weights.naming import architecture_of, flat_shapes, import_state
from mrcnn_jax.weights.torchvision_names import DETECTION, export_state, update_names

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def frozen_config(variant):
    return variant("frozen")


@pytest.fixture(scope="module")
def frozen_model(frozen_config):
    return build_model(frozen_config)


@pytest.fixture
def state(frozen_config, random_variables):
    return export_state(random_variables(frozen_config))


@pytest.mark.parametrize("name", ["frozen", "bn", "bottleneck", "resnext", "keypoints", "v2", "gn everywhere"])
def test_round_trip(variant, random_variables, name):
    config = variant(name)
    variables = random_variables(config)
    back = import_state(DETECTION, build_model(config), export_state(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, back)


def test_names_are_unique(state, frozen_model):
    assert len(state) == len(jax.tree.leaves(variable_shapes(frozen_model)))


def test_background_rows_are_zero(state):
    bias = state["roi_heads.box_predictor.bbox_pred.bias"]
    assert bias.shape == (16,)
    assert not bias[:4].any()
    assert bias[4:].all()
    assert not state["roi_heads.mask_predictor.mask_fcn_logits.weight"][0].any()


def v2():
    """torchvision's `maskrcnn_resnet50_fpn_v2`."""
    base = presets.torchvision()
    return replace(
        base,
        backbone=replace(base.backbone, norm="bn", frozen_stages=0),
        fpn=FPNConfig(norm="bn"),
        rpn=replace(base.rpn, conv_layers=2),
        box=replace(base.box, conv_layers=4, fc_layers=1, norm="bn"),
        mask=replace(base.mask, norm="bn"),
    )


MODELS = {
    "maskrcnn": presets.torchvision(),
    "maskrcnn_v2": v2(),
    "keypointrcnn": replace(presets.torchvision(), mask=None, keypoint=KeypointHeadConfig()),
}


@pytest.mark.parametrize("name", MODELS)
def test_golden_names_and_shapes(golden, name):
    """The exported tensors are exactly those of torchvision's model."""
    theirs = json.loads(golden.file(f"tv_keys_{name}.json").read_text())
    classes = theirs["roi_heads.box_predictor.cls_score.bias"][0] - 1
    shapes = flat_shapes(build_model(replace(MODELS[name], num_classes=classes)))
    network = architecture_of(shapes)
    names = DETECTION.names(shapes, network)
    assert len(set(names.values())) == len(names)
    zero = np.float32(0)
    ours = {names[path]: DETECTION.from_flax(path, np.broadcast_to(zero, shapes[path]), network) for path in shapes}
    wanted = {key: list(shape) for key, shape in theirs.items() if not key.endswith("num_batches_tracked")}
    assert {key: list(value.shape) for key, value in ours.items()} == wanted


def test_layouts(frozen_model):
    """The position of one marked weight in each kind of layer."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(frozen_model))
    params = zeros["params"]
    params["fpn"]["output3"]["kernel"][0, 2, 3, 4] = 1  # row, column, in, out
    params["mask_head"]["deconv"]["kernel"][0, 1, 2, 3] = 1  # row, column, in, out
    params["box_head"]["fc2"]["kernel"][3, 5] = 1  # in, out
    params["box_head"]["fc1"]["kernel"][(1 * 3 + 2) * 16 + 9, 5] = 1  # row 1, column 2, channel 9; out
    params["box_head"]["deltas"]["kernel"][6, 4 * 1 + 2] = 1  # in; the third delta of class 2
    params["box_head"]["logits"]["kernel"][6, 2] = 1  # in; class 2
    state = export_state(zeros)
    assert state["backbone.fpn.layer_blocks.1.0.weight"][4, 3, 0, 2] == 1
    assert state["roi_heads.mask_predictor.conv5_mask.weight"][2, 3, 0, 1] == 1
    assert state["roi_heads.box_head.fc7.weight"][5, 3] == 1
    assert state["roi_heads.box_head.fc6.weight"][5, 9 * 9 + 1 * 3 + 2] == 1
    assert state["roi_heads.box_predictor.bbox_pred.weight"][4 * 2 + 2, 6] == 1
    assert state["roi_heads.box_predictor.cls_score.weight"][2, 6] == 1
    assert sum(np.count_nonzero(value) for value in state.values()) == 6


def test_layout_of_keypoints(variant):
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(build_model(variant("keypoints", 1)))
    )
    zeros["params"]["keypoint_head"]["deconv"]["kernel"][3, 1, 5, 2] = 1  # row, column, in, keypoint
    zeros["params"]["keypoint_head"]["conv2"]["bias"][4] = 1
    state = export_state(zeros)
    assert state["roi_heads.keypoint_predictor.kps_score_lowres.weight"][5, 2, 3, 1] == 1
    assert state["roi_heads.keypoint_head.2.bias"][4] == 1


def test_old_names(frozen_config, frozen_model, random_variables):
    """Convolutions of the FPN, the RPN and the mask head under their first names in torchvision."""
    variables = random_variables(frozen_config)
    old = {}
    for name, value in export_state(variables).items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = name.replace("roi_heads.mask_head.0.0.", "roi_heads.mask_head.mask_fcn1.")
        for level in range(4):
            name = name.replace(f"_blocks.{level}.0.", f"_blocks.{level}.")
        old[name] = value
    assert {"rpn.head.conv.bias", "roi_heads.mask_head.mask_fcn1.weight", "backbone.fpn.layer_blocks.3.bias"} <= set(
        old
    )
    jax.tree.map(np.testing.assert_array_equal, variables, import_state(DETECTION, frozen_model, update_names(old)))


def test_counters_of_batch_norm_are_ignored(frozen_model, state):
    state["backbone.body.bn1.num_batches_tracked"] = np.int64(7)
    import_state(DETECTION, frozen_model, state)


def test_all_mismatches_are_listed(frozen_model, state):
    del state["rpn.head.cls_logits.bias"]
    del state["backbone.body.bn1.running_var"]
    state["roi_heads.keypoint_head.0.weight"] = np.zeros(3, np.float32)
    state["roi_heads.box_predictor.cls_score.weight"] = np.zeros((91, 32), np.float32)
    state["roi_heads.box_head.fc6.weight"] = np.zeros((32, 400), np.float32)
    state["backbone.body.conv1.weight"] = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="do not fit") as error:
        import_state(DETECTION, frozen_model, state)
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


def test_networks_without_a_counterpart_are_refused(variant, random_variables):
    with pytest.raises(WeightsError, match="torchvision has no counterpart of res5/block0/"):
        export_state(random_variables(variant("c4")))
    with pytest.raises(WeightsError, match=r"no class-agnostic heads: roi_heads.box_predictor.bbox_pred.bias"):
        export_state(random_variables(variant("agnostic")))

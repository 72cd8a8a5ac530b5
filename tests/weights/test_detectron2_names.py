"""Detectron2's names and layouts: every model of the zoo's kinds, there and back without a change."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from mrcnn_jax.config import AnchorConfig, FPNConfig, KeypointHeadConfig, presets
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.weights.detectron2_names import DETECTION, export_state
from mrcnn_jax.weights.naming import architecture_of, flat_shapes, import_state

pytestmark = pytest.mark.medium

VARIANTS = ["gn", "frozen", "bottleneck", "resnext", "keypoints", "v2", "gn everywhere", "agnostic", "c4", "dc5"]


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(variant, random_variables, name):
    config = variant(name)
    variables = random_variables(config)
    state = export_state(variables)
    assert all(value.flags.c_contiguous for value in state.values())
    jax.tree.map(np.testing.assert_array_equal, variables, import_state(DETECTION, build_model(config), state))


def zoo():
    """Configurations of the models with golden names, except for the number of classes."""
    base = presets.detectron2()
    one_map = AnchorConfig(((32.0, 64.0, 128.0, 256.0, 512.0),))

    def backbone(**fields):
        return replace(base, backbone=replace(base.backbone, **fields))

    return {
        "mask_rcnn_R_50_FPN": base,
        "mask_rcnn_R_101_FPN": backbone(name="resnet101"),
        "mask_rcnn_X_101_32x8d_FPN": backbone(name="resnet101", groups=32, width_per_group=8),
        "mask_rcnn_R_50_C4": replace(
            base,
            features="c4",
            anchors=one_map,
            box=replace(base.box, fc_layers=0, pool_size=14),
            mask=replace(base.mask, conv_layers=0),
        ),
        "mask_rcnn_R_50_DC5": replace(base, features="dc5", anchors=one_map),
        "mask_rcnn_R_50_FPN_gn": replace(
            backbone(norm="gn"),
            fpn=FPNConfig(norm="gn"),
            box=replace(base.box, conv_layers=4, fc_layers=1, norm="gn"),
            mask=replace(base.mask, norm="gn"),
        ),
        "mask_rcnn_R_50_FPN_cls_agnostic": replace(
            base, box=replace(base.box, class_agnostic=True), mask=replace(base.mask, class_agnostic=True)
        ),
        "keypoint_rcnn_R_50_FPN": replace(base, mask=None, keypoint=KeypointHeadConfig()),
    }


# Covered by ResNet-50 and ResNeXt-101.
RARE = {"mask_rcnn_R_101_FPN"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in zoo()])
def test_golden_names_and_shapes(golden, name):
    """The exported tensors are exactly those of Detectron2's model."""
    theirs = json.loads(golden.file(f"d2_keys_{name}.json").read_text())
    classes = theirs["roi_heads.box_predictor.cls_score.bias"][0] - 1
    shapes = flat_shapes(build_model(replace(zoo()[name], num_classes=classes)))
    network = architecture_of(shapes)
    names = DETECTION.names(shapes, network)
    assert len(set(names.values())) == len(names)
    zero = np.float32(0)
    ours = {names[path]: DETECTION.from_flax(path, np.broadcast_to(zero, shapes[path]), network) for path in shapes}
    assert {key: list(value.shape) for key, value in ours.items()} == theirs


def test_background_is_last(variant):
    """Ours is first; box deltas and masks have no background."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(build_model(variant("gn"))))
    zeros["params"]["box_head"]["logits"]["bias"][:] = [10, 1, 2, 3]
    zeros["params"]["box_head"]["deltas"]["bias"][:] = np.arange(12)
    zeros["params"]["mask_head"]["logits"]["bias"][:] = [4, 5, 6]
    state = export_state(zeros)
    assert state["roi_heads.box_predictor.cls_score.bias"].tolist() == [1, 2, 3, 10]
    assert state["roi_heads.box_predictor.bbox_pred.bias"].tolist() == list(range(12))
    assert state["roi_heads.mask_head.predictor.bias"].tolist() == [4, 5, 6]


def test_layouts(variant):
    """The position of one marked weight in each layer that differs from torchvision's."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(build_model(variant("v2"))))
    params = zeros["params"]
    params["rpn_head"]["conv2"]["kernel"][0, 2, 3, 4] = 1  # row, column, in, out
    params["box_head"]["conv3"]["kernel"][0, 1, 2, 3] = 1
    params["box_head"]["fc1"]["kernel"][(1 * 3 + 2) * 12 + 9, 5] = 1  # row 1, column 2, channel 9 of 12; out
    params["mask_head"]["deconv"]["kernel"][0, 1, 2, 3] = 1
    zeros["batch_stats"]["fpn"]["output4_norm"]["norm"]["var"][6] = 1
    state = export_state(zeros)
    assert state["proposal_generator.rpn_head.conv.conv1.weight"][4, 3, 0, 2] == 1
    assert state["roi_heads.box_head.conv3.weight"][3, 2, 0, 1] == 1
    assert state["roi_heads.box_head.fc1.weight"][5, 9 * 9 + 1 * 3 + 2] == 1
    assert state["roi_heads.mask_head.deconv.weight"][2, 3, 0, 1] == 1
    assert state["backbone.fpn_output4.norm.running_var"][6] == 1
    assert sum(np.count_nonzero(value) for value in state.values()) == 5


def test_stored_constants_are_ignored(variant, random_variables):
    config = variant("c4")
    variables = random_variables(config)
    state = export_state(variables)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((2, 4), np.float32)
    state["pixel_mean"] = state["pixel_std"] = np.ones((3, 1, 1), np.float32)
    jax.tree.map(np.testing.assert_array_equal, variables, import_state(DETECTION, build_model(config), state))


def test_all_mismatches_are_listed(variant, random_variables):
    """The weights of an FPN model do not fit a C4 model."""
    state = export_state(random_variables(variant("frozen")))
    with pytest.raises(WeightsError, match="do not fit the model") as error:
        import_state(DETECTION, build_model(variant("c4")), state)
    text = str(error.value)
    assert "missing: roi_heads.res5.0.conv1.weight" in text
    assert "unexpected: backbone.fpn_lateral2.weight" in text
    assert "shape: roi_heads.box_predictor.cls_score.weight is (4, 32), which gives (32, 4), not (64, 4)" in text


def test_integer_tensors_are_refused(variant, random_variables):
    state = export_state(random_variables(variant("gn")))
    state["backbone.fpn_lateral2.bias"] = np.zeros(16, np.int32)
    with pytest.raises(WeightsError, match=r"backbone.fpn_lateral2.bias contains int32, not floating-point numbers"):
        import_state(DETECTION, build_model(variant("gn")), state)


def test_float16_becomes_float32(variant, random_variables):
    config = variant("gn")
    halves = {name: value.astype(np.float16) for name, value in export_state(random_variables(config)).items()}
    variables = import_state(DETECTION, build_model(config), halves)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    kernel = variables["params"]["fpn"]["lateral2"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, halves["backbone.fpn_lateral2.weight"][:, :, 0, 0])

"""Conversion of Caffe2 blobs to Detectron2's tensors, with the names of the published files."""

from __future__ import annotations

import numpy as np
import pytest

from mrcnn_jax.weights import detectron2_names
from mrcnn_jax.weights.caffe2_names import to_detectron2

pytestmark = pytest.mark.medium

FPN_NAMES = {
    "conv1_w": "backbone.bottom_up.stem.conv1.weight",
    "res_conv1_bn_s": "backbone.bottom_up.stem.conv1.norm.weight",
    "res_conv1_bn_b": "backbone.bottom_up.stem.conv1.norm.bias",
    "res2_0_branch1_w": "backbone.bottom_up.res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "backbone.bottom_up.res2.0.shortcut.norm.weight",
    "res2_0_branch1_bn_b": "backbone.bottom_up.res2.0.shortcut.norm.bias",
    "res4_22_branch2a_w": "backbone.bottom_up.res4.22.conv1.weight",
    "res4_22_branch2b_w": "backbone.bottom_up.res4.22.conv2.weight",
    "res5_2_branch2c_w": "backbone.bottom_up.res5.2.conv3.weight",
    "fpn_inner_res5_2_sum_w": "backbone.fpn_lateral5.weight",
    "fpn_inner_res4_5_sum_lateral_b": "backbone.fpn_lateral4.bias",
    "fpn_res3_3_sum_w": "backbone.fpn_output3.weight",
    "conv_rpn_fpn2_b": "proposal_generator.rpn_head.conv.bias",
    "rpn_cls_logits_fpn2_w": "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_bbox_pred_fpn2_b": "proposal_generator.rpn_head.anchor_deltas.bias",
    "fc6_w": "roi_heads.box_head.fc1.weight",
    "fc7_b": "roi_heads.box_head.fc2.bias",
    "cls_score_w": "roi_heads.box_predictor.cls_score.weight",
    "bbox_pred_b": "roi_heads.box_predictor.bbox_pred.bias",
    "_[mask]_fcn4_w": "roi_heads.mask_head.mask_fcn4.weight",
    "conv5_mask_w": "roi_heads.mask_head.deconv.weight",
    "mask_fcn_logits_b": "roi_heads.mask_head.predictor.bias",
    "conv_fcn8_w": "roi_heads.keypoint_head.conv_fcn8.weight",
    "kps_score_lowres_w": "roi_heads.keypoint_head.score_lowres.weight",
}
GROUP_NORM_NAMES = {
    "conv1_gn_s": "backbone.bottom_up.stem.conv1.norm.weight",
    "res3_1_branch2b_gn_b": "backbone.bottom_up.res3.1.conv2.norm.bias",
    "fpn_inner_res4_5_sum_lateral_gn_s": "backbone.fpn_lateral4.norm.weight",
    "fpn_res2_2_sum_gn_b": "backbone.fpn_output2.norm.bias",
    "head_conv4_w": "roi_heads.box_head.conv4.weight",
    "head_conv4_gn_s": "roi_heads.box_head.conv4.norm.weight",
    "_[mask]_fcn1_gn_b": "roi_heads.mask_head.mask_fcn1.norm.bias",
    "cls_score_w": "roi_heads.box_predictor.cls_score.weight",
}
C4_NAMES = {
    "res2_0_branch2a_w": "backbone.res2.0.conv1.weight",
    "res5_0_branch2a_w": "roi_heads.res5.0.conv1.weight",
    "conv_rpn_w": "proposal_generator.rpn_head.conv.weight",
    "rpn_cls_logits_w": "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_bbox_pred_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "cls_score_w": "roi_heads.box_predictor.cls_score.weight",
}
CLASSIFIER_NAMES = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_running_mean": "stem.conv1.norm.running_mean",
    "res_conv1_bn_gamma": "stem.conv1.norm.weight",
    "res_conv1_bn_beta": "stem.conv1.norm.bias",
    "res2_0_branch1_bn_running_var": "res2.0.shortcut.norm.running_var",
    "res3_0_branch2c_bn_riv": "res3.0.conv3.norm.running_var",
    "res3_0_branch2c_bn_rm": "res3.0.conv3.norm.running_mean",
    "res5_2_branch2a_w": "res5.2.conv1.weight",
}


@pytest.mark.parametrize("names", [FPN_NAMES, GROUP_NORM_NAMES, C4_NAMES, CLASSIFIER_NAMES])
def test_names(names):
    blobs = {blob: np.full(8, number, np.float32) for number, blob in enumerate(names)}
    state = to_detectron2(blobs)
    for blob, name in names.items():
        assert state[name][0] == blobs[blob][0], (blob, name)
    added = {name for name in state if name.endswith((".running_mean", ".running_var"))} - set(names.values())
    assert set(state) - added == set(names.values())
    assert len(added) == 2 * sum(blob.endswith("_bn_s") for blob in names)


def test_background_is_moved():
    """First in all of Detectron's layers; last in Detectron2's scores, absent in its deltas and masks."""
    blobs = {
        "cls_score_b": np.arange(4),
        "bbox_pred_b": np.arange(16),
        "mask_fcn_logits_b": np.arange(4),
        "mask_fcn_logits_w": np.zeros((1, 8, 1, 1)),  # a class-agnostic mask
    }
    state = to_detectron2(blobs)
    assert state["roi_heads.box_predictor.cls_score.bias"].tolist() == [1, 2, 3, 0]
    assert state["roi_heads.box_predictor.bbox_pred.bias"].tolist() == list(range(4, 16))
    assert state["roi_heads.mask_head.predictor.bias"].tolist() == [1, 2, 3]
    assert len(state["roi_heads.mask_head.predictor.weight"]) == 1


def test_fused_batch_norm_only_scales_and_offsets():
    state = to_detectron2({"res_conv1_bn_s": np.full(3, 2.0, np.float32), "res_conv1_bn_b": np.zeros(3, np.float32)})
    variance = state["stem.conv1.norm.running_var"]
    assert not state["stem.conv1.norm.running_mean"].any()
    # One rounding of the variance, one of the sum.
    np.testing.assert_allclose(variance + np.float32(1e-5), 1, rtol=2 * np.finfo(np.float32).eps)


def test_unused_blobs_are_dropped_and_unknown_ones_kept():
    blobs = dict.fromkeys(
        ("conv1_w_momentum", "fc1000_w", "fc1000_b", "pred_w", "conv1_b", "kps_score_w", "kps_score_b", "retnet_cls_w"),
        np.zeros(2, np.float32),
    )
    assert list(to_detectron2(blobs)) == ["retnet_cls_w"]


@pytest.mark.parametrize("name", ["bottleneck", "c4", "dc5", "keypoints"])
def test_whole_networks(variant, random_variables, as_blobs, name):
    """Round trip of Detectron2's tensors through blobs; batch norms have the same effect on a number."""
    state = detectron2_names.export_state(random_variables(variant(name)))
    back = to_detectron2(as_blobs(state))
    assert set(back) == set(state)
    for tensor, value in state.items():
        if ".norm." not in tensor:
            np.testing.assert_array_equal(back[tensor], value, err_msg=tensor)
    for norm in {tensor.rpartition(".")[0] for tensor in state if ".norm." in tensor}:
        for number in (0.0, 3.0):
            # Four float32 operations on each side; numbers of a few units.
            np.testing.assert_allclose(_normalize(back, norm, number), _normalize(state, norm, number), atol=1e-4)


def _normalize(state, norm, number):
    mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    return (number - mean) / np.sqrt(var + 1e-5) * state[f"{norm}.weight"] + state[f"{norm}.bias"]

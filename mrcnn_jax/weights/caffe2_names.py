"""Conversion of Caffe2 blobs (Detectron (2018), MSRA's ImageNet ResNets) to Detectron2's state dicts.

In Detectron the background is the first class in every layer, and batch norms are fused into a scale and an offset.
Sources: Detectron at 04155a0, modeling and utils/net.py; for the names of the blobs, detectron2's
checkpoint/c2_model_loading.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from mrcnn_jax.weights.naming import StateDict

_FUSED_EPS = 1e-5  # epsilon of the batch norm: the variance of a fused one is 1 - _FUSED_EPS

# Suffix of a blob's name -> suffix of the tensor's name.
_SUFFIXES = {
    "w": "weight",
    "b": "bias",
    **dict.fromkeys(("bn_s", "bn_gamma", "gn_s"), "norm.weight"),
    **dict.fromkeys(("bn_b", "bn_beta", "gn_b"), "norm.bias"),
    **dict.fromkeys(("bn_rm", "bn_running_mean"), "norm.running_mean"),
    **dict.fromkeys(("bn_riv", "bn_running_var"), "norm.running_var"),
}
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_RPN = "proposal_generator.rpn_head."
# The RPN of Detectron's FPN models is shared by all levels and has the name of level 2.
_LAYERS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(?:res_)?conv1", "stem.conv1"),
    (r"res(\d)_(\d+)_branch(1|2a|2b|2c)", lambda m: f"res{m[1]}.{m[2]}.{_BRANCHES[m[3]]}"),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
    (r"conv_rpn(?:_fpn2)?", _RPN + "conv"),
    (r"rpn_cls_logits(?:_fpn2)?", _RPN + "objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn2)?", _RPN + "anchor_deltas"),
    (r"head_conv(\d)", r"roi_heads.box_head.conv\1"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_\[mask\]_fcn(\d)", r"roi_heads.mask_head.mask_fcn\1"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
    (r"conv_fcn(\d)", r"roi_heads.keypoint_head.conv_fcn\1"),
    (r"kps_score_lowres", "roi_heads.keypoint_head.score_lowres"),
]
_NAME = re.compile(rf"(.+?)_({'|'.join(sorted(_SUFFIXES, key=len, reverse=True))})")
# Blobs that are dropped: momentum, the classification layer, the bias of the stem (a batch norm follows), and the
# constant kernel of the bilinear upsampling of keypoints.
_UNUSED = re.compile(r".*_momentum|(fc1000|pred|kps_score)_[wb]|conv1_b")


def to_detectron2(blobs: StateDict) -> dict[str, np.ndarray]:
    """Convert blobs to a state dict with Detectron2's names, layouts and order of classes.

    A detection model gets the full names, a classifier those without the prefix of the backbone. An unknown blob keeps
    its name, so that `naming.convert_state` reports it as unexpected.
    """
    state = {}
    for blob, value in blobs.items():
        if not _UNUSED.fullmatch(blob):
            name = _tensor_name(blob)
            state[name] = _background_last(name, value)
    state |= _neutral_statistics(state, fused=[_tensor_name(blob) for blob in blobs if blob.endswith("_bn_s")])
    return _add_backbone_prefix(state) if "cls_score_w" in blobs else state


def has_fused_norms(state: StateDict) -> bool:
    """Whether `state` contains a batch norm with the neutral statistics that `to_detectron2` and Detectron2 add."""
    fused = np.float32(1 - _FUSED_EPS)
    return any(name.endswith("running_var") and bool((value == fused).all()) for name, value in state.items())


def _tensor_name(blob: str) -> str:
    if match := _NAME.fullmatch(blob):
        for pattern, name in _LAYERS:
            if layer := re.fullmatch(pattern, match[1]):
                return f"{name(layer) if callable(name) else layer.expand(name)}.{_SUFFIXES[match[2]]}"
    return blob


def _background_last(name: str, value: np.ndarray) -> np.ndarray:
    """Move the background of the class scores to the end, and remove it from box deltas and masks."""
    if ".cls_score." in name:
        return np.roll(value, -1, axis=0)
    if ".bbox_pred." in name:
        return value[4:]
    # A single mask is class-agnostic.
    return value[1:] if ".mask_head.predictor." in name and len(value) > 1 else value


def _neutral_statistics(state: StateDict, fused: list[str]) -> dict[str, np.ndarray]:
    """Mean 0 and variance 1 - epsilon for the batch norms that have no statistics."""
    missing: dict[str, np.ndarray] = {}
    for name in fused:
        zeros, prefix = np.zeros(state[name].shape, np.float32), name.removesuffix("weight")
        missing |= {f"{prefix}running_mean": zeros, f"{prefix}running_var": zeros + np.float32(1 - _FUSED_EPS)}
    return {name: value for name, value in missing.items() if name not in state}


def _add_backbone_prefix(state: StateDict) -> dict[str, np.ndarray]:
    """Add the prefix of the residual network in Detectron2's FPN, C4 (res5 in the heads) and DC5 models."""
    pyramid = any(name.startswith("backbone.fpn_") for name in state)
    shared_res5 = not pyramid and "roi_heads.box_head.fc1.weight" not in state

    def prefix(name: str) -> str:
        if not re.match(r"stem\.|res\d\.", name):
            return ""
        if name.startswith("res5.") and shared_res5:
            return "roi_heads."
        return "backbone.bottom_up." if pyramid else "backbone."

    return {prefix(name) + name: value for name, value in state.items()}

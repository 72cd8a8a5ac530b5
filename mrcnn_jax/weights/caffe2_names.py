"""Weights of Detectron (2018) and other Caffe2 "blobs" (MSRA's ImageNet ResNets among them) as Detectron2's.

Detectron has the background first everywhere, and its batch norms fused into a scale and an offset.
Sources: Detectron at 04155a0, modeling and utils/net.py; detectron2's checkpoint/c2_model_loading.py for which blob is
which layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from mrcnn_jax.weights.naming import State

_FUSED_EPS = 1e-5  # of the batch norm that is made of a fused one: its variance plus this is one

# The end of a blob's name -> the end of the tensor's.
_ENDS = {
    "w": "weight",
    "b": "bias",
    **dict.fromkeys(("bn_s", "bn_gamma", "gn_s"), "norm.weight"),
    **dict.fromkeys(("bn_b", "bn_beta", "gn_b"), "norm.bias"),
    **dict.fromkeys(("bn_rm", "bn_running_mean"), "norm.running_mean"),
    **dict.fromkeys(("bn_riv", "bn_running_var"), "norm.running_var"),
}
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_RPN = "proposal_generator.rpn_head."
# Detectron's RPN is stored as that of level 2, which the other levels share.
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
_NAME = re.compile(rf"(.+?)_({'|'.join(sorted(_ENDS, key=len, reverse=True))})")
# Blobs without a counterpart: the optimizer's, the classifier's layer, a bias of the stem that no detector uses (its
# batch norm follows), and the constant kernel of the keypoints' bilinear doubling.
_UNUSED = re.compile(r".*_momentum|(fc1000|pred|kps_score)_[wb]|conv1_b")


def to_detectron2(blobs: State) -> dict[str, np.ndarray]:
    """Blobs by their names -> a state dict of Detectron2's names, values and order of classes.

    A detection model gets the full names, a classifier those without the backbone's prefix. A blob that is not known
    keeps its name, and is then refused as unexpected.
    """
    state = {}
    for blob, value in blobs.items():
        if not _UNUSED.fullmatch(blob):
            name = _tensor_name(blob)
            state[name] = _background_last(name, value)
    state |= _unfused_statistics(state, fused=[_tensor_name(blob) for blob in blobs if blob.endswith("_bn_s")])
    return _with_prefixes(state) if "cls_score_w" in blobs else state


def has_fused_norms(state: State) -> bool:
    """Whether batch norms only scale and offset, as those that `to_detectron2` completes, or Detectron2 did."""
    fused = np.float32(1 - _FUSED_EPS)
    return any(name.endswith("running_var") and bool((value == fused).all()) for name, value in state.items())


def _tensor_name(blob: str) -> str:
    if found := _NAME.fullmatch(blob):
        for pattern, name in _LAYERS:
            if layer := re.fullmatch(pattern, found[1]):
                return f"{name(layer) if callable(name) else layer.expand(name)}.{_ENDS[found[2]]}"
    return blob


def _background_last(name: str, value: np.ndarray) -> np.ndarray:
    """Class scores with the background last; deltas and masks without it."""
    if ".cls_score." in name:
        return np.roll(value, -1, axis=0)
    if ".bbox_pred." in name:
        return value[4:]
    # One mask is a class-agnostic one.
    return value[1:] if ".mask_head.predictor." in name and len(value) > 1 else value


def _unfused_statistics(state: State, fused: list[str]) -> dict[str, np.ndarray]:
    """Mean and variance with which a batch norm does nothing but scale and offset."""
    missing: dict[str, np.ndarray] = {}
    for name in fused:
        zeros, prefix = np.zeros(state[name].shape, np.float32), name.removesuffix("weight")
        missing |= {f"{prefix}running_mean": zeros, f"{prefix}running_var": zeros + np.float32(1 - _FUSED_EPS)}
    return {name: value for name, value in missing.items() if name not in state}


def _with_prefixes(state: State) -> dict[str, np.ndarray]:
    """Put the residual network where Detectron2's models have it: FPN, C4 (res5 in the heads) or DC5."""
    pyramid = any(name.startswith("backbone.fpn_") for name in state)
    shared_res5 = not pyramid and "roi_heads.box_head.fc1.weight" not in state

    def prefix(name: str) -> str:
        if not re.match(r"stem\.|res\d\.", name):
            return ""
        if name.startswith("res5.") and shared_res5:
            return "roi_heads."
        return "backbone.bottom_up." if pyramid else "backbone."

    return {prefix(name) + name: value for name, value in state.items()}

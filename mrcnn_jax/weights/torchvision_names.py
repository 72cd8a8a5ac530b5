"""Names of torchvision's detection models and of its ResNet and ResNeXt classifiers.

torchvision has a background row in its box deltas and a background channel in its mask predictor. Neither is ever used:
they are dropped on import and written as zeros on export. The background is the first class of its scores, as in ours.
Sources: torchvision 0.29.2, models/detection (older names in rpn.py, mask_rcnn.py and
ops/feature_pyramid_network.py), models/resnet.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights import naming
from mrcnn_jax.weights.naming import Architecture, Naming, RowTransform, Rules, StateDict


def resnet_rules(prefix: str, stages: str = "backbone/") -> Rules:
    """Rules for a residual network under `prefix`; `stages` is a pattern of the path of our res2..res5."""
    block = rf"{stages}res(\d)/block(\d+)"
    return [
        (r"backbone/stem/conv", lambda: f"{prefix}conv1"),
        (r"backbone/stem/norm", lambda: f"{prefix}bn1"),
        (rf"{block}/conv(\d)", lambda stage, i, n: f"{prefix}layer{stage - 1}.{i}.conv{n}"),
        (rf"{block}/norm(\d)", lambda stage, i, n: f"{prefix}layer{stage - 1}.{i}.bn{n}"),
        (rf"{block}/shortcut", lambda stage, i: f"{prefix}layer{stage - 1}.{i}.downsample.0"),
        (rf"{block}/shortcut_norm", lambda stage, i: f"{prefix}layer{stage - 1}.{i}.downsample.1"),
    ]


def _detection_rules(network: Architecture) -> Rules:
    return [
        *resnet_rules("backbone.body."),
        (r"fpn/lateral(\d)", lambda level: f"backbone.fpn.inner_blocks.{level - 2}.0"),
        (r"fpn/lateral(\d)_norm", lambda level: f"backbone.fpn.inner_blocks.{level - 2}.1"),
        (r"fpn/output(\d)", lambda level: f"backbone.fpn.layer_blocks.{level - 2}.0"),
        (r"fpn/output(\d)_norm", lambda level: f"backbone.fpn.layer_blocks.{level - 2}.1"),
        (r"rpn_head/conv(\d)", lambda i: f"rpn.head.conv.{i - 1}.0"),
        (r"rpn_head/objectness", lambda: "rpn.head.cls_logits"),
        (r"rpn_head/deltas", lambda: "rpn.head.bbox_pred"),
        *_box_head_rules(network.box_convs),
        (r"box_head/logits", lambda: "roi_heads.box_predictor.cls_score"),
        (r"box_head/deltas", lambda: "roi_heads.box_predictor.bbox_pred"),
        (r"mask_head/conv(\d)", lambda i: f"roi_heads.mask_head.{i - 1}.0"),
        (r"mask_head/norm(\d)", lambda i: f"roi_heads.mask_head.{i - 1}.1"),
        (r"mask_head/deconv", lambda: "roi_heads.mask_predictor.conv5_mask"),
        (r"mask_head/logits", lambda: "roi_heads.mask_predictor.mask_fcn_logits"),
        (r"keypoint_head/conv(\d)", lambda i: f"roi_heads.keypoint_head.{2 * (i - 1)}"),
        (r"keypoint_head/deconv", lambda: "roi_heads.keypoint_predictor.kps_score_lowres"),
    ]


def _box_head_rules(convs: int) -> Rules:
    """Rules for fc6 and fc7, or for a sequence of `convs` blocks, a flatten layer, and fully connected layers."""
    if not convs:
        return [(r"box_head/fc(\d)", lambda i: f"roi_heads.box_head.fc{i + 5}")]
    return [
        (r"box_head/conv(\d)", lambda i: f"roi_heads.box_head.{i - 1}.0"),
        (r"box_head/norm(\d)", lambda i: f"roi_heads.box_head.{i - 1}.1"),
        (r"box_head/fc(\d)", lambda i: f"roi_heads.box_head.{convs + 2 * i - 1}"),
    ]


def _drop_rows(rows: int) -> RowTransform:
    return lambda value: value[rows:]


def _prepend_zero_rows(rows: int) -> RowTransform:
    return lambda value: np.concatenate([np.zeros((rows, *value.shape[1:]), value.dtype), value])


_BACKGROUND_ROWS = {"box_head/deltas": 4, "mask_head/logits": 1}
DETECTION = Naming(
    "torchvision",
    _detection_rules,
    import_rows={module: _drop_rows(rows) for module, rows in _BACKGROUND_ROWS.items()},
    export_rows={module: _prepend_zero_rows(rows) for module, rows in _BACKGROUND_ROWS.items()},
    class_scores="roi_heads.box_predictor.cls_score.bias",
)
# Our C4 models have the last stage outside of the backbone.
CLASSIFIER = Naming("torchvision's classifier", lambda _: resnet_rules("", "(?:backbone/)?"))

# Names of earlier versions, which the published COCO_V1 files may have. Later versions wrap each layer in a block.
_OLD_NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
]


def update_names(state: StateDict) -> dict[str, np.ndarray]:
    """Rename the tensors of a state dict of any torchvision version to the current names."""

    def update(name: str) -> str:
        for pattern, replacement in _OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    return {update(name): value for name, value in state.items()}


def export_state(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert `tree` (`{collection: ...}`, variables or gradients) to a torchvision state dict.

    Raises WeightsError if torchvision has no such model: C4, class-agnostic heads.
    """
    state = naming.export_state(DETECTION, tree)
    classes = len(state["roi_heads.box_predictor.cls_score.bias"])
    for name, size in (
        ("roi_heads.box_predictor.bbox_pred.bias", 4 * classes),
        ("roi_heads.mask_predictor.mask_fcn_logits.bias", classes),
    ):
        if name in state and len(state[name]) != size:
            raise WeightsError(f"torchvision has no class-agnostic heads: {name} would be {state[name].shape}")
    return state

"""Names of Detectron2's detection models (FPN, C4, DC5) and of its ImageNet backbones.

The background is the last class of Detectron2's class scores; its box deltas and masks have no background, like ours.
Sources: detectron2 at 02b5c4e: modeling/backbone, modeling/proposal_generator/rpn.py, modeling/roi_heads; for
classifiers, tools/convert-torchvision-to-d2.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrcnn_jax.weights import naming
from mrcnn_jax.weights.naming import Architecture, Naming, Rules


def _resnet_rules(prefix: str, stages: str = "backbone/") -> Rules:
    """Rules for a residual network under `prefix`; `stages` is a pattern of the path of our res2..res5."""
    block = rf"{stages}res(\d)/block(\d+)"
    return [
        (r"backbone/stem/conv", lambda: f"{prefix}stem.conv1"),
        (r"backbone/stem/norm", lambda: f"{prefix}stem.conv1.norm"),
        (rf"{block}/conv(\d)", lambda stage, i, n: f"{prefix}res{stage}.{i}.conv{n}"),
        (rf"{block}/norm(\d)", lambda stage, i, n: f"{prefix}res{stage}.{i}.conv{n}.norm"),
        (rf"{block}/shortcut", lambda stage, i: f"{prefix}res{stage}.{i}.shortcut"),
        (rf"{block}/shortcut_norm", lambda stage, i: f"{prefix}res{stage}.{i}.shortcut.norm"),
    ]


def _detection_rules(network: Architecture) -> Rules:
    one_conv = network.rpn_convs == 1
    return [
        *_resnet_rules("backbone.bottom_up." if network.pyramid else "backbone."),
        *_resnet_rules("roi_heads.", stages=""),
        (r"fpn/lateral(\d)", lambda level: f"backbone.fpn_lateral{level}"),
        (r"fpn/lateral(\d)_norm", lambda level: f"backbone.fpn_lateral{level}.norm"),
        (r"fpn/output(\d)", lambda level: f"backbone.fpn_output{level}"),
        (r"fpn/output(\d)_norm", lambda level: f"backbone.fpn_output{level}.norm"),
        (r"rpn_head/conv(\d)", lambda i: "proposal_generator.rpn_head.conv" + ("" if one_conv else f".conv{i - 1}")),
        (r"rpn_head/objectness", lambda: "proposal_generator.rpn_head.objectness_logits"),
        (r"rpn_head/deltas", lambda: "proposal_generator.rpn_head.anchor_deltas"),
        (r"box_head/conv(\d)", lambda i: f"roi_heads.box_head.conv{i}"),
        (r"box_head/norm(\d)", lambda i: f"roi_heads.box_head.conv{i}.norm"),
        (r"box_head/fc(\d)", lambda i: f"roi_heads.box_head.fc{i}"),
        (r"box_head/logits", lambda: "roi_heads.box_predictor.cls_score"),
        (r"box_head/deltas", lambda: "roi_heads.box_predictor.bbox_pred"),
        (r"mask_head/conv(\d)", lambda i: f"roi_heads.mask_head.mask_fcn{i}"),
        (r"mask_head/norm(\d)", lambda i: f"roi_heads.mask_head.mask_fcn{i}.norm"),
        (r"mask_head/deconv", lambda: "roi_heads.mask_head.deconv"),
        (r"mask_head/logits", lambda: "roi_heads.mask_head.predictor"),
        (r"keypoint_head/conv(\d)", lambda i: f"roi_heads.keypoint_head.conv_fcn{i}"),
        (r"keypoint_head/deconv", lambda: "roi_heads.keypoint_head.score_lowres"),
    ]


# Constants that some versions store: pixel statistics (see `preprocessing`) and anchors.
_CONSTANTS = re.compile(r"num_batches_tracked$|^pixel_(mean|std)$|\.cell_anchors\.\d+$")
DETECTION = Naming(
    "Detectron2",
    _detection_rules,
    import_rows={"box_head/logits": lambda value: np.roll(value, 1, axis=0)},
    export_rows={"box_head/logits": lambda value: np.roll(value, -1, axis=0)},
    ignored=_CONSTANTS,
    class_scores="roi_heads.box_predictor.cls_score.bias",
)
# Our C4 models have the last stage outside of the backbone. `stem.fc`, `linear`: the classification layer.
CLASSIFIER = Naming(
    "Detectron2's classifier",
    lambda _: _resnet_rules("", "(?:backbone/)?"),
    ignored=re.compile(r"num_batches_tracked$|^(stem\.fc|linear)\."),
)


def export_state(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert `tree` (`{collection: ...}`, variables or gradients) to a Detectron2 state dict."""
    return naming.export_state(DETECTION, tree)

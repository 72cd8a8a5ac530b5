"""Settings of the torchvision reference runs, read from the README of the arrays."""

from __future__ import annotations

import re
from dataclasses import replace

from mrcnn_jax.config import ModelConfig

NAMES = {
    "maskrcnn": "maskrcnn_resnet50_fpn",
    "maskrcnn_v2": "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn": "keypointrcnn_resnet50_fpn",
}
TAKE_ALL = 10**6


def stated(readme: str, name: str) -> float:
    """Return a number from the README."""
    found = re.search(rf"{re.escape(name)}[ =]([\d.]+)", readme)
    assert found, f"the README.md of the arrays does not state {name!r}"
    return float(found[1].rstrip("."))


def configured(base: ModelConfig, readme: str) -> ModelConfig:
    """`base` with the top-k values and thresholds of the reference runs; all anchors and RoIs are taken."""
    return replace(
        base,
        rpn=replace(
            base.rpn,
            batch_size=TAKE_ALL,
            pre_nms_top_k_train=int(stated(readme, "rpn_pre")),
            post_nms_top_k_train=int(stated(readme, "rpn_post")),
            pre_nms_top_k_test=int(stated(readme, "rpn_pre_nms_top_n")),
            post_nms_top_k_test=int(stated(readme, "rpn_post_nms_top_n")),
        ),
        roi=replace(base.roi, batch_size=TAKE_ALL, positive_iou=stated(readme, "box fg/bg IoU thresholds")),
        box=replace(
            base.box,
            score_threshold=stated(readme, "box_score_thresh"),
            nms_iou=stated(readme, "box_nms"),
            max_detections=int(stated(readme, "box_detections_per_img")),
        ),
    )

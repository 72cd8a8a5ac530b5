"""Mask R-CNN R101-FPN on COCO 2017 with Detectron's 2x schedule at one scale.

Published: box AP 40.9, mask AP 36.4 (Detectron model zoo, minival; 8 P100).
In the paper: mask AP 35.4 (table 2a, minival), 160,000 steps.
Losses, ROIAlign and anchors are Detectron2's; Detectron has smooth L1, unaligned bins and rounded anchors.
Training: batch size 16, SGD 0.02, 180,000 steps, / 10 at 120,000 and 160,000; shortest edge 800.
Status: not trained here. Tests compare the network, that of mask_rcnn_r101_fpn_3x, with Detectron2.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-101`.
Command: `mrcnn train --config=mask_rcnn_r101_fpn_2x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    config = presets.coco("mask_rcnn_r101_fpn_2x", presets.detectron2(presets.RESNET101), "2x", init="zoo:R-101")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shortest_edge_train=(800,)))

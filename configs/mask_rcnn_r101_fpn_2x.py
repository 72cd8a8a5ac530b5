"""Mask R-CNN R101-FPN on COCO 2017, 2x schedule at one scale, as Detectron (2018) trained it.

Published: box AP 40.9, mask AP 36.4 (Detectron's model zoo, minival; 8 P100).
The paper: mask AP 35.4 (table 2a, minival), 160,000 steps.
Losses, ROIAlign and anchors are Detectron2's here; Detectron had smooth L1, unaligned bins and rounded anchors.
Training: batch 16, SGD .02, 180,000 steps, / 10 at 120,000 and 160,000; shorter side 800.
By us: the network of mask_rcnn_r101_fpn_3x, which the tests compare with Detectron2's own run. Not trained.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/mask_rcnn_r101_fpn_2x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    config = presets.coco("mask_rcnn_r101_fpn_2x", presets.detectron2(presets.RESNET101), "2x")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shortest_edge_train=(800,)))

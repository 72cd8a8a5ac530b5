"""Mask R-CNN X101-64x4d-FPN on COCO 2017: the paper's ResNeXt with Detectron's 1x schedule.

Published: box AP 42.4, mask AP 37.5 (Detectron model zoo, minival; 8 P100 with one image each).
In the paper: mask AP 36.7 (table 2a, minival).
Losses, ROIAlign and anchors are Detectron2's; Detectron has smooth L1, unaligned bins and rounded anchors.
Training: batch size 8, SGD 0.01, 180,000 steps, / 10 at 120,000 and 160,000; shortest edge 800.
Status: not trained here. Tests count the parameters and run a training step of a small version.
Initial weights (`init`): Detectron's ImageNet weights, `zoo:X-101-64x4d`, with Detectron's pixel means.
Command: `mrcnn train --config=mask_rcnn_x101_64x4d_fpn_1x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    config = presets.coco(
        "mask_rcnn_x101_64x4d_fpn_1x", presets.detectron2(presets.RESNEXT101_64X4D), "2x", init="zoo:X-101-64x4d"
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, shortest_edge_train=(800,)),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.01),
        train=dataclasses.replace(config.train, batch_size=8),
    )

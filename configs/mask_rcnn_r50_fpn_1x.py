"""Mask R-CNN R50-FPN on COCO 2017 with Detectron2's settings and 1x schedule.

Published: box AP 38.6, mask AP 35.2 (Detectron2 model zoo, val2017; 8 V100, 0.261 s/step, 3.4 GB per GPU).
In the paper: mask AP 33.6 (table 2a, minival).
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_1x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_1x", presets.detectron2(), "1x", init="zoo:R-50")

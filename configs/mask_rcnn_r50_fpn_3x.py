"""Mask R-CNN R50-FPN on COCO 2017 with Detectron2's settings and 3x schedule.

Published: box AP 41.0, mask AP 37.2 (Detectron2 model zoo, val2017; 8 V100, 0.261 s/step, 3.4 GB per GPU).
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_3x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_3x", presets.detectron2(), "3x", init="zoo:R-50")

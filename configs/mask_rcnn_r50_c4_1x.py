"""Mask R-CNN R50-C4 on COCO 2017: res4 features with res5 in the heads. Detectron2's settings and 1x schedule.

Published: box AP 36.8, mask AP 32.2 (Detectron2 model zoo, val2017; 8 V100, 0.584 s/step, 5.2 GB per GPU).
In the paper: mask AP 30.3 (table 2a, minival), with 64 RoIs per image and 300 test proposals.
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`, including res5.
Command: `mrcnn train --config=mask_rcnn_r50_c4_1x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_c4_1x", presets.detectron2(features="c4"), "1x", init="zoo:R-50")

"""Mask R-CNN R50-DC5 on COCO 2017: one map of stride 16 from a dilated res5. Detectron2's flavor, 1x.

Published: box AP 38.3, mask AP 34.2 (Detectron2's zoo, val2017; 8 V100, .471 s a step, 6.5 GB each).
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/mask_rcnn_r50_dc5_1x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_dc5_1x", presets.detectron2(features="dc5"), "1x")

"""Mask R-CNN R50-FPN on COCO 2017, Detectron2's flavor and 3x schedule.

Published: box AP 41.0, mask AP 37.2 (Detectron2's zoo, val2017; 8 V100, .261 s a step, 3.4 GB each).
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/mask_rcnn_r50_fpn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_3x", presets.detectron2(), "3x")

"""Mask R-CNN R101-FPN on COCO 2017, Detectron2's flavor and 3x schedule.

Published: box AP 42.9, mask AP 38.6 (Detectron2's zoo, val2017; 8 V100, .340 s a step, 4.6 GB each).
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/mask_rcnn_r101_fpn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r101_fpn_3x", presets.detectron2(presets.RESNET101), "3x")

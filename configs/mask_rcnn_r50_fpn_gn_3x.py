"""Mask R-CNN R50-FPN with group norm (Wu and He 2018) on COCO 2017, Detectron2's flavor and 3x schedule.

Published: box AP 42.6, mask AP 38.6 (Detectron2's zoo, val2017; 8 V100, .356 s a step, 7.3 GB each).
The norm is in pyramid and heads, too, and the box head has four convolutions and one layer.
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): Detectron's R-50-GN.pkl (ImageNet). Stem and res2 stay as they are.
Command: `python train.py --config=configs/mask_rcnn_r50_fpn_gn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_gn_3x", presets.detectron2_normed("gn"), "3x")

"""Mask R-CNN X101-32x8d-FPN on COCO 2017: a ResNeXt. Detectron2's flavor and 3x schedule.

Published: box AP 44.3, mask AP 39.5 (Detectron2's zoo, val2017; 8 V100, .690 s a step, 7.2 GB each).
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): Detectron2's X-101-32x8d.pkl (ImageNet, Caffe2; pixels scaled by their std).
Command: `python train.py --config=configs/mask_rcnn_x101_32x8d_fpn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.detectron2(presets.RESNEXT101_32X8D, pixel_std=presets.RESNEXT_STD)
    return presets.coco("mask_rcnn_x101_32x8d_fpn_3x", model, "3x")

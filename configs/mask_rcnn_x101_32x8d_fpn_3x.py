"""Mask R-CNN X101-32x8d-FPN on COCO 2017, with a ResNeXt backbone. Detectron2's settings and 3x schedule.

Published: box AP 44.3, mask AP 39.5 (Detectron2 model zoo, val2017; 8 V100, 0.690 s/step, 7.2 GB per GPU).
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): Detectron2's ImageNet weights, `zoo:X-101-32x8d` (Caffe2; pixels are divided by their std).
Command: `mrcnn train --config=mask_rcnn_x101_32x8d_fpn_3x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.detectron2(presets.RESNEXT101_32X8D, pixel_std=presets.RESNEXT_STD)
    return presets.coco("mask_rcnn_x101_32x8d_fpn_3x", model, "3x", init="zoo:X-101-32x8d")

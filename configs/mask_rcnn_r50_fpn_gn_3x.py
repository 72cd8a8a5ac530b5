"""Mask R-CNN R50-FPN with group norm (Wu and He 2018) on COCO 2017 with Detectron2's settings and 3x schedule.

Published: box AP 42.6, mask AP 38.6 (Detectron2 model zoo, val2017; 8 V100, 0.356 s/step, 7.3 GB per GPU).
FPN and heads are normalized, too; the box head has four convolutions and one fully connected layer.
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): Detectron's ImageNet weights, `zoo:R-50-GN`. Stem and res2 are frozen.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_gn_3x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_gn_3x", presets.detectron2_normed("gn"), "3x", init="zoo:R-50-GN")

"""Mask R-CNN R50-FPN with synchronized batch norm on COCO 2017 with Detectron2's settings and 3x schedule.

Published: box AP 41.9, mask AP 37.8 (Detectron2 model zoo, val2017; 8 V100, 0.371 s/step, 5.5 GB per GPU).
FPN and heads are normalized, too. Detectron2 recomputes the statistics over 200 batches at the end,
unlike this project.
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800.
Status: not trained here. Tests run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`. Stem and res2 are frozen.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_syncbn_3x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_syncbn_3x", presets.detectron2_normed("sync_bn"), "3x", init="zoo:R-50")

"""Mask R-CNN R50-DC5 on COCO 2017: stride-16 features of a dilated res5. Detectron2's settings and 1x schedule.

Published: box AP 38.3, mask AP 34.2 (Detectron2 model zoo, val2017; 8 V100, 0.471 s/step, 6.5 GB per GPU).
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=mask_rcnn_r50_dc5_1x --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_dc5_1x", presets.detectron2(features="dc5"), "1x", init="zoo:R-50")

"""Faster R-CNN R50-FPN on COCO 2017, Detectron2's flavor and 1x schedule: Mask R-CNN without the mask head.

Published: box AP 37.9 (Detectron2's zoo, val2017; 8 V100, .210 s a step, 3.0 GB each).
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800.
By us: not trained. The tests compare what it shares with Mask R-CNN, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/faster_rcnn_r50_fpn_1x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = dataclasses.replace(presets.detectron2(), mask=None)
    return presets.coco("faster_rcnn_r50_fpn_1x", model, "1x")

"""Keypoint R-CNN R101-FPN on COCO 2017's persons, Detectron2's flavor and 3x schedule.

Published: box AP 56.4, keypoint AP 66.1 (Detectron2's zoo, val2017; 8 V100, .390 s a step, 6.1 GB each).
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800. Persons only, images
with a labeled keypoint.
By us: not trained. The tests compare its backbone and its heads with Detectron2's own runs, and take a step of it,
small.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/keypoint_rcnn_r101_fpn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.with_keypoints(dataclasses.replace(presets.detectron2(presets.RESNET101), mask=None))
    return presets.coco("keypoint_rcnn_r101_fpn_3x", model, "3x")

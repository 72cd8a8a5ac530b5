"""Keypoint R-CNN R50-FPN on COCO 2017's persons, Detectron2's flavor and 3x schedule.

Published: box AP 55.4, keypoint AP 65.5 (Detectron2's zoo, val2017; 8 V100, .316 s a step, 5.0 GB each).
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800. Persons only, images
with a labeled keypoint.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/keypoint_rcnn_r50_fpn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.with_keypoints(dataclasses.replace(presets.detectron2(), mask=None))
    return presets.coco("keypoint_rcnn_r50_fpn_3x", model, "3x")

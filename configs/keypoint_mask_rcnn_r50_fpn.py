"""Boxes, masks and keypoints of COCO 2017's persons in one network, R50-FPN: the paper's human pose estimation.

Published: box AP 52.0, mask AP 45.1, keypoint AP 64.7 (the paper, table 5, minival).
On test-dev keypoint AP 63.1 (table 4). The paper names 90,000 steps for it, and no hardware; settings here are
Detectron2's.
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800. Persons only, images with
a labeled keypoint.
By us: not trained. The tests compare each of its heads with Detectron2's own runs, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/keypoint_mask_rcnn_r50_fpn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("keypoint_mask_rcnn_r50_fpn", presets.with_keypoints(presets.detectron2()), "1x")

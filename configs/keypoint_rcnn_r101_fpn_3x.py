"""Keypoint R-CNN R101-FPN on the persons of COCO 2017 with Detectron2's settings and 3x schedule.

Published: box AP 56.4, keypoint AP 66.1 (Detectron2 model zoo, val2017; 8 V100, 0.390 s/step, 6.1 GB per GPU).
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800. Only persons, and
images with a labeled keypoint.
Status: not trained here. Tests compare backbone and heads with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-101`.
Command: `mrcnn train --config=keypoint_rcnn_r101_fpn_3x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.with_keypoints(dataclasses.replace(presets.detectron2(presets.RESNET101), mask=None))
    return presets.coco("keypoint_rcnn_r101_fpn_3x", model, "3x", init="zoo:R-101")

"""Keypoint R-CNN R50-FPN on the persons of COCO 2017 with Detectron2's settings and 1x schedule.

Published: box AP 53.6, keypoint AP 64.0 (Detectron2 model zoo, val2017; 8 V100, 0.315 s/step, 5.0 GB per GPU).
In the paper: box AP 50.7, keypoint AP 64.2 (table 5, minival), 90,000 steps.
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800. Only persons, and
images with a labeled keypoint.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=keypoint_rcnn_r50_fpn_1x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.with_keypoints(dataclasses.replace(presets.detectron2(), mask=None))
    return presets.coco("keypoint_rcnn_r50_fpn_1x", model, "1x", init="zoo:R-50")

"""Keypoint R-CNN R50-FPN on the persons of COCO 2017 with Detectron2's settings and 3x schedule.

Published: box AP 55.4, keypoint AP 65.5 (Detectron2 model zoo, val2017; 8 V100, 0.316 s/step, 5.0 GB per GPU).
Training: batch size 16, SGD 0.02, 270,000 steps, / 10 at 210,000 and 250,000; shortest edge 640..800. Only persons, and
images with a labeled keypoint.
Status: not trained here. Tests compare the network with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=keypoint_rcnn_r50_fpn_3x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = presets.with_keypoints(dataclasses.replace(presets.detectron2(), mask=None))
    return presets.coco("keypoint_rcnn_r50_fpn_3x", model, "3x", init="zoo:R-50")

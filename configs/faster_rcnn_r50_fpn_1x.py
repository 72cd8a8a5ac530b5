"""Faster R-CNN R50-FPN on COCO 2017 with Detectron2's settings and 1x schedule: Mask R-CNN without the mask head.

Published: box AP 37.9 (Detectron2 model zoo, val2017; 8 V100, 0.210 s/step, 3.0 GB per GPU).
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800.
Status: not trained here. Tests compare the shared parts with Mask R-CNN and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=faster_rcnn_r50_fpn_1x --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    model = dataclasses.replace(presets.detectron2(), mask=None)
    return presets.coco("faster_rcnn_r50_fpn_1x", model, "1x", init="zoo:R-50")

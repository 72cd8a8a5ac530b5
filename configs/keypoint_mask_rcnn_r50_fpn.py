"""Mask R-CNN with a keypoint head, R50-FPN, on the persons of COCO 2017: the paper's human pose estimation.

Published: box AP 52.0, mask AP 45.1, keypoint AP 64.7 (the paper, table 5, minival).
Keypoint AP on test-dev: 63.1 (table 4). The paper trains 90,000 steps; all other settings are Detectron2's.
Training: batch size 16, SGD 0.02, 90,000 steps, / 10 at 60,000 and 80,000; shortest edge 640..800. Only persons, and
images with a labeled keypoint.
Status: not trained here. Tests compare each head with Detectron2 and run a training step of a small version.
Initial weights (`init`): MSRA's ImageNet weights, `zoo:R-50`.
Command: `mrcnn train --config=keypoint_mask_rcnn_r50_fpn --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco(
        "keypoint_mask_rcnn_r50_fpn", presets.with_keypoints(presets.detectron2()), "1x", init="zoo:R-50"
    )

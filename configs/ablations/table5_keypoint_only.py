"""Boxes, masks and keypoints of persons together: Mask R-CNN, keypoint-only, R50-FPN, on COCO 2017's persons.

Published: box AP 50.7; keypoint AP 64.2 (the paper, table 5, minival).
Boxes and keypoints.
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800. Images with a labelled
keypoint.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table5_keypoint_only.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 5 --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("5", "keypoint_only")

"""RoIAlign for keypoints: RoIAlign, R50-FPN, on COCO 2017's persons.

Published: keypoint AP 64.2, AP50 86.6, AP75 69.7, APm 58.7, APl 73.0 (the paper, table 6, minival).
Nothing is rounded.
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800. Images with a labelled
keypoint.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table6_roi_align.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 6 --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("6", "roi_align")

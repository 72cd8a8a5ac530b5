"""RoIAlign for keypoints: RoIPool, R50-FPN, on COCO 2017's persons.

Published: keypoint AP 59.8, AP50 86.2, AP75 66.7, APm 55.1, APl 67.4 (the paper, table 6, minival).
RoIs and bins are rounded to whole cells.
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800. Images with a labelled
keypoint.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table6_roi_pool.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 6 --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("6", "roi_pool")

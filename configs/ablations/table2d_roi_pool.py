"""RoIAlign with large strides: RoIPool, R50-C5, on COCO 2017.

Published: mask AP 23.6, AP50 46.5, AP75 21.6; box AP 28.2, AP50 52.7, AP75 26.9 (the paper, table 2d, minival).
RoIs are rounded to whole cells of 32 pixels.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table2d_roi_pool.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2d --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2d", "roi_pool")

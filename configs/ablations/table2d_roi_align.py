"""RoIAlign with large strides: RoIAlign, R50-C5, on COCO 2017.

Published: mask AP 30.9, AP50 51.8, AP75 32.1; box AP 34.0, AP50 55.3, AP75 36.4 (the paper, table 2d, minival).
Nothing is rounded, at cells of 32 pixels.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table2d_roi_align.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2d --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2d", "roi_align")

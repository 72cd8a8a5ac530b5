"""Backbones compared: ResNet-101-FPN, on COCO 2017.

Published: mask AP 35.4, AP50 57.3, AP75 37.5 (the paper, table 2a, minival).
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/ablations/table2a_r101_fpn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2a --data=COCO --init=R50=FILE --init=R101=FILE
--init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2a", "r101_fpn")

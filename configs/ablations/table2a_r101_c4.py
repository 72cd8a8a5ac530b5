"""Backbones compared: ResNet-101-C4, on COCO 2017.

Published: mask AP 32.7, AP50 54.2, AP75 34.3 (the paper, table 2a, minival).
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl); it gives res5, too.
Command: `python train.py --config=configs/ablations/table2a_r101_c4.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2a --data=COCO --init=R50=FILE --init=R101=FILE
--init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2a", "r101_c4")

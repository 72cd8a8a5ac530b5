"""The mask head's layers: FCN, conv, R50-FPN, on COCO 2017.

Published: mask AP 33.6, AP50 55.2, AP75 35.3 (the paper, table 2e, minival).
Four convolutions of 256, a transposed one, and the masks: the usual Mask R-CNN.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table2e_fcn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2e --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2e", "fcn")

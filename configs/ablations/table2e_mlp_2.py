"""The mask head's layers: MLP, fc, R50-FPN, on COCO 2017.

Published: mask AP 31.5, AP50 53.7, AP75 32.8 (the paper, table 2e, minival).
Two fully connected layers of 1024 before the 28 x 28 masks, in place of convolutions.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl).
Command: `python train.py --config=configs/ablations/table2e_mlp_2.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2e --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2e", "mlp_2")

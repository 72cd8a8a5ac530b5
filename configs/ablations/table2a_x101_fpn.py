"""Backbones compared: ResNeXt-101-FPN, on COCO 2017.

Published: mask AP 36.7, AP50 59.5, AP75 38.9 (the paper, table 2a, minival).
Training: batch 8, SGD .01, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): Detectron's X-101-64x4d.pkl (ImageNet; it sets Detectron's pixel means).
Command: `python train.py --config=configs/ablations/table2a_x101_fpn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2a --data=COCO --init=R50=FILE --init=R101=FILE
--init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2a", "x101_fpn")

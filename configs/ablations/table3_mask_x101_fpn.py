"""What the mask head does for boxes: Mask R-CNN, ResNeXt-101-FPN, on COCO 2017.

Published: box AP 39.8, AP50 62.3, AP75 43.4 (the paper, table 3, test-dev).
With masks, and a ResNeXt-101-64x4d.
Training: batch 8, SGD .01, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): Detectron's X-101-64x4d.pkl (ImageNet; it sets Detectron's pixel means).
Command: `python train.py --config=configs/ablations/table3_mask_x101_fpn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 3 --data=COCO --init=R101=FILE --init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("3", "mask_x101_fpn")

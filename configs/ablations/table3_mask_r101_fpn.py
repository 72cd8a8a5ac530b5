"""What the mask head does for boxes: Mask R-CNN, ResNet-101-FPN, on COCO 2017.

Published: box AP 38.2, AP50 60.3, AP75 41.7 (the paper, table 3, test-dev).
The same boxes, learnt together with masks.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/ablations/table3_mask_r101_fpn.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 3 --data=COCO --init=R101=FILE --init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("3", "mask_r101_fpn")

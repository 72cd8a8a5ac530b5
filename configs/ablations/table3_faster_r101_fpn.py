"""What the mask head does for boxes: Faster R-CNN, RoIAlign, ResNet-101-FPN, on COCO 2017.

Published: box AP 37.3, AP50 59.6, AP75 40.3 (the paper, table 3, test-dev).
Faster R-CNN with RoIAlign: no masks are learnt.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-101, in Detectron2's file or Detectron's (R-101.pkl).
Command: `python train.py --config=configs/ablations/table3_faster_r101_fpn.py --config.data.root=COCO
--config.init=FILE --workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 3 --data=COCO --init=R101=FILE
--init=X101=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("3", "faster_r101_fpn")

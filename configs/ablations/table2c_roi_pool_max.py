"""What RoIAlign is worth: RoIPool, max, R50-C4, on COCO 2017.

Published: mask AP 26.9, AP50 48.8, AP75 26.4 (the paper, table 2c, minival).
RoIs and bins are rounded to whole cells; a bin is its largest cell.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl); it gives res5, too.
Command: `python train.py --config=configs/ablations/table2c_roi_pool_max.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2c --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2c", "roi_pool_max")

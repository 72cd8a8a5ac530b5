"""What RoIAlign is worth: RoIWarp, max, R50-C4, on COCO 2017.

Published: mask AP 27.2, AP50 49.2, AP75 27.1 (the paper, table 2c, minival).
RoIs are rounded to whole cells, bins are not; a bin is the largest of four bilinear samples.
Training: batch 16, SGD .02, 160,000 steps, / 10 at 120,000; shorter side 800.
Differs: the RPN is trained together with the rest. docs/paper.md has what else.
By us: not trained.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl); it gives res5, too.
Command: `python train.py --config=configs/ablations/table2c_roi_warp_max.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`, or with the other rows `python -m mrcnn_jax.ablate 2c --data=COCO --init=FILE`.
"""

from mrcnn_jax import ablations
from mrcnn_jax.config import Config


def get_config() -> Config:
    return ablations.coco.row("2c", "roi_warp_max")

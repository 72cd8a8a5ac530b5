"""Mask R-CNN R50-FPN with batch norm over all devices on COCO 2017, Detectron2's flavor and 3x schedule.

Published: box AP 41.9, mask AP 37.8 (Detectron2's zoo, val2017; 8 V100, .371 s a step, 5.5 GB each).
The norm is in pyramid and heads, too. Detectron2 recomputes the statistics of 200 batches at the end; this does not.
Training: batch 16, SGD .02, 270,000 steps, / 10 at 210,000 and 250,000; shorter side 640..800.
By us: not trained. The tests take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl). Stem and res2 stay as
they are.
Command: `python train.py --config=configs/mask_rcnn_r50_fpn_syncbn_3x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_fpn_syncbn_3x", presets.detectron2_normed("sync_bn"), "3x")

"""Mask R-CNN R50-C4 on COCO 2017: features of res4, res5 as the head. Detectron2's flavor and 1x schedule.

Published: box AP 36.8, mask AP 32.2 (Detectron2's zoo, val2017; 8 V100, .584 s a step, 5.2 GB each).
The paper: mask AP 30.3 (table 2a, minival), with 64 RoIs an image and 300 proposals at test.
Training: batch 16, SGD .02, 90,000 steps, / 10 at 60,000 and 80,000; shorter side 640..800.
By us: not trained. The tests compare the network with Detectron2's own run, and take a step of it, small.
Initial weights (`init`): MSRA's ImageNet R-50, in Detectron2's file or Detectron's (R-50.pkl); it gives res5, too.
Command: `python train.py --config=configs/mask_rcnn_r50_c4_1x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax.config import Config, presets


def get_config() -> Config:
    return presets.coco("mask_rcnn_r50_c4_1x", presets.detectron2(features="c4"), "1x")

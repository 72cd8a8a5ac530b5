"""Mask R-CNN R50-FPN on COCO 2017 from random weights with large-scale jitter, Detectron2's new baseline of 100 epochs.

Published: box AP 44.6, mask AP 40.3 (Detectron2's zoo, new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ, val2017; mixed
precision).
Training: batch 64, SGD .1, weight decay 4e-5, 184,375 steps, / 10 at 163,889 and 177,546; images at .1 to 2 times what
fills 1024x1024, cut or padded to that. SyncBN everywhere, nothing frozen, two convolutions in the RPN.
Differs: float32 (`model.compute_dtype`); the padding is not part of the picture; evaluation is in the one bucket, where
480x640 becomes 768x1024 instead of 800x1067 (`eval.resize=detectron2` for Detectron2's, a compilation for each shape).
By us: not trained. The tests take a step of the network, small.
Initial weights (`init`): none; nothing is frozen.
Command: `python train.py --config=configs/mask_rcnn_r50_fpn_lsj.py --config.data.root=COCO --workdir=DIR`.
"""

import dataclasses

from mrcnn_jax.config import AugmentConfig, Config, DataConfig, OptimizerConfig, TrainConfig, presets


def get_config() -> Config:
    model = presets.detectron2_normed("sync_bn")
    backbone = dataclasses.replace(model.backbone, frozen_stages=0)
    rpn = dataclasses.replace(model.rpn, conv_layers=2)
    warmup = {"warmup_steps": 500, "warmup_factor": 0.067}
    milestones = (163_889, 177_546)
    return Config(
        "mask_rcnn_r50_fpn_lsj",
        model=dataclasses.replace(model, backbone=backbone, rpn=rpn),
        data=DataConfig(buckets=((1024, 1024),), augment=AugmentConfig(scale_jitter=(0.1, 2.0)), workers=4),
        optimizer=OptimizerConfig("sgd", 0.1, weight_decay=4e-5, milestones=milestones, **warmup),
        train=TrainConfig(steps=184_375, batch_size=64),
    )

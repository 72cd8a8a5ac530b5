"""Mask R-CNN R50-FPN on COCO 2017 from random weights with large-scale jitter: Detectron2's new baseline, 100 epochs.

Published: box AP 44.6, mask AP 40.3 (Detectron2 model zoo, new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ, val2017; mixed
precision).
Training: batch size 64, SGD 0.1, weight decay 4e-5, 184,375 steps, / 10 at 163,889 and 177,546; images at 0.1 to 2
times the size that fills 1024x1024, cropped or padded to it. SyncBN in all parts, no frozen layers, two convolutions in
the RPN.
Differences: float32 (`model.compute_dtype`); padding is excluded from the image; evaluation uses the bucket, where
480x640 becomes 768x1024 instead of 800x1067 (`eval.resize=detectron2`: as in Detectron2, one compilation per shape).
Status: not trained here. Tests run a training step of a small version.
Initial weights (`init`): none; no layer is frozen.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_lsj --config.data.root=COCO --workdir=DIR`.
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

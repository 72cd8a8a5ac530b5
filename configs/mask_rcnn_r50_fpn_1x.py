"""Mask R-CNN R50-FPN on COCO 2017, Detectron2's flavour and 1x schedule.

Corresponds to Detectron2's mask_rcnn_R_50_FPN_1x: box AP 38.6, mask AP 35.2 on val2017 (its model zoo; trained there on
8 V100 at 0.261 s an iteration). Not trained by us yet. Batch 16, SGD 0.02, 90,000 steps, shortest edge 640..800.
Initial weights (`init`): an ImageNet R-50 of MSRA's kind: BGR, unscaled pixels, stride in the first 1 x 1 convolution.
What `init` can read so far: docs/recipes.md.
Command: `python train.py --config=configs/mask_rcnn_r50_fpn_1x.py --config.data.root=COCO --config.init=FILE
--workdir=DIR`.
"""

from mrcnn_jax import presets
from mrcnn_jax.config import Config, DataConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        "mask_rcnn_r50_fpn_1x",
        model=presets.detectron2(),
        data=DataConfig(workers=4),
        optimizer=OptimizerConfig("sgd", 0.02, momentum=0.9, weight_decay=1e-4, milestones=(60_000, 80_000)),
        train=TrainConfig(steps=90_000, batch_size=16),
    )

"""Keypoint R-CNN, ResNet-18-FPN, on synthetic stick figures with 17 keypoints, from random weights.

Data: the synthetic dataset `people` (192-pixel images), written to data.root in COCO format by the first run.
Hardware, time and accuracy: docs/recipes.md, "people".
Command: `mrcnn train --config=people --workdir=runs/people`.
"""

import dataclasses

from mrcnn_jax import config
from mrcnn_jax.config import presets


def get_config() -> config.Config:
    sizes = ((24.0,), (40.0,), (64.0,), (104.0,), (160.0,))
    small = presets.small(sizes, norm="bn", rois=32, max_detections=20)
    keypoint = config.KeypointHeadConfig(conv_layers=4, channels=64)
    model = dataclasses.replace(small, mask=None, keypoint=keypoint)
    data = config.DataConfig(
        root="runs/data/people",
        train=config.SplitConfig("train.json", "train"),
        eval=config.SplitConfig("val.json", "val"),
        shapes=config.ShapesConfig("people", train_images=3000, eval_images=200, image_size=192),
        min_keypoints=1,
        buckets=((192, 192),),
        shortest_edge_train=(192,),
        shortest_edge_eval=192,
        longest_edge=192,
        max_instances=16,
    )
    return config.Config(
        "people",
        model=model,
        data=data,
        optimizer=config.OptimizerConfig(
            "adamw", 2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=50, clip_norm=5.0
        ),
        train=config.TrainConfig(steps=1000, batch_size=16, checkpoint_every=100),
        eval=config.EvalConfig(batch_size=20),
    )

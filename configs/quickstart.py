"""Quickstart: Mask R-CNN, small ResNet-18-FPN, on a synthetic dataset of five shapes, from random weights.

Data: the synthetic dataset `shapes` (128-pixel images), written to data.root in COCO format by the first run.
Hardware, time and accuracy: docs/recipes.md, "quickstart".
Command: `mrcnn train --config=quickstart --workdir=runs/quickstart`, or `make quickstart`.
"""

from mrcnn_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    OptimizerConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
    presets,
)


def get_config() -> Config:
    sizes = ((16.0,), (24.0,), (40.0,), (64.0,), (96.0,))
    data = DataConfig(
        root="runs/data/shapes",
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1000, eval_images=100),
        buckets=((128, 128),),
        shortest_edge_train=(128,),
        shortest_edge_eval=128,
        longest_edge=128,
        max_instances=16,
        mask_size=56,
    )
    return Config(
        "quickstart",
        model=presets.small(sizes, norm="bn", rois=48, max_detections=20),
        data=data,
        optimizer=OptimizerConfig("adamw", 2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=50, clip_norm=5.0),
        train=TrainConfig(steps=500, batch_size=16, checkpoint_every=100),
        eval=EvalConfig(batch_size=20),
    )

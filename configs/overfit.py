"""Overfitting of eight small COCO photographs with 80 classes and crowds, as a test of the whole pipeline.

Data: a folder with images/ and annotations.json of the image ids below, given by --config.data.root=DIR.
Hardware, time and accuracy: docs/recipes.md, "overfit".
Command: `mrcnn train --config=overfit --config.data.root=DIR --workdir=runs/overfit`.
"""

from mrcnn_jax.config import Config, DataConfig, EvalConfig, OptimizerConfig, SplitConfig, TrainConfig, presets

IMAGE_IDS = (5001, 60623, 62554, 107438, 129648, 214753, 458756, 491525)  # the first and the fifth have crowds


def get_config() -> Config:
    sizes = ((16.0,), (32.0,), (64.0,), (128.0,), (224.0,))
    split = SplitConfig("annotations.json", "images", IMAGE_IDS)
    data = DataConfig(
        train=split,
        eval=split,
        buckets=((256, 384),),
        shortest_edge_train=(256,),
        shortest_edge_eval=256,
        longest_edge=384,
        horizontal_flip=0.0,
        max_instances=32,
    )
    return Config(
        "overfit",
        model=presets.small(sizes, norm="gn", rois=64, max_detections=100),
        data=data,
        optimizer=OptimizerConfig("adamw", 2e-3, weight_decay=0.0, schedule="cosine", warmup_steps=50, clip_norm=5.0),
        train=TrainConfig(steps=500, batch_size=4, checkpoint_every=100),
        eval=EvalConfig(batch_size=8),
    )

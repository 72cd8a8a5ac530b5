"""Mask R-CNN on microscopy images of nuclei (dsb2018, CC0; 54 training images) from random weights on a CPU.

Data: a folder with images/, train.json and val.json (COCO format), given by --config.data.root=DIR.
Hardware, time and accuracy: docs/recipes.md, "nuclei".
Command: `mrcnn train --config=nuclei --config.data.root=DIR --workdir=runs/nuclei`.
"""

from mrcnn_jax.config import Config, DataConfig, EvalConfig, OptimizerConfig, SplitConfig, TrainConfig, presets


def get_config() -> Config:
    sizes = ((12.0, 20.0), (32.0, 44.0), (64.0, 80.0), (96.0, 112.0), (128.0, 160.0))
    data = DataConfig(
        train=SplitConfig("train.json", "images"),
        eval=SplitConfig("val.json", "images"),
        buckets=((352, 352),),
        shortest_edge_train=(256, 288, 320, 352),
        shortest_edge_eval=352,
        longest_edge=352,
        vertical_flip=0.5,
        max_instances=64,
        mask_size=56,
    )
    return Config(
        "nuclei",
        model=presets.small(sizes, norm="gn", rois=96, max_detections=100),
        data=data,
        optimizer=OptimizerConfig("adamw", 2e-3, weight_decay=0.01, schedule="cosine", warmup_steps=50, clip_norm=5.0),
        train=TrainConfig(steps=900, batch_size=4, checkpoint_every=100),
        eval=EvalConfig(batch_size=6),
    )

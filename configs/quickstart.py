"""Quickstart: a small ResNet-18-FPN Mask R-CNN learns five kinds of outlines from random weights.

Data: the procedural set `shapes` (128-pixel images), written to data.root on the first run and read like any COCO set.
Hardware and time: see docs/recipes.md. Command: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.
"""

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    EvalConfig,
    FPNConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimizerConfig,
    RoIConfig,
    RPNConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
)


def get_config() -> Config:
    model = ModelConfig(
        backbone=BackboneConfig("resnet18", width=32, norm="bn", frozen_stages=0),
        fpn=FPNConfig(64),
        anchors=AnchorConfig(sizes=((16.0,), (24.0,), (40.0,), (64.0,), (96.0,))),
        rpn=RPNConfig(batch_size=64, pre_nms_top_k_train=300, post_nms_top_k_train=150, pre_nms_top_k_test=300, post_nms_top_k_test=150),
        roi=RoIConfig(batch_size=64, sampling_ratio=2),
        box=BoxHeadConfig(hidden=256, max_detections=20, nms_candidates=512),
        mask=MaskHeadConfig(channels=64),
    )
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
    optimizer = OptimizerConfig("adamw", learning_rate=1e-3, weight_decay=0.01, schedule="cosine", warmup_steps=50, clip_norm=5.0)
    train = TrainConfig(steps=600, batch_size=16, checkpoint_every=200)
    return Config("quickstart", model=model, data=data, optimizer=optimizer, train=train, eval=EvalConfig(batch_size=20))

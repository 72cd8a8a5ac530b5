"""The tiny recipe: a minimal Mask R-CNN on procedural images."""

from __future__ import annotations

from pathlib import Path

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


def model() -> ModelConfig:
    """A model for images of 64 x 64 pixels, without `num_classes`."""
    return ModelConfig(
        backbone=BackboneConfig(name="resnet18", width=8, norm="gn", frozen_stages=0),
        fpn=FPNConfig(channels=16),
        anchors=AnchorConfig(sizes=((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))),
        rpn=RPNConfig(
            batch_size=32,
            pre_nms_top_k_train=64,
            pre_nms_top_k_test=64,
            post_nms_top_k_train=32,
            post_nms_top_k_test=32,
        ),
        roi=RoIConfig(batch_size=16, sampling_ratio=1),
        box=BoxHeadConfig(pool_size=3, hidden=32, nms_candidates=64, max_detections=10),
        mask=MaskHeadConfig(pool_size=4, conv_layers=1, channels=8),
    )


def config(model: ModelConfig, folder: Path) -> Config:
    """Ten steps of four images of 64 x 64 pixels, a checkpoint every three steps; data and caches in `folder`."""
    return Config(
        name="tiny",
        model=model,
        data=DataConfig(
            root=str(folder / "shapes"),
            cache_dir=str(folder / "cache"),
            train=SplitConfig("train.json", "train"),
            eval=SplitConfig("val.json", "val"),
            shapes=ShapesConfig(train_images=16, eval_images=4, image_size=64),
            buckets=((64, 64),),
            shortest_edge_train=(64,),
            shortest_edge_eval=64,
            longest_edge=64,
            max_instances=8,
            mask_size=28,
        ),
        optimizer=OptimizerConfig(learning_rate=0.02, milestones=(), warmup_steps=2),
        train=TrainConfig(steps=10, batch_size=4, log_every=1, checkpoint_every=3, keep_checkpoints=2),
        eval=EvalConfig(batch_size=4, overlays=2),
    )

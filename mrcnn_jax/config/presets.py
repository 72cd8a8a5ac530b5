"""Models of torchvision and Detectron2 by name, COCO training schedules, and small models for CPUs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    FeaturesName,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimizerConfig,
    RoIConfig,
    RPNConfig,
    SplitConfig,
    TrainConfig,
)
from mrcnn_jax.errors import ConfigError

# Backbones of Detectron2's model zoo, with frozen batch norm. MSRA's ResNets have the stride in the first 1 x 1
# convolution, ResNeXts in the 3 x 3 one.
RESNET50 = BackboneConfig("resnet50", stride_in_1x1=True)
RESNET101 = BackboneConfig("resnet101", stride_in_1x1=True)
RESNEXT101_32X8D = BackboneConfig("resnet101", groups=32, width_per_group=8)
RESNEXT101_64X4D = BackboneConfig("resnet101", groups=64, width_per_group=4)
RESNEXT_STD = (57.375, 57.12, 58.395)  # of BGR pixels; the other backbones were trained on unscaled pixels

_TORCHVISION_BETA = 1 / 9
# C4, C5 and DC5 have one feature map with all anchors, and therefore more proposals per level.
_ONE_LEVEL = AnchorConfig(((32.0, 64.0, 128.0, 256.0, 512.0),))
_MANY_PROPOSALS = RPNConfig(pre_nms_top_k_train=12_000, pre_nms_top_k_test=6000, post_nms_top_k_train=2000)
# For small images:
_FEW_PROPOSALS = RPNConfig(
    pre_nms_top_k_train=500, pre_nms_top_k_test=500, post_nms_top_k_train=250, post_nms_top_k_test=250
)

# Steps and milestones for batches of 16 (Girshick et al. 2018, Detectron).
SCHEDULES = {
    "1x": (90_000, (60_000, 80_000)),
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
}


def detectron2(
    backbone: BackboneConfig = RESNET50,
    features: FeaturesName = "fpn",
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> ModelConfig:
    """Detectron2's Mask R-CNN with FPN, C4 (res4, with res5 in the heads) or DC5 (dilated res5) features.

    C5, which Detectron2 lacks, is DC5 at stride 32, for the paper's table 2d.
    """
    mean = (103.53, 116.28, 123.675)
    model = ModelConfig(channel_order="bgr", pixel_mean=mean, pixel_std=pixel_std, features=features, backbone=backbone)
    if features != "fpn":
        model = replace(model, anchors=_ONE_LEVEL, rpn=_MANY_PROPOSALS)
    if features == "c4":
        box, mask = BoxHeadConfig(pool_size=14, fc_layers=0), MaskHeadConfig(pool_size=14, conv_layers=0)
        model = replace(model, box=box, mask=mask)
    return model


def detectron2_normed(norm: Literal["gn", "sync_bn"]) -> ModelConfig:
    """Detectron2's R50-FPN with trainable norms, also in FPN and heads, and four convolutions in the box head.

    The backbone with group norm has its stride in the 3 x 3 convolution, that with SyncBN in the 1 x 1 one (MSRA).
    """
    return replace(
        detectron2(replace(RESNET50, norm=norm, stride_in_1x1=norm == "sync_bn")),
        fpn=FPNConfig(norm=norm),
        box=BoxHeadConfig(conv_layers=4, fc_layers=1, norm=norm),
        mask=MaskHeadConfig(norm=norm),
    )


def with_keypoints(model: ModelConfig) -> ModelConfig:
    """Add Detectron2's keypoint head to a model, with its box loss and number of proposals for keypoints."""
    return replace(
        model,
        keypoint=KeypointHeadConfig(),
        rpn=replace(model.rpn, post_nms_top_k_train=1500),
        box=replace(model.box, smooth_l1_beta=0.5),
    )


def torchvision(backbone: BackboneConfig | None = None) -> ModelConfig:
    """torchvision's `maskrcnn_resnet50_fpn`: RGB, rounded anchors, unaligned ROIAlign, smooth L1, soft mask targets."""
    return ModelConfig(
        pixel_mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        pixel_std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
        backbone=backbone or BackboneConfig("resnet50", norm="frozen_bn", frozen_stages=2),
        anchors=AnchorConfig(rounded=True, order="ratio_major", stride="image_over_grid"),
        rpn=RPNConfig(
            smooth_l1_beta=_TORCHVISION_BETA, normalizer="sampled", post_nms_top_k_train=2000, min_box_size=1e-3
        ),
        roi=RoIConfig(aligned=False, sampling_ratio=2, level_rule="torchvision"),
        box=BoxHeadConfig(smooth_l1_beta=_TORCHVISION_BETA, min_box_size=1e-2),
        mask=MaskHeadConfig(target="soft", target_sampling_ratio=0, paste="torchvision"),
    )


def torchvision_v2(norm: Literal["bn", "sync_bn"] = "bn") -> ModelConfig:
    """torchvision's `maskrcnn_resnet50_fpn_v2`: batch norm everywhere, nothing frozen, deeper heads."""
    model = torchvision(BackboneConfig("resnet50", norm=norm, frozen_stages=0))
    assert model.mask is not None
    return replace(
        model,
        fpn=FPNConfig(norm=norm),
        rpn=replace(model.rpn, conv_layers=2),
        box=replace(model.box, conv_layers=4, fc_layers=1, norm=norm),
        mask=replace(model.mask, norm=norm),
    )


def torchvision_model(name: str) -> ModelConfig:
    """A torchvision detection model by its name there, with the 90 category ids of its COCO weights as classes.

    Raises ConfigError for unknown names.
    """
    v1, v2 = torchvision(), torchvision_v2()
    keypoint = KeypointHeadConfig(score="logit")
    models = {
        "maskrcnn_resnet50_fpn": v1,
        "maskrcnn_resnet50_fpn_v2": v2,
        "fasterrcnn_resnet50_fpn": replace(v1, mask=None),
        "fasterrcnn_resnet50_fpn_v2": replace(v2, mask=None),
        "keypointrcnn_resnet50_fpn": replace(v1, mask=None, keypoint=keypoint),
    }
    if name not in models:
        raise _unknown("torchvision", name, models)
    return _with_classes(models[name], 90)


def detectron2_model(name: str) -> ModelConfig:
    """A COCO model of Detectron2's model zoo by its name there, such as "mask_rcnn_R_50_FPN", with COCO's classes.

    The schedule (_1x, _3x), the folder ("COCO-InstanceSegmentation/") and ".yaml" are optional. Raises ConfigError for
    unknown names, and for other folders, whose models have other classes or settings.
    """
    *folders, file = name.removesuffix(".yaml").split("/")
    if folders and folders[-1] not in ("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "Misc"):
        raise ConfigError(f"{name!r} is not one of Detectron2's COCO models: unsupported folder {folders[-1]!r}")
    short = re.sub(r"_[13]x(?=_|$)", "", file)
    zoo = _zoo()
    if short not in zoo:
        raise _unknown("Detectron2", name, zoo)
    return _with_classes(zoo[short], 80)


def _zoo() -> dict[str, ModelConfig]:
    """Models of Detectron2's model zoo by name, without classes."""
    fpn = detectron2()
    zoo = {
        "mask_rcnn_R_50_FPN_cls_agnostic": replace(
            fpn, box=BoxHeadConfig(class_agnostic=True), mask=MaskHeadConfig(class_agnostic=True)
        ),
        "mask_rcnn_R_50_FPN_gn": detectron2_normed("gn"),
        "mask_rcnn_R_50_FPN_syncbn": detectron2_normed("sync_bn"),
    }
    for short, backbone in {"R_50": RESNET50, "R_101": RESNET101}.items():
        zoo |= _family(f"{short}_C4", detectron2(backbone, "c4"))
        zoo |= _family(f"{short}_DC5", detectron2(backbone, "dc5"))
        zoo |= _family(f"{short}_FPN", detectron2(backbone))
    return zoo | _family("X_101_32x8d_FPN", detectron2(RESNEXT101_32X8D, pixel_std=RESNEXT_STD))


def _family(name: str, mask: ModelConfig) -> dict[str, ModelConfig]:
    """Mask R-CNN, Faster R-CNN and, with FPN, Keypoint R-CNN on the same features."""
    faster = replace(mask, mask=None)
    family = {f"mask_rcnn_{name}": mask, f"faster_rcnn_{name}": faster}
    return family | ({f"keypoint_rcnn_{name}": with_keypoints(faster)} if mask.features == "fpn" else {})


def _unknown(origin: str, name: str, models: dict[str, ModelConfig]) -> ConfigError:
    return ConfigError(f"unknown {origin} model {name!r}; known models: {', '.join(sorted(models))}")


def _with_classes(model: ModelConfig, count: int) -> ModelConfig:
    """Set the number of classes to `count`, or to one (person) for a model with keypoints."""
    return replace(model, num_classes=count if model.keypoint is None else 1)


def coco(name: str, model: ModelConfig, schedule: Literal["1x", "2x", "3x"], init: str = "") -> Config:
    """Detectron2's recipe for COCO 2017: batch size 16, SGD with learning rate 0.02, shortest edge 640..800.

    A model with keypoints trains on images with at least one labeled keypoint, with persons as the only class.
    init: the initial weights, see `Config.init`.
    """
    data = DataConfig(workers=4)
    if model.keypoint is not None:
        train = SplitConfig("annotations/person_keypoints_train2017.json", "train2017")
        evaluation = SplitConfig("annotations/person_keypoints_val2017.json", "val2017")
        data = replace(data, train=train, eval=evaluation, min_keypoints=1)
    steps, milestones = SCHEDULES[schedule]
    optimizer = OptimizerConfig("sgd", 0.02, momentum=0.9, weight_decay=1e-4, milestones=milestones)
    steps_and_batch = TrainConfig(steps=steps, batch_size=16)
    return Config(name, init, model=model, data=data, optimizer=optimizer, train=steps_and_batch)


def small(
    anchor_sizes: tuple[tuple[float, ...], ...], norm: Literal["bn", "gn"], rois: int, max_detections: int
) -> ModelConfig:
    """ResNet-18-FPN of half the usual width, to train on small images from random weights with two CPU cores.

    anchor_sizes: sizes for each of P2..P6.
    norm: "gn" for batches that are too small, or images that are too different, for batch statistics.
    rois: RoIs sampled per image; at most a quarter of them are positives, which the costly mask head processes.
    """
    return ModelConfig(
        backbone=BackboneConfig("resnet18", width=32, norm=norm, frozen_stages=0),
        fpn=FPNConfig(64),
        anchors=AnchorConfig(anchor_sizes),
        rpn=replace(_FEW_PROPOSALS, batch_size=128),
        roi=RoIConfig(rois, sampling_ratio=2),
        box=BoxHeadConfig(hidden=256, max_detections=max_detections, nms_candidates=1024),
        mask=MaskHeadConfig(channels=64),
    )


def light() -> ModelConfig:
    """EfficientNet-Lite0 with a narrow FPN, to fine-tune from ImageNet weights on a laptop's CPU.

    For images of about 320 pixels: anchors are half as large as those for 800.
    """
    return ModelConfig(
        channel_order="rgb",
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
        backbone=BackboneConfig("efficientnet_lite0", norm="frozen_bn", norm_eps=1e-3, frozen_stages=2),
        fpn=FPNConfig(64),
        anchors=AnchorConfig(((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))),
        rpn=_FEW_PROPOSALS,
        roi=RoIConfig(64, sampling_ratio=2),
        box=BoxHeadConfig(hidden=256, max_detections=50, nms_candidates=1024),
        mask=MaskHeadConfig(channels=64),
    )

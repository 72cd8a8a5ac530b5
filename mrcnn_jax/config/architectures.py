"""Networks of torchvision and Detectron2 as configurations, without classes; `presets` has them by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    FeaturesName,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)

# Backbones of Detectron2's model zoo, with frozen batch norm. MSRA's ResNets have the stride in the first 1 x 1
# convolution, ResNeXts in the 3 x 3 one.
RESNET50 = BackboneConfig("resnet50", stride_in_1x1=True)
RESNET101 = BackboneConfig("resnet101", stride_in_1x1=True)
RESNEXT101_32X8D = BackboneConfig("resnet101", groups=32, width_per_group=8)
RESNEXT101_64X4D = BackboneConfig("resnet101", groups=64, width_per_group=4)
RESNEXT_STD = (57.375, 57.12, 58.395)  # of BGR pixels; MSRA's backbones were trained on unscaled pixels

_TORCHVISION_BETA = 1 / 9
# C4, C5 and DC5 have one feature map with all anchors, and therefore more proposals per level.
_ONE_LEVEL = AnchorConfig(((32.0, 64.0, 128.0, 256.0, 512.0),))
_MANY_PROPOSALS = RPNConfig(pre_nms_top_k_train=12_000, pre_nms_top_k_test=6000, post_nms_top_k_train=2000)


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


def detectron2_lsj(name: Literal["resnet50", "resnet101"] = "resnet50") -> ModelConfig:
    """Detectron2's new baselines: SyncBN in all parts, no frozen layer, two convolutions in the RPN."""
    model = detectron2_normed("sync_bn")
    return replace(
        model,
        backbone=replace(model.backbone, name=name, frozen_stages=0),
        rpn=RPNConfig(conv_layers=2),
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

"""Model configurations that several recipes share: the peers' flavours, and a small network for a CPU."""

from __future__ import annotations

from typing import Literal

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    FPNConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)

_TORCHVISION_BETA = 1 / 9


def detectron2(backbone: BackboneConfig | None = None) -> ModelConfig:
    """Detectron2's FPN models with its own initial weights: BGR, unscaled pixels, stride in the 1 x 1 convolution."""
    return ModelConfig(
        channel_order="bgr",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(1.0, 1.0, 1.0),
        backbone=backbone or BackboneConfig("resnet50", norm="frozen_bn", stride_in_1x1=True, frozen_stages=2),
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


def small(
    anchor_sizes: tuple[tuple[float, ...], ...], norm: Literal["bn", "gn"], rois: int, max_detections: int
) -> ModelConfig:
    """ResNet-18-FPN of half the usual width, from random weights: learns small pictures on two CPU cores.

    `norm` is "gn" where batches are too small, or their images too different, for batch statistics. `rois` are drawn in
    an image; a quarter of them, the positives, go to the mask head, the dearest part.
    """
    return ModelConfig(
        backbone=BackboneConfig("resnet18", width=32, norm=norm, frozen_stages=0),
        fpn=FPNConfig(64),
        anchors=AnchorConfig(anchor_sizes),
        rpn=RPNConfig(
            batch_size=128,
            pre_nms_top_k_train=500,
            post_nms_top_k_train=250,
            pre_nms_top_k_test=500,
            post_nms_top_k_test=250,
        ),
        roi=RoIConfig(rois, sampling_ratio=2),
        box=BoxHeadConfig(hidden=256, max_detections=max_detections, nms_candidates=1024),
        mask=MaskHeadConfig(channels=64),
    )

"""Dataclasses of the model configuration, one for each part of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mrcnn_jax.config.field_types import (
    ChannelOrder,
    FeaturesName,
    FiniteFloat,
    Fraction,
    HeadNormName,
    Int64,
    NonNegativeFloat,
    NonNegativeInt,
    NormName,
    PasteRule,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    ScoreRule,
)
from mrcnn_jax.config.values import Settings

_COCO_FLIP_MAP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """Bottom-up network: ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) or EfficientNet-Lite (Tan and Le 2019)."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0"] = "resnet50"
    width: PositiveInt = 64  # channels of the stem; the stages have 1, 2, 4, 8 times as many (x 4 with bottlenecks)
    groups: PositiveInt = 1  # of the 3 x 3 convolutions; ResNeXt-101-32x8d has 32 groups of 8 channels in res2
    width_per_group: PositiveInt = 64  # channels per group in res2, for width=64
    norm: NormName = "frozen_bn"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = False  # True: MSRA, Detectron2; False: in the 3 x 3 convolution (torchvision)
    frozen_stages: Annotated[int, "[0, 5]"] = 2  # 0: none; 1: the stem; 2: stem and res2; ...


@dataclass(frozen=True)
class FPNConfig(Settings):
    """Feature pyramid network with levels P2..P6 (Lin et al. 2017)."""

    channels: PositiveInt = 256
    norm: HeadNormName = "none"


@dataclass(frozen=True)
class AnchorConfig(Settings):
    """Anchors of each level: P2..P6 with FPN, one feature map without."""

    sizes: tuple[tuple[PositiveFloat, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # round the corners of base anchors to integers, as torchvision does
    order: Literal["size_major", "ratio_major"] = "size_major"  # Detectron2: size_major, torchvision: ratio_major
    stride: Literal["nominal", "image_over_grid"] = "nominal"  # torchvision: image size // grid size


@dataclass(frozen=True)
class RPNConfig(Settings):
    """Region proposal network: head, training targets, losses and proposals."""

    conv_layers: NonNegativeInt = 1
    positive_iou: PositiveFraction = 0.7
    negative_iou: Fraction = 0.3
    batch_size: PositiveInt = 256  # anchors sampled per image
    positive_fraction: PositiveFraction = 0.5
    smooth_l1_beta: NonNegativeFloat = 0.0  # 0: L1 loss (Detectron2); torchvision: 1/9
    normalizer: Literal["batch_size", "sampled"] = "batch_size"  # divide by batch_size * images, or by sampled anchors
    pre_nms_top_k_train: PositiveInt = 2000  # per level
    pre_nms_top_k_test: PositiveInt = 1000  # per level
    post_nms_top_k_train: PositiveInt = 1000  # of all levels together
    post_nms_top_k_test: PositiveInt = 1000  # of all levels together
    nms_iou: PositiveFraction = 0.7
    min_box_size: NonNegativeFloat = 0.0  # minimum side of a proposal in pixels; 0 drops only empty boxes


@dataclass(frozen=True)
class RoIConfig(Settings):
    """RoI sampling for training, and RoI pooling."""

    batch_size: PositiveInt = 512  # RoIs sampled per image
    positive_fraction: PositiveFraction = 0.25
    positive_iou: PositiveFraction = 0.5
    # ROIAlign: bilinear samples in the RoI; RoIWarp: bilinear samples in the RoI rounded to whole cells; RoIPool: the
    # cells of the rounded RoI. See the paper's tables 2c, 2d and 6.
    pooling: Literal["align", "warp", "pool"] = "align"
    reduce: Literal["average", "max"] = "average"  # over the samples or cells of a bin
    aligned: bool = True  # ROIAlign with the half-pixel shift (Detectron2) or without (torchvision)
    sampling_ratio: NonNegativeInt = 0  # samples per bin and direction; 0: adaptive, as many as the bin has pixels
    level_rule: Literal["detectron2", "torchvision"] = "detectron2"  # position of the epsilon in the level formula


@dataclass(frozen=True)
class BoxHeadConfig(Settings):
    """Box head: convolutions, fully connected layers, classification and box regression; losses and detections.

    With `model.features="c4"`, res5 replaces the layers, and `pool_size` is the size of its input.
    """

    pool_size: PositiveInt = 7
    conv_layers: NonNegativeInt = 0
    channels: PositiveInt = 256  # of the convolutions
    norm: HeadNormName = "none"  # after each convolution
    fc_layers: NonNegativeInt = 2
    hidden: PositiveInt = 1024  # channels of the fully connected layers
    class_agnostic: bool = False  # one box for all classes
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: NonNegativeFloat = 0.0
    score_threshold: Annotated[float, "[0, 1)"] = 0.05
    nms_iou: PositiveFraction = 0.5
    max_detections: PositiveInt = 100
    nms_candidates: PositiveInt = 4096  # (proposal, class) pairs with the best scores that enter class-wise NMS
    min_box_size: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class MaskHeadConfig(Settings):
    """Mask head: fully convolutional or, with `fc_layers`, a multi-layer perceptron (the paper's table 2e)."""

    pool_size: PositiveInt = 14
    conv_layers: NonNegativeInt = 4
    channels: PositiveInt = 256
    norm: HeadNormName = "none"
    fc_layers: NonNegativeInt = 0  # fully connected layers instead of convolutions; the paper's MLPs have 2 and 3
    hidden: PositiveInt = 1024  # channels of the fully connected layers
    # Independent masks for each class; or classes and background compete for each pixel (the paper's table 2b).
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    class_agnostic: bool = False  # one mask for all classes
    target: Literal["binary", "soft"] = "binary"  # mask targets thresholded at 1/2 (Detectron2) or not (torchvision)
    target_sampling_ratio: NonNegativeInt = 0  # samples per cell and direction of the mask targets; 0: adaptive
    paste: PasteRule = "detectron2"  # method to paste a mask into the image


@dataclass(frozen=True)
class KeypointHeadConfig(Settings):
    """Keypoint head: a one-hot heatmap for each of K keypoints (He et al. 2017, section 5)."""

    num_keypoints: PositiveInt = 17
    pool_size: PositiveInt = 14
    conv_layers: NonNegativeInt = 8
    channels: PositiveInt = 512
    normalizer: Literal["visible", "fixed"] = "visible"  # divide by visible keypoints, or by their maximum number
    score: ScoreRule = "probability"  # score of a keypoint; Detectron2: probability
    flip_map: tuple[NonNegativeInt, ...] = _COCO_FLIP_MAP  # index of each keypoint in the mirrored image


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network. If `num_classes`, ids, names and skeleton are empty, they are taken from the data."""

    num_classes: NonNegativeInt = 0  # foreground classes C; 0: from the data
    category_ids: tuple[Int64, ...] = ()  # category_ids[k - 1] is the category id of class k
    category_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()  # of the K keypoints
    skeleton: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()  # pairs of keypoints, from 0, joined in drawings
    channel_order: ChannelOrder = "rgb"
    pixel_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (123.675, 116.28, 103.53)  # channel_order, 0..255
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    # FPN; C4: res4, with res5 in the heads; C5: res5 with stride 32; DC5: res5 dilated to stride 16.
    features: FeaturesName = "fpn"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig | None = field(default_factory=MaskHeadConfig)  # None: Faster R-CNN
    keypoint: KeypointHeadConfig | None = None

    @property
    def mask_size(self) -> int:
        """Side S of the predicted masks; 0 without a mask head. With C4, res5 halves the pooled features."""
        if self.mask is None:
            return 0
        return self.mask.pool_size if self.features == "c4" else 2 * self.mask.pool_size

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints K; 0 without a keypoint head."""
        return self.keypoint.num_keypoints if self.keypoint is not None else 0

"""Conversion of Detectron2 configuration files, with which the reference arrays were computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    FPNConfig,
    HeadNormName,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)

NORMS = {"": "none", "FrozenBN": "frozen_bn", "GN": "gn", "SyncBN": "sync_bn", "BN": "bn"}
FEATURES = {("p2", "p3", "p4", "p5"): "fpn", ("res4",): "c4", ("res5",): "dc5"}


def read(path: Path) -> ModelConfig:
    """Return the model of a complete Detectron2 configuration file: YAML with all defaults, or JSON of a LazyConfig."""
    if path.suffix == ".json":
        return _lazy(json.loads(path.read_text())["model"])
    whole = yaml.safe_load(path.read_text())
    model = whole["MODEL"]
    heads, resnets = model["ROI_HEADS"], model["RESNETS"]
    features = FEATURES[tuple(heads["IN_FEATURES"])]
    assert model["RPN"]["BOUNDARY_THRESH"] == -1
    assert heads["PROPOSAL_APPEND_GT"]
    return ModelConfig(
        num_classes=heads["NUM_CLASSES"],
        channel_order=whole["INPUT"]["FORMAT"].lower(),
        pixel_mean=tuple(model["PIXEL_MEAN"]),
        pixel_std=tuple(model["PIXEL_STD"]),
        features=features,
        backbone=BackboneConfig(
            name=f"resnet{resnets['DEPTH']}",
            width=resnets["STEM_OUT_CHANNELS"],
            groups=resnets["NUM_GROUPS"],
            width_per_group=resnets["WIDTH_PER_GROUP"],
            norm=NORMS[resnets["NORM"]],
            stride_in_1x1=resnets["STRIDE_IN_1X1"],
            frozen_stages=model["BACKBONE"]["FREEZE_AT"],
        ),
        fpn=FPNConfig(model["FPN"]["OUT_CHANNELS"], NORMS[model["FPN"]["NORM"]]),
        anchors=AnchorConfig(
            sizes=tuple(tuple(map(float, sizes)) for sizes in model["ANCHOR_GENERATOR"]["SIZES"]),
            aspect_ratios=tuple(model["ANCHOR_GENERATOR"]["ASPECT_RATIOS"][0]),
        ),
        rpn=_rpn(model["RPN"], model["PROPOSAL_GENERATOR"]),
        roi=RoIConfig(
            batch_size=heads["BATCH_SIZE_PER_IMAGE"],
            positive_fraction=heads["POSITIVE_FRACTION"],
            positive_iou=heads["IOU_THRESHOLDS"][0],
            aligned=model["ROI_BOX_HEAD"]["POOLER_TYPE"] == "ROIAlignV2",
            sampling_ratio=model["ROI_BOX_HEAD"]["POOLER_SAMPLING_RATIO"],
        ),
        box=_box(model["ROI_BOX_HEAD"], heads, whole["TEST"]["DETECTIONS_PER_IMAGE"]),
        mask=_mask(model["ROI_MASK_HEAD"]) if model["MASK_ON"] else None,
        keypoint=_keypoint(model["ROI_KEYPOINT_HEAD"]) if model["KEYPOINT_ON"] else None,
    )


def _lazy(model: dict[str, Any]) -> ModelConfig:
    """The model of a LazyConfig with FPN and a box and a mask head; what is not in it has Detectron2's defaults."""
    pyramid, rpn, heads = model["backbone"], model["proposal_generator"], model["roi_heads"]
    stages, anchors = pyramid["bottom_up"]["stages"], rpn["anchor_generator"]
    box, predictor, mask = heads["box_head"], heads["box_predictor"], heads["mask_head"]
    return ModelConfig(
        num_classes=heads["num_classes"],
        channel_order=model["input_format"].lower(),
        pixel_mean=tuple(model["pixel_mean"]),
        pixel_std=tuple(model["pixel_std"]),
        backbone=BackboneConfig(
            name=f"resnet{stages['depth']}",
            norm=NORMS[stages["norm"]],
            stride_in_1x1=stages["stride_in_1x1"],
            frozen_stages=pyramid["bottom_up"]["freeze_at"],
        ),
        fpn=FPNConfig(pyramid["out_channels"], NORMS[pyramid["norm"]]),
        anchors=AnchorConfig(
            sizes=tuple(tuple(map(float, sizes)) for sizes in anchors["sizes"]),
            aspect_ratios=tuple(anchors["aspect_ratios"]),
        ),
        rpn=RPNConfig(
            conv_layers=len(rpn["head"]["conv_dims"]),
            positive_iou=rpn["anchor_matcher"]["thresholds"][1],
            negative_iou=rpn["anchor_matcher"]["thresholds"][0],
            batch_size=rpn["batch_size_per_image"],
            positive_fraction=rpn["positive_fraction"],
            pre_nms_top_k_train=rpn["pre_nms_topk"][0],
            pre_nms_top_k_test=rpn["pre_nms_topk"][1],
            post_nms_top_k_train=rpn["post_nms_topk"][0],
            post_nms_top_k_test=rpn["post_nms_topk"][1],
            nms_iou=rpn["nms_thresh"],
        ),
        roi=RoIConfig(
            batch_size=heads["batch_size_per_image"],
            positive_fraction=heads["positive_fraction"],
            positive_iou=heads["proposal_matcher"]["thresholds"][0],
            aligned=heads["box_pooler"]["pooler_type"] == "ROIAlignV2",
            sampling_ratio=heads["box_pooler"]["sampling_ratio"],
        ),
        box=BoxHeadConfig(
            pool_size=heads["box_pooler"]["output_size"],
            conv_layers=len(box["conv_dims"]),
            channels=box["conv_dims"][0],
            norm=_lazy_norm(box),
            fc_layers=len(box["fc_dims"]),
            hidden=box["fc_dims"][0],
            delta_weights=tuple(map(float, predictor["box2box_transform"]["weights"])),
            score_threshold=predictor["test_score_thresh"],
            max_detections=predictor["test_topk_per_image"],
        ),
        mask=MaskHeadConfig(
            pool_size=heads["mask_pooler"]["output_size"],
            conv_layers=len(mask["conv_dims"]) - 1,  # the last is the transposed convolution
            channels=mask["conv_dims"][0],
            norm=_lazy_norm(mask),
        ),
    )


def _lazy_norm(head: dict[str, Any]) -> HeadNormName:
    return "sync_bn" if "NaiveSyncBatchNorm" in head["conv_norm"] else NORMS[head["conv_norm"]]


def _rpn(rpn: dict[str, Any], generator: dict[str, Any]) -> RPNConfig:
    return RPNConfig(
        conv_layers=len(rpn["CONV_DIMS"]),
        positive_iou=rpn["IOU_THRESHOLDS"][1],
        negative_iou=rpn["IOU_THRESHOLDS"][0],
        batch_size=rpn["BATCH_SIZE_PER_IMAGE"],
        positive_fraction=rpn["POSITIVE_FRACTION"],
        smooth_l1_beta=rpn["SMOOTH_L1_BETA"],
        pre_nms_top_k_train=rpn["PRE_NMS_TOPK_TRAIN"],
        pre_nms_top_k_test=rpn["PRE_NMS_TOPK_TEST"],
        post_nms_top_k_train=rpn["POST_NMS_TOPK_TRAIN"],
        post_nms_top_k_test=rpn["POST_NMS_TOPK_TEST"],
        nms_iou=rpn["NMS_THRESH"],
        min_box_size=float(generator["MIN_SIZE"]),
    )


def _box(head: dict[str, Any], heads: dict[str, Any], max_detections: int) -> BoxHeadConfig:
    return BoxHeadConfig(
        pool_size=head["POOLER_RESOLUTION"],
        conv_layers=head["NUM_CONV"],
        channels=head["CONV_DIM"],
        norm=NORMS[head["NORM"]],
        fc_layers=head["NUM_FC"],
        hidden=head["FC_DIM"],
        class_agnostic=head["CLS_AGNOSTIC_BBOX_REG"],
        delta_weights=tuple(head["BBOX_REG_WEIGHTS"]),
        smooth_l1_beta=head["SMOOTH_L1_BETA"],
        score_threshold=heads["SCORE_THRESH_TEST"],
        nms_iou=heads["NMS_THRESH_TEST"],
        max_detections=max_detections,
    )


def _mask(head: dict[str, Any]) -> MaskHeadConfig:
    return MaskHeadConfig(
        pool_size=head["POOLER_RESOLUTION"],
        conv_layers=head["NUM_CONV"],
        channels=head["CONV_DIM"],
        norm=NORMS[head["NORM"]],
        class_agnostic=head["CLS_AGNOSTIC_MASK"],
    )


def _keypoint(head: dict[str, Any]) -> KeypointHeadConfig:
    assert len(set(head["CONV_DIMS"])) == 1
    return KeypointHeadConfig(
        num_keypoints=head["NUM_KEYPOINTS"],
        pool_size=head["POOLER_RESOLUTION"],
        conv_layers=len(head["CONV_DIMS"]),
        channels=head["CONV_DIMS"][0],
        normalizer="visible" if head["NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"] else "fixed",
    )

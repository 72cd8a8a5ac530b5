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
from mrcnn_jax.config.architectures import (
    RESNET50,
    RESNET101,
    RESNEXT101_32X8D,
    RESNEXT101_64X4D,
    RESNEXT_STD,
    detectron2,
    detectron2_lsj,
    detectron2_normed,
    torchvision,
    torchvision_v2,
    with_keypoints,
)
from mrcnn_jax.config.dataset_categories import CITYSCAPES, VOC, lvis_v0_5
from mrcnn_jax.errors import ConfigError

__all__ = [
    "RESNET50",
    "RESNET101",
    "RESNEXT101_32X8D",
    "RESNEXT101_64X4D",
    "RESNEXT_STD",
    "SCHEDULES",
    "coco",
    "detectron2",
    "detectron2_lsj",
    "detectron2_model",
    "detectron2_normed",
    "light",
    "published",
    "small",
    "torchvision",
    "torchvision_model",
    "torchvision_v2",
    "with_keypoints",
]

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
    """A model of Detectron2's model zoo by its name there, such as "mask_rcnn_R_50_FPN", with the classes of its data.

    The schedule (_1x, _3x, _100ep) and ".yaml" are optional, and so is the folder, except for LVIS, Cityscapes,
    PASCAL VOC and the comparisons with Detectron. Raises ConfigError for unknown names.
    """
    *folders, file = name.removesuffix(".yaml").split("/")
    folder = "" if not folders or folders[-1] in _COCO_FOLDERS else f"{folders[-1]}/"
    zoo = _zoo()
    for short in (file, re.sub(r"_([13]x|[124]00ep)(?=_|$)", "", file)):
        if model := zoo.get(folder + short):
            return model if model.num_classes else _with_classes(model, 80)
    raise _unknown("Detectron2", name, zoo)


_COCO_FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "new_baselines", "Misc")


def _zoo() -> dict[str, ModelConfig]:
    """Models of Detectron2's model zoo by name; those without classes are for COCO."""
    fpn, c4 = detectron2(), detectron2(features="c4")
    gn, sync_bn = detectron2_normed("gn"), detectron2_normed("sync_bn")
    zoo = {
        "mask_rcnn_R_50_FPN_cls_agnostic": replace(
            fpn, box=BoxHeadConfig(class_agnostic=True), mask=MaskHeadConfig(class_agnostic=True)
        ),
        "mask_rcnn_R_50_FPN_gn": gn,
        "mask_rcnn_R_50_FPN_syncbn": sync_bn,
        "mask_rcnn_R_50_FPN_LSJ": detectron2_lsj(),
        "mask_rcnn_R_101_FPN_LSJ": detectron2_lsj("resnet101"),
        "scratch_mask_rcnn_R_50_FPN_3x_gn": _scratch(gn),
        "scratch_mask_rcnn_R_50_FPN_9x_gn": _scratch(gn, RESNEXT_STD),
        "scratch_mask_rcnn_R_50_FPN_9x_syncbn": _scratch(sync_bn, RESNEXT_STD),
        "Cityscapes/mask_rcnn_R_50_FPN": _with_categories(fpn, CITYSCAPES),
        "PascalVOC-Detection/faster_rcnn_R_50_C4": _with_categories(replace(c4, mask=None), VOC),
    }
    zoo |= _family("R_50_C4", c4) | _family("R_50_DC5", detectron2(features="dc5"))
    zoo |= _family("R_101_C4", detectron2(RESNET101, "c4")) | _family("R_101_DC5", detectron2(RESNET101, "dc5"))
    for short, model in {
        "R_50_FPN": fpn,
        "R_101_FPN": detectron2(RESNET101),
        "X_101_32x8d_FPN": detectron2(RESNEXT101_32X8D, pixel_std=RESNEXT_STD),
    }.items():
        zoo |= _family(short, model)
        # LVIS allows 300 detections, and most of its categories are rare.
        box = replace(model.box, score_threshold=1e-4, max_detections=300)
        zoo[f"LVISv0.5-InstanceSegmentation/mask_rcnn_{short}"] = _with_categories(replace(model, box=box), lvis_v0_5())
    for name, noaug in {
        "mask_rcnn_R_50_FPN": "_noaug",
        "faster_rcnn_R_50_FPN": "_noaug",
        "keypoint_rcnn_R_50_FPN": "",
    }.items():
        zoo[f"Detectron1-Comparisons/{name}{noaug}"] = _as_detectron(zoo[name])
    return zoo


def _family(name: str, mask: ModelConfig) -> dict[str, ModelConfig]:
    """Mask R-CNN, Faster R-CNN and, with FPN, Keypoint R-CNN on the same features."""
    faster = replace(mask, mask=None)
    family = {f"mask_rcnn_{name}": mask, f"faster_rcnn_{name}": faster}
    return family | ({f"keypoint_rcnn_{name}": with_keypoints(faster)} if mask.features == "fpn" else {})


def _scratch(model: ModelConfig, pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> ModelConfig:
    """A model that trains from random weights."""
    backbone = replace(model.backbone, frozen_stages=0, stride_in_1x1=False)
    return replace(model, pixel_std=pixel_std, backbone=backbone)


def _as_detectron(model: ModelConfig) -> ModelConfig:
    """`model` with the losses and ROIAlign of Detectron (2018)."""
    return replace(
        model,
        rpn=replace(model.rpn, smooth_l1_beta=0.1111),
        roi=RoIConfig(aligned=False, sampling_ratio=2),
        box=replace(model.box, smooth_l1_beta=1.0),
    )


def _unknown(origin: str, name: str, models: dict[str, ModelConfig]) -> ConfigError:
    return ConfigError(f"unknown {origin} model {name!r}; known models: {', '.join(sorted(models))}")


def _with_classes(model: ModelConfig, count: int) -> ModelConfig:
    """Set the number of classes to `count`, or to one (person) for a model with keypoints."""
    return replace(model, num_classes=count if model.keypoint is None else 1)


def _with_categories(model: ModelConfig, categories: dict[int, str]) -> ModelConfig:
    ids, names = tuple(categories), tuple(categories.values())
    return replace(model, num_classes=len(ids), category_ids=ids, category_names=names)


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


def published(name: str, model: ModelConfig) -> Config:
    """The recipe to evaluate a published model: COCO's, with the image sizes of Cityscapes for its model."""
    config = coco(name, model, "1x")
    if "Cityscapes/" not in name:
        return config
    data = replace(config.data, shortest_edge_eval=1024, longest_edge=2048, buckets=((1024, 2048),))
    return replace(config, data=data)


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

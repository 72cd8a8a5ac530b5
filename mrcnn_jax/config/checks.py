"""Validation of constraints between configuration fields."""

from __future__ import annotations

from collections.abc import Iterator

from mrcnn_jax.config.metric_names import VALIDATION_LOSS, evaluation_metrics, training_metrics
from mrcnn_jax.config.model_schema import ModelConfig
from mrcnn_jax.config.schema import Config, DataConfig
from mrcnn_jax.errors import ConfigError


def validate(config: Config) -> None:
    """Raise ConfigError if fields contradict each other; the message names them and says what to do."""
    problem = next(_problems(config), None)
    if problem is not None:
        raise ConfigError(problem)


def needs_initial_weights(model: ModelConfig) -> bool:
    """Whether training keeps parts of the backbone at their initial values."""
    return model.backbone.norm == "frozen_bn" or model.backbone.frozen_stages > 0


def _problems(config: Config) -> Iterator[str]:
    """Yield a message for each contradiction. Variables have the names of fields, for `{field=}` in the messages."""
    model = config.model
    if needs_initial_weights(model) and not config.init:
        yield (
            "model.backbone has frozen batch norm or frozen stages, but init is empty: frozen layers would keep their"
            " random values. Give init=FILE or init=zoo:NAME, or set model.backbone.norm=gn and"
            " model.backbone.frozen_stages=0"
        )
    yield from _backbone_problems(model)
    if model.features == "c4":
        yield from _c4_problems(model)
    yield from _anchor_problems(model)
    yield from _proposal_problems(model)
    yield from _head_problems(model)
    for name, values in {"category_ids": model.category_ids, "category_names": model.category_names}.items():
        if values and len(values) != model.num_classes:
            yield (
                f"model.num_classes is {model.num_classes}, but model.{name} has {len(values)} entries; leave all of"
                " them empty to take them from the data"
            )
    if model.keypoint is not None:
        yield from _keypoint_problems(config, model.keypoint.flip_map, model.num_keypoints)
    yield from _data_problems(config.data)
    yield from _range_problems(config.data)
    yield from _optimizer_problems(config)
    yield from _training_problems(config)


def _backbone_problems(model: ModelConfig) -> Iterator[str]:
    backbone = model.backbone
    if (backbone.groups, backbone.width_per_group) != (1, 64) and backbone.name not in ("resnet50", "resnet101"):
        yield (
            f"{model.backbone.groups=}, width_per_group={backbone.width_per_group}: {backbone.name} does not support"
            " groups. Use resnet50 or resnet101, or set groups=1 and width_per_group=64"
        )
    if backbone.width * backbone.width_per_group % 64:
        yield (
            f"{model.backbone.width=}, width_per_group={backbone.width_per_group}: width * width_per_group must be a"
            " multiple of 64, so that groups have a whole number of channels"
        )
    if model.features != "fpn" and backbone.name.startswith("efficientnet"):
        yield (
            f"{model.features=!s} needs a residual network; set model.features=fpn for {backbone.name}, or change"
            " model.backbone.name"
        )


def _c4_problems(model: ModelConfig) -> Iterator[str]:
    """With C4, res5 replaces the layers of the heads."""
    if model.keypoint is not None:
        yield "model.keypoint does not support model.features=c4: set model.features=fpn, or keypoint=None"
    if model.backbone.frozen_stages > 4:
        yield "model.backbone.frozen_stages: with model.features=c4 res5 is part of the heads; freeze at most 4 stages"
    if model.box.conv_layers or model.box.fc_layers:
        yield (
            "model.box: with model.features=c4 res5 replaces the layers; set model.box.conv_layers=0 and"
            " model.box.fc_layers=0"
        )
    if model.box.pool_size % 2:
        yield f"{model.box.pool_size=} must be even with model.features=c4; use 14"
    if model.mask is not None and model.mask.pool_size != model.box.pool_size:
        yield (
            f"{model.mask.pool_size=}, {model.box.pool_size=}: with model.features=c4 both heads use the same pooled"
            " features; set both to 14"
        )


def _anchor_problems(model: ModelConfig) -> Iterator[str]:
    sizes = model.anchors.sizes
    levels, where = (5, "each of P2..P6") if model.features == "fpn" else (1, "the one feature map")
    if len(sizes) != levels:
        yield f"model.anchors.sizes needs one tuple for {where}, got {len(sizes)}"
    if len({len(level) for level in sizes}) != 1:
        yield "model.anchors.sizes needs the same number of sizes on each level, for the shared RPN head"
    if not sizes[0] or not model.anchors.aspect_ratios:
        yield "model.anchors.sizes and model.anchors.aspect_ratios need at least one value (per level)"


def _proposal_problems(model: ModelConfig) -> Iterator[str]:
    """Check the order of thresholds, positive samples, and the maximum numbers of boxes."""
    rpn, levels = model.rpn, len(model.anchors.sizes)
    if rpn.negative_iou > rpn.positive_iou:
        yield (
            f"{model.rpn.negative_iou=} must not exceed {model.rpn.positive_iou=}: anchors between them would be"
            " positive and negative"
        )
    for name, count, fraction in (
        ("rpn", rpn.batch_size, rpn.positive_fraction),
        ("roi", model.roi.batch_size, model.roi.positive_fraction),
    ):
        if count * fraction < 1:
            yield (
                f"model.{name}.batch_size={count} * model.{name}.positive_fraction={fraction} is less than one positive"
                " sample; increase one of them"
            )
    for phase, before, after in (
        ("train", rpn.pre_nms_top_k_train, rpn.post_nms_top_k_train),
        ("test", rpn.pre_nms_top_k_test, rpn.post_nms_top_k_test),
    ):
        if after > before * levels:
            yield (
                f"model.rpn.post_nms_top_k_{phase}={after} exceeds {levels} * model.rpn.pre_nms_top_k_{phase}={before},"
                " the maximum number of boxes before NMS"
            )
    if model.box.max_detections > model.box.nms_candidates:
        yield f"{model.box.max_detections=} exceeds {model.box.nms_candidates=}, the number of boxes before NMS"


def _head_problems(model: ModelConfig) -> Iterator[str]:
    """Check RoI pooling, that the mask head has one type of layers, and that normalized heads have convolutions."""
    roi, mask = model.roi, model.mask
    # A maximum needs the samples themselves; only the mean over an adaptive number of them has a closed form.
    if roi.reduce == "max" and roi.pooling != "pool" and roi.sampling_ratio < 1:
        yield (
            f"model.roi.reduce=max with {model.roi.pooling=!s} needs a fixed number of samples, but"
            f" {model.roi.sampling_ratio=}: set model.roi.sampling_ratio=2, for example, or model.roi.reduce=average"
        )
    if mask is not None and mask.fc_layers and mask.conv_layers:
        yield (
            f"model.{mask.fc_layers=}, conv_layers={mask.conv_layers}: fully connected layers replace the convolutions;"
            " set model.mask.conv_layers=0 or fc_layers=0"
        )
    for name, head in {"box": model.box, "mask": mask}.items():
        if head is not None and head.norm != "none" and not head.conv_layers:
            yield (
                f"model.{name}.norm={head.norm} needs convolutions, but model.{name}.conv_layers=0; set"
                f" model.{name}.norm=none, or add layers"
            )


def _keypoint_problems(config: Config, flip_map: tuple[int, ...], count: int) -> Iterator[str]:
    """Check the lists with one entry per keypoint (flip map, names, sigmas) and the pairs of the skeleton."""
    model = config.model
    if sorted(flip_map) != list(range(count)) or any(flip_map[other] != i for i, other in enumerate(flip_map)):
        yield (
            f"model.keypoint.{flip_map=} must give each of the {count} keypoints of model.keypoint.num_keypoints its"
            " index in the mirrored image, and exchange them in pairs"
        )
    lists = {"model.keypoint_names": model.keypoint_names, "eval.keypoint_sigmas": config.eval.keypoint_sigmas}
    for name, values in lists.items():
        if values and len(values) != count:
            yield f"{name} has {len(values)} entries, but model.keypoint.num_keypoints is {count}"
    if any(end >= count for pair in model.skeleton for end in pair):
        yield f"{model.skeleton=} has keypoints outside of 0..{count - 1}"


def _data_problems(data: DataConfig) -> Iterator[str]:
    if not data.buckets:
        yield "data.buckets is empty; give (height, width) of the padded images"
    for height, width in data.buckets:
        if height % 32 or width % 32:
            yield f"data.buckets: {height}x{width} is not divisible by 32"
        if data.buckets.count((height, width)) > 1:
            yield f"data.buckets contains {height}x{width} twice; remove one"
    if not data.shortest_edge_train:
        yield "data.shortest_edge_train is empty; give at least one size in pixels"


def _range_problems(data: DataConfig) -> Iterator[str]:
    bounds = {"augment.crop_size": data.augment.crop_size, "augment.scale_jitter": data.augment.scale_jitter}
    if data.shapes is not None:
        bounds |= {"shapes.diameters": data.shapes.diameters, "shapes.objects": data.shapes.objects}
    for name, pair in bounds.items():
        if pair is not None and pair[0] > pair[1]:
            yield f"data.{name}={pair}: give the lower bound first"
    if data.value_range is not None and data.value_range[0] >= data.value_range[1]:
        yield f"{data.value_range=}: give (low, high), such as (0, 4095), or None"


def _optimizer_problems(config: Config) -> Iterator[str]:
    """`training.optimizer` checks that the paths of `lr_multipliers` exist in the parameters."""
    optimizer, train = config.optimizer, config.train
    names = [name for name, _ in optimizer.lr_multipliers]
    for name, factor in optimizer.lr_multipliers:
        if factor == 0:
            yield (
                f"optimizer.lr_multipliers: the factor {factor} of {name!r} must be positive; to freeze stages of the"
                " backbone, set model.backbone.frozen_stages"
            )
        if names.count(name) > 1:
            yield f"optimizer.lr_multipliers contains {name!r} twice"
    if list(optimizer.milestones) != sorted(set(optimizer.milestones)):
        yield f"optimizer.milestones must be increasing, got {optimizer.milestones}"
    if optimizer.schedule == "cosine" and optimizer.warmup_steps >= train.steps:
        yield f"{optimizer.warmup_steps=} must be less than {train.steps=} with optimizer.schedule=cosine"


def _training_problems(config: Config) -> Iterator[str]:
    """Check measurements during training, and accumulation (also `training.parallel.check_divisible`)."""
    train, scales = config.train, config.eval.scales
    if len(set(scales)) < len(scales):
        yield (
            f"eval.{scales=}: give distinct shortest edges in pixels, such as (640, 800, 960), or () for"
            " data.shortest_edge_eval"
        )
    if train.patience and not train.best_metric:
        yield f"{train.patience=} needs train.best_metric, the metric to improve"
    if train.best_metric and train.best_metric not in training_metrics(config):
        yield (
            f"{train.best_metric=!s} is not measured during training: set train.validate_every for {VALIDATION_LOSS},"
            f" train.evaluate_every for {', '.join(evaluation_metrics(config.model))}"
        )
    if train.batch_size % train.accumulate:
        yield (
            f"{train.accumulate=} does not divide {train.batch_size=}; give a divisor of the number of images per"
            " device, or 1 to disable accumulation"
        )

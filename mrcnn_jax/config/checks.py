"""Validation of constraints between configuration fields."""

from __future__ import annotations

from mrcnn_jax.config.metric_names import VALIDATION_LOSS, evaluation_metrics, training_metrics
from mrcnn_jax.config.model_schema import ModelConfig, RoIConfig
from mrcnn_jax.config.schema import Config, DataConfig, OptimizerConfig, ShapesConfig, TrainConfig
from mrcnn_jax.errors import ConfigError


def validate(config: Config) -> None:
    """Raise ConfigError if fields contradict each other; the message names them and says what to do."""
    if needs_initial_weights(config.model) and not config.init:
        raise ConfigError(
            "model.backbone has frozen batch norm or frozen stages, but init is empty: frozen layers would keep their"
            " random values. Give init=FILE, or set model.backbone.norm=gn and model.backbone.frozen_stages=0"
        )
    _check_backbone(config.model)
    _check_features(config.model)
    _check_anchors(config.model)
    _check_proposals(config.model)
    _check_roi_pooling(config.model.roi)
    _check_heads(config.model)
    _check_classes(config.model)
    _check_keypoints(config)
    _check_buckets(config)
    _check_shapes(config.data.shapes)
    _check_value_range(config.data)
    _check_scales(config.eval.scales)
    _check_augmentation(config.data)
    _check_lr_multipliers(config.optimizer)
    _check_schedule(config)
    _check_best_metric(config)
    _check_accumulation(config.train)


def needs_initial_weights(model: ModelConfig) -> bool:
    """Whether training keeps parts of the backbone at their initial values."""
    return model.backbone.norm == "frozen_bn" or model.backbone.frozen_stages > 0


def _check_accumulation(train: TrainConfig) -> None:
    """See also `training.parallel.check_divisible`, which knows the number of devices."""
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}; give a divisor"
            " of the number of images per device, or 1 to disable accumulation"
        )


def _check_backbone(model: ModelConfig) -> None:
    backbone = model.backbone
    if (backbone.groups, backbone.width_per_group) != (1, 64) and backbone.name not in ("resnet50", "resnet101"):
        raise ConfigError(
            f"model.backbone.groups={backbone.groups}, width_per_group={backbone.width_per_group}: {backbone.name} does"
            " not support groups. Use resnet50 or resnet101, or set groups=1 and width_per_group=64"
        )
    if backbone.width * backbone.width_per_group % 64:
        raise ConfigError(
            f"model.backbone.width={backbone.width}, width_per_group={backbone.width_per_group}: width *"
            " width_per_group must be a multiple of 64, so that groups have a whole number of channels"
        )


def _check_features(model: ModelConfig) -> None:
    """C4, C5 and DC5 need res5; with C4 it replaces the layers of the heads."""
    if model.features == "fpn":
        return
    if model.backbone.name.startswith("efficientnet"):
        raise ConfigError(
            f"model.features={model.features} needs a residual network; set model.features=fpn for"
            f" {model.backbone.name}, or change model.backbone.name"
        )
    if model.features != "c4":
        return
    if model.keypoint is not None:
        raise ConfigError("model.keypoint does not support model.features=c4: set model.features=fpn, or keypoint=None")
    if model.backbone.frozen_stages > 4:
        raise ConfigError(
            "model.backbone.frozen_stages: with model.features=c4 res5 is part of the heads; freeze at most 4 stages"
        )
    if model.box.conv_layers or model.box.fc_layers:
        raise ConfigError(
            "model.box: with model.features=c4 res5 replaces the layers; set model.box.conv_layers=0 and"
            " model.box.fc_layers=0"
        )
    if model.box.pool_size % 2:
        raise ConfigError(f"model.box.pool_size={model.box.pool_size} must be even with model.features=c4; use 14")
    if model.mask is not None and model.mask.pool_size != model.box.pool_size:
        raise ConfigError(
            f"model.mask.pool_size={model.mask.pool_size}, model.box.pool_size={model.box.pool_size}: with"
            " model.features=c4 both heads use the same pooled features; set both to 14"
        )


def _check_anchors(model: ModelConfig) -> None:
    sizes = model.anchors.sizes
    levels, where = (5, "each of P2..P6") if model.features == "fpn" else (1, "the one feature map")
    if len(sizes) != levels:
        raise ConfigError(f"model.anchors.sizes needs one tuple for {where}, got {len(sizes)}")
    if len({len(level) for level in sizes}) != 1:
        raise ConfigError("model.anchors.sizes needs the same number of sizes on each level, for the shared RPN head")
    if not sizes[0] or not model.anchors.aspect_ratios:
        raise ConfigError("model.anchors.sizes and model.anchors.aspect_ratios need at least one value (per level)")


def _check_proposals(model: ModelConfig) -> None:
    """Check the order of thresholds, positive samples, and the maximum numbers of boxes."""
    rpn, box, levels = model.rpn, model.box, len(model.anchors.sizes)
    if rpn.negative_iou > rpn.positive_iou:
        raise ConfigError(
            f"model.rpn.negative_iou={rpn.negative_iou} must not exceed model.rpn.positive_iou={rpn.positive_iou}:"
            " anchors between them would be positive and negative"
        )
    for name, count, fraction in (
        ("rpn", rpn.batch_size, rpn.positive_fraction),
        ("roi", model.roi.batch_size, model.roi.positive_fraction),
    ):
        if count * fraction < 1:
            raise ConfigError(
                f"model.{name}.batch_size={count} * model.{name}.positive_fraction={fraction} is less than one positive"
                " sample; increase one of them"
            )
    for phase in ("train", "test"):
        before, after = getattr(rpn, f"pre_nms_top_k_{phase}"), getattr(rpn, f"post_nms_top_k_{phase}")
        if after > before * levels:
            raise ConfigError(
                f"model.rpn.post_nms_top_k_{phase}={after} exceeds {levels} *"
                f" model.rpn.pre_nms_top_k_{phase}={before}, the maximum number of boxes before NMS"
            )
    if box.max_detections > box.nms_candidates:
        raise ConfigError(
            f"model.box.max_detections={box.max_detections} exceeds"
            f" model.box.nms_candidates={box.nms_candidates}, the number of boxes before NMS"
        )


def _check_roi_pooling(roi: RoIConfig) -> None:
    """A maximum needs the samples themselves; only the mean over an adaptive number of them has a closed form."""
    if roi.reduce == "max" and roi.pooling != "pool" and roi.sampling_ratio < 1:
        raise ConfigError(
            f"model.roi.reduce=max with model.roi.pooling={roi.pooling} needs a fixed number of samples, but"
            f" model.roi.sampling_ratio={roi.sampling_ratio}: set model.roi.sampling_ratio=2, for example, or"
            " model.roi.reduce=average"
        )


def _check_heads(model: ModelConfig) -> None:
    """Check that the mask head has one type of layers, and that normalized heads have convolutions."""
    if model.mask is not None and model.mask.fc_layers and model.mask.conv_layers:
        raise ConfigError(
            f"model.mask.fc_layers={model.mask.fc_layers}, conv_layers={model.mask.conv_layers}: fully connected layers"
            " replace the convolutions; set model.mask.conv_layers=0 or fc_layers=0"
        )
    for name, head in {"box": model.box, "mask": model.mask}.items():
        if head is not None and head.norm != "none" and not head.conv_layers:
            raise ConfigError(
                f"model.{name}.norm={head.norm} needs convolutions, but model.{name}.conv_layers=0; set"
                f" model.{name}.norm=none, or add layers"
            )


def _check_classes(model: ModelConfig) -> None:
    for name, values in {"category_ids": model.category_ids, "category_names": model.category_names}.items():
        if values and len(values) != model.num_classes:
            raise ConfigError(
                f"model.num_classes is {model.num_classes}, but model.{name} has {len(values)} entries; leave"
                " all of them empty to take them from the data"
            )


def _check_keypoints(config: Config) -> None:
    """Check the lists with one entry per keypoint (flip map, names, sigmas) and the pairs of the skeleton."""
    model, head, count = config.model, config.model.keypoint, config.model.num_keypoints
    if head is None:
        return
    flip_map = head.flip_map
    if (
        len(flip_map) != count
        or sorted(flip_map) != list(range(count))
        or any(flip_map[other] != i for i, other in enumerate(flip_map))
    ):
        raise ConfigError(
            f"model.keypoint.flip_map={flip_map} must give each of the {count} keypoints of"
            " model.keypoint.num_keypoints its index in the mirrored image, and exchange them in pairs"
        )
    lists = {"model.keypoint_names": model.keypoint_names, "eval.keypoint_sigmas": config.eval.keypoint_sigmas}
    for name, values in lists.items():
        if values and len(values) != count:
            raise ConfigError(f"{name} has {len(values)} entries, but model.keypoint.num_keypoints is {count}")
    if any(not 0 <= end < count for pair in model.skeleton for end in pair):
        raise ConfigError(f"model.skeleton={model.skeleton} has keypoints outside of 0..{count - 1}")


def _check_buckets(config: Config) -> None:
    data = config.data
    if not data.buckets:
        raise ConfigError("data.buckets is empty; give (height, width) of the padded images")
    for height, width in data.buckets:
        if height % 32 or width % 32:
            raise ConfigError(f"data.buckets: {height}x{width} is not divisible by 32")
        if data.buckets.count((height, width)) > 1:
            raise ConfigError(f"data.buckets contains {height}x{width} twice; remove one")
    if not data.shortest_edge_train:
        raise ConfigError("data.shortest_edge_train is empty; give at least one size in pixels")


def _check_shapes(shapes: ShapesConfig | None) -> None:
    for name in ("diameters", "objects") if shapes is not None else ():
        low, high = getattr(shapes, name)
        if low > high:
            raise ConfigError(f"data.shapes.{name}={(low, high)}: give the lower bound first")


def _check_value_range(data: DataConfig) -> None:
    if data.value_range is not None and data.value_range[0] >= data.value_range[1]:
        raise ConfigError(f"data.value_range={data.value_range}: give (low, high), such as (0, 4095), or None")


def _check_scales(scales: tuple[int, ...]) -> None:
    if len(set(scales)) < len(scales):
        raise ConfigError(
            f"eval.scales={scales}: give distinct shortest edges in pixels, such as (640, 800, 960), or () for"
            " data.shortest_edge_eval"
        )


def _check_augmentation(data: DataConfig) -> None:
    for name in ("crop_size", "scale_jitter"):
        bounds = getattr(data.augment, name)
        if bounds is not None and bounds[0] > bounds[1]:
            raise ConfigError(f"data.augment.{name}={bounds}: give the lower bound first")


def _check_lr_multipliers(optimizer: OptimizerConfig) -> None:
    """`training.optimizer` checks that the paths exist in the parameters."""
    names = [name for name, _ in optimizer.lr_multipliers]
    for name, factor in optimizer.lr_multipliers:
        if factor == 0:
            raise ConfigError(
                f"optimizer.lr_multipliers: the factor {factor} of {name!r} must be positive; to freeze stages of the"
                " backbone, set model.backbone.frozen_stages"
            )
        if names.count(name) > 1:
            raise ConfigError(f"optimizer.lr_multipliers contains {name!r} twice")


def _check_schedule(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if list(optimizer.milestones) != sorted(set(optimizer.milestones)):
        raise ConfigError(f"optimizer.milestones must be increasing, got {optimizer.milestones}")
    if optimizer.schedule == "cosine" and optimizer.warmup_steps >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} must be less than train.steps={steps} with"
            " optimizer.schedule=cosine"
        )


def _check_best_metric(config: Config) -> None:
    """The best metric must be measured during training; `patience` needs one."""
    train = config.train
    if train.patience and not train.best_metric:
        raise ConfigError(f"train.patience={train.patience} needs train.best_metric, the metric to improve")
    if train.best_metric and train.best_metric not in training_metrics(config):
        raise ConfigError(
            f"train.best_metric={train.best_metric} is not measured during training: set train.validate_every for"
            f" {VALIDATION_LOSS}, train.evaluate_every for {', '.join(evaluation_metrics(config.model))}"
        )

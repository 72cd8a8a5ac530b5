"""What a configuration must not contradict. Each message names the field, and says what to do."""

from __future__ import annotations

from mrcnn_jax.config.metric_names import VALIDATION_LOSS, measured_while_training, precisions
from mrcnn_jax.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RoIConfig,
    ShapesConfig,
    TrainConfig,
)
from mrcnn_jax.errors import ConfigError


def validate(config: Config) -> None:
    """Raise ConfigError for a configuration that contradicts itself, naming the field."""
    if needs_initial_weights(config.model) and not config.init:
        raise ConfigError(
            "model.backbone has frozen batch norm or frozen stages, but init names no weights: frozen layers would keep"
            " their random values. Give init=FILE, or set model.backbone.norm=gn and model.backbone.frozen_stages=0"
        )
    _check_backbone(config.model)
    _check_features(config.model)
    _check_anchors(config.model)
    _check_proposals(config.model)
    _check_pooling(config.model.roi)
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
    _check_measurements(config)
    _check_accumulation(config.train)


def needs_initial_weights(model: ModelConfig) -> bool:
    """Whether anything of the backbone stays as it is given, for the whole training."""
    return model.backbone.norm == "frozen_bn" or model.backbone.frozen_stages > 0


def _check_accumulation(train: TrainConfig) -> None:
    """How many devices share the batch is not known yet; `parallel.check_divisible` looks again."""
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.accumulate={train.accumulate} does not cut train.batch_size={train.batch_size} images into equal"
            " parts; give a divisor of the images that a device gets, or 1 to work on them all at once"
        )


def _check_backbone(model: ModelConfig) -> None:
    backbone = model.backbone
    if (backbone.groups, backbone.width_per_group) != (1, 64) and backbone.name not in ("resnet50", "resnet101"):
        raise ConfigError(
            f"model.backbone.groups={backbone.groups}, width_per_group={backbone.width_per_group}: the blocks of"
            f" {backbone.name} have no groups. Take resnet50 or resnet101, or groups=1 and width_per_group=64"
        )
    if backbone.width * backbone.width_per_group % 64:
        raise ConfigError(
            f"model.backbone.width={backbone.width} with width_per_group={backbone.width_per_group} does not give a"
            " group a whole number of channels: width * width_per_group must be a multiple of 64"
        )


def _check_features(model: ModelConfig) -> None:
    """C4 and DC5 are made of res5, and with C4 it is the layers of every head."""
    if model.features == "fpn":
        return
    if model.backbone.name.startswith("efficientnet"):
        raise ConfigError(
            f"model.features={model.features} is of residual networks; set model.features=fpn for"
            f" {model.backbone.name}, or take another model.backbone.name"
        )
    if model.features != "c4":
        return
    if model.keypoint is not None:
        raise ConfigError("model.keypoint has no form with model.features=c4: set model.features=fpn, or keypoint=None")
    if model.backbone.frozen_stages > 4:
        raise ConfigError("model.backbone.frozen_stages: with model.features=c4 res5 is the head; freeze 4 at most")
    if model.box.conv_layers or model.box.fc_layers:
        raise ConfigError(
            "model.box: with model.features=c4 res5 takes the place of the layers; set model.box.conv_layers=0 and"
            " model.box.fc_layers=0"
        )
    if model.box.pool_size % 2:
        raise ConfigError(f"model.box.pool_size={model.box.pool_size}: res5 halves it (model.features=c4); take 14")
    if model.mask is not None and model.mask.pool_size != model.box.pool_size:
        raise ConfigError(
            f"model.mask.pool_size={model.mask.pool_size}, model.box.pool_size={model.box.pool_size}: with"
            " model.features=c4 both heads look at the same pooled features; set both to 14"
        )


def _check_anchors(model: ModelConfig) -> None:
    sizes = model.anchors.sizes
    levels, where = (5, "each of P2..P6") if model.features == "fpn" else (1, "the one feature map")
    if len(sizes) != levels:
        raise ConfigError(f"model.anchors.sizes needs one tuple for {where}, got {len(sizes)}")
    if len({len(level) for level in sizes}) != 1:
        raise ConfigError("model.anchors.sizes needs equally many sizes on each level: one RPN head serves them all")
    if not sizes[0] or not model.anchors.aspect_ratios:
        raise ConfigError("model.anchors.sizes and model.anchors.aspect_ratios need at least one value (of each level)")


def _check_proposals(model: ModelConfig) -> None:
    """Bounds the right way round, samples with positives, and no slots that nothing could ever fill."""
    rpn, box, levels = model.rpn, model.box, len(model.anchors.sizes)
    if rpn.negative_iou > rpn.positive_iou:
        raise ConfigError(
            f"model.rpn.negative_iou={rpn.negative_iou} must not be above model.rpn.positive_iou={rpn.positive_iou}:"
            " an anchor between them would be both"
        )
    for name, count, fraction in (
        ("rpn", rpn.batch_size, rpn.positive_fraction),
        ("roi", model.roi.batch_size, model.roi.positive_fraction),
    ):
        if count * fraction < 1:
            raise ConfigError(
                f"model.{name}.batch_size={count} * model.{name}.positive_fraction={fraction} samples no positive:"
                " there would be no object to learn from"
            )
    for phase in ("train", "test"):
        before, after = getattr(rpn, f"pre_nms_top_k_{phase}"), getattr(rpn, f"post_nms_top_k_{phase}")
        if after > before * levels:
            raise ConfigError(
                f"model.rpn.post_nms_top_k_{phase}={after} is more than the {levels} *"
                f" model.rpn.pre_nms_top_k_{phase}={before} boxes that there can be"
            )
    if box.max_detections > box.nms_candidates:
        raise ConfigError(
            f"model.box.max_detections={box.max_detections} is more than model.box.nms_candidates="
            f"{box.nms_candidates}, out of which they are chosen"
        )


def _check_pooling(roi: RoIConfig) -> None:
    """A maximum over bilinear samples looks at each of them; only a mean over any number has a closed form."""
    if roi.reduce == "max" and roi.pooling != "pool" and roi.sampling_ratio < 1:
        raise ConfigError(
            f"model.roi.reduce=max with model.roi.pooling={roi.pooling} needs a fixed number of samples, but"
            f" model.roi.sampling_ratio={roi.sampling_ratio}: set model.roi.sampling_ratio=2, for example, or"
            " model.roi.reduce=average"
        )


def _check_heads(model: ModelConfig) -> None:
    """A norm follows a convolution of the head; there must be one."""
    if model.mask is not None and model.mask.fc_layers and model.mask.conv_layers:
        raise ConfigError(
            f"model.mask.fc_layers={model.mask.fc_layers}, conv_layers={model.mask.conv_layers}: a perceptron takes the"
            " place of the convolutions; set model.mask.conv_layers=0, or fc_layers=0"
        )
    for name, head in {"box": model.box, "mask": model.mask}.items():
        if head is not None and head.norm != "none" and not head.conv_layers:
            raise ConfigError(
                f"model.{name}.norm={head.norm}, but model.{name}.conv_layers=0: there is nothing to normalize. Set"
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
    """The lists that have one entry for each keypoint: flip map, names, sigmas; and the skeleton's pairs."""
    model, head, count = config.model, config.model.keypoint, config.model.num_keypoints
    if head is None:
        return
    pairs = head.flip_map
    if (
        len(pairs) != count
        or sorted(pairs) != list(range(count))
        or any(pairs[other] != i for i, other in enumerate(pairs))
    ):
        raise ConfigError(
            f"model.keypoint.flip_map={head.flip_map} does not exchange the {count} keypoints of"
            " model.keypoint.num_keypoints in pairs: for each it says which one it becomes in a mirrored image"
        )
    lists = {"model.keypoint_names": model.keypoint_names, "eval.keypoint_sigmas": config.eval.keypoint_sigmas}
    for name, values in lists.items():
        if values and len(values) != count:
            raise ConfigError(f"{name} has {len(values)} entries, but model.keypoint.num_keypoints is {count}")
    if any(not 0 <= end < count for pair in model.skeleton for end in pair):
        raise ConfigError(f"model.skeleton={model.skeleton} has pairs beyond the keypoints 0..{count - 1}")


def _check_buckets(config: Config) -> None:
    data = config.data
    if not data.buckets:
        raise ConfigError("data.buckets is empty; give the (height, width) that images are padded to")
    for height, width in data.buckets:
        if height % 32 or width % 32:
            raise ConfigError(f"data.buckets: {height}x{width} is not divisible by 32")
        if data.buckets.count((height, width)) > 1:
            raise ConfigError(f"data.buckets names {height}x{width} twice; the second would hold nothing")
    if not data.shortest_edge_train:
        raise ConfigError("data.shortest_edge_train is empty; give at least one number of pixels")


def _check_shapes(shapes: ShapesConfig | None) -> None:
    for name in ("diameters", "objects") if shapes is not None else ():
        low, high = getattr(shapes, name)
        if low > high:
            raise ConfigError(f"data.shapes.{name}={(low, high)}: give the lower bound first")


def _check_value_range(data: DataConfig) -> None:
    if data.value_range is not None and data.value_range[0] >= data.value_range[1]:
        raise ConfigError(f"data.value_range={data.value_range}: give two values, low < high, as (0, 4095); or None")


def _check_scales(scales: tuple[int, ...]) -> None:
    if len(set(scales)) < len(scales):
        raise ConfigError(
            f"eval.scales={scales}: give shortest edges in pixels, each once, as (640, 800, 960); or () for"
            " data.shortest_edge_eval alone"
        )


def _check_augmentation(data: DataConfig) -> None:
    for name in ("crop_size", "scale_jitter"):
        bounds = getattr(data.augment, name)
        if bounds is not None and bounds[0] > bounds[1]:
            raise ConfigError(f"data.augment.{name}={bounds}: give the lower bound first")


def _check_lr_multipliers(optimizer: OptimizerConfig) -> None:
    """Whether their paths exist only the parameters know: `training.optimizer`."""
    names = [name for name, _ in optimizer.lr_multipliers]
    for name, factor in optimizer.lr_multipliers:
        if factor == 0:
            raise ConfigError(
                f"optimizer.lr_multipliers: the factor {factor} of {name!r} must be positive. To freeze stages of the"
                " backbone set model.backbone.frozen_stages"
            )
        if names.count(name) > 1:
            raise ConfigError(f"optimizer.lr_multipliers names {name!r} twice")


def _check_schedule(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if list(optimizer.milestones) != sorted(set(optimizer.milestones)):
        raise ConfigError(f"optimizer.milestones must increase, got {optimizer.milestones}")
    if optimizer.schedule == "cosine" and optimizer.warmup_steps >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps ({optimizer.warmup_steps}) leaves nothing of a cosine over train.steps ({steps})"
        )


def _check_measurements(config: Config) -> None:
    """A best metric must be measured while it can still decide something, and patience needs one."""
    train = config.train
    if train.patience and not train.best_metric:
        raise ConfigError(f"train.patience={train.patience} needs train.best_metric: what is to become better")
    if train.best_metric and train.best_metric not in measured_while_training(config):
        raise ConfigError(
            f"train.best_metric={train.best_metric} is not measured: set train.validate_every for {VALIDATION_LOSS},"
            f" train.evaluate_every for the others; the model has {', '.join(precisions(config.model))}"
        )

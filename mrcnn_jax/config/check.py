"""What a configuration must not contradict."""

from __future__ import annotations

from mrcnn_jax.config.tree import Config, ConfigError


def validate(config: Config) -> None:
    """Raise ConfigError for a configuration that contradicts itself, naming the field."""
    model, data = config.model, config.data
    frozen = model.backbone.norm == "frozen_bn" or model.backbone.frozen_stages > 0
    if frozen and not config.init:
        raise ConfigError(
            "model.backbone has frozen batch norm or frozen stages, but init names no weights: frozen layers would keep"
            " their random values. Give init=FILE, or set model.backbone.norm=gn and model.backbone.frozen_stages=0"
        )
    if not 0 <= model.backbone.frozen_stages <= 5:
        raise ConfigError("model.backbone.frozen_stages must be between 0 and 5")
    levels, where = (5, "each of P2..P6") if model.features == "fpn" else (1, "the one feature map")
    if len(model.anchors.sizes) != levels:
        raise ConfigError(f"model.anchors.sizes needs one tuple for {where}, got {len(model.anchors.sizes)}")
    if len({len(sizes) for sizes in model.anchors.sizes}) != 1:
        raise ConfigError("model.anchors.sizes needs equally many sizes on each level: one RPN head serves them all")
    if not data.buckets:
        raise ConfigError("data.buckets is empty; give the (height, width) that images are padded to")
    for height, width in data.buckets:
        if height % 32 or width % 32 or min(height, width) <= 0:
            raise ConfigError(f"data.buckets: {height}x{width} is not divisible by 32")
    if config.train.batch_size <= 0 or config.train.steps <= 0:
        raise ConfigError("train.batch_size and train.steps must be positive")
    if model.category_ids and len(model.category_ids) != model.num_classes:
        raise ConfigError(
            f"model.num_classes is {model.num_classes}, but model.category_ids has {len(model.category_ids)} ids"
        )
    _validate_keypoints(config)


def _validate_keypoints(config: Config) -> None:
    """The lists that have one entry for each keypoint: flip map, names, sigmas; and the skeleton's pairs."""
    model, head, count = config.model, config.model.keypoint, config.model.num_keypoints
    if head is None:
        return
    if sorted(head.flip_map) != list(range(count)) or any(head.flip_map[head.flip_map[i]] != i for i in range(count)):
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

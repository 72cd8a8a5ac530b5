"""The typed configuration tree, its overrides, its JSON form and its validation.

A recipe is a Python file with `get_config() -> Config`. One override mechanism, dotted `name=value`, serves the
commands and `load_config`; values are checked against the type of the field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and says what to do."""


NormName = Literal["frozen_bn", "bn", "sync_bn", "gn"]
HeadNormName = Literal["none", "bn", "sync_bn", "gn"]


@dataclass(frozen=True)
class BackboneConfig:
    """Residual network (He et al. 2016, Xie et al. 2017) or EfficientNet-Lite (Tan and Le 2019), the bottom-up path."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0"] = "resnet50"
    width: int = 64  # channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks: four times that)
    groups: int = 1  # of the 3 x 3 convolutions; ResNeXt-101-32x8d has 32 groups of 8 channels in res2
    width_per_group: int = 64  # channels of a group in res2 where width is 64
    norm: NormName = "frozen_bn"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False  # True: the MSRA/Detectron2 placement, False: torchvision's
    frozen_stages: int = 2  # 0: everything trains; 1: the stem is frozen; 2: stem and res2; ...


@dataclass(frozen=True)
class FPNConfig:
    """Feature pyramid (Lin et al. 2017), P2..P6."""

    channels: int = 256
    norm: HeadNormName = "none"


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors of each level: of P2..P6 with a pyramid, of the one feature map without."""

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # torchvision rounds the corners of its base anchors to integers
    order: Literal["size_major", "ratio_major"] = "size_major"  # Detectron2's order, torchvision's order
    stride: Literal["nominal", "image_over_grid"] = "nominal"  # torchvision divides image by grid, in integers


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network: head, targets, losses, proposals."""

    conv_layers: int = 1
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    batch_size: int = 256  # anchors sampled in an image
    positive_fraction: float = 0.5
    smooth_l1_beta: float = 0.0  # 0 is the L1 loss (Detectron2); torchvision has 1/9
    normalizer: Literal["batch_size", "sampled"] = "batch_size"  # divide by batch_size * images, or by what was drawn
    pre_nms_top_k_train: int = 2000  # for each level
    pre_nms_top_k_test: int = 1000
    post_nms_top_k_train: int = 1000  # all levels together
    post_nms_top_k_test: int = 1000
    nms_iou: float = 0.7
    min_box_size: float = 0.0  # boxes with a shorter side are not proposed; 0 drops only the empty ones


@dataclass(frozen=True)
class RoIConfig:
    """Sampling of RoIs for training, and how features are pooled from them."""

    batch_size: int = 512  # RoIs sampled in an image
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    aligned: bool = True  # ROIAlign with the half-pixel shift (Detectron2) or without (torchvision)
    sampling_ratio: int = 0  # samples in a bin and direction; 0: adaptive, as many as the bin has pixels
    level_rule: Literal["detectron2", "torchvision"] = "detectron2"  # where the epsilon of the level formula stands


@dataclass(frozen=True)
class BoxHeadConfig:
    """Convolutions, fully connected layers, then classes and boxes; losses and final detections.

    With `model.features="c4"` res5 takes the place of the layers, and `pool_size` is its input.
    """

    pool_size: int = 7
    conv_layers: int = 0
    channels: int = 256  # of the convolutions
    norm: HeadNormName = "none"  # after each convolution
    fc_layers: int = 2
    hidden: int = 1024
    class_agnostic: bool = False  # one box for all classes
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 0.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    nms_candidates: int = 4096  # (proposal, class) pairs that enter class-wise NMS, best scores first
    min_box_size: float = 0.0


@dataclass(frozen=True)
class MaskHeadConfig:
    """Fully convolutional mask head: one sigmoid mask for each class."""

    pool_size: int = 14
    conv_layers: int = 4
    channels: int = 256
    norm: HeadNormName = "none"
    class_agnostic: bool = False  # one mask for all classes
    target: Literal["binary", "soft"] = "binary"  # mask targets thresholded at 1/2 (Detectron2) or not (torchvision)
    target_sampling_ratio: int = 2  # samples in a cell and direction when targets are resampled; 0: adaptive
    paste: Literal["detectron2", "torchvision"] = "detectron2"  # how a mask is laid on the image


@dataclass(frozen=True)
class KeypointHeadConfig:
    """Keypoint head (He et al. 2017, section 5): a one-hot heat map for each of K keypoints."""

    num_keypoints: int = 17
    pool_size: int = 14
    conv_layers: int = 8
    channels: int = 512
    normalizer: Literal["visible", "fixed"] = "visible"  # divide by visible keypoints, or by the most that could be
    score: Literal["probability", "logit"] = "probability"  # what a keypoint's score is: Detectron2's, torchvision's
    flip_map: tuple[int, ...] = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # index in a mirrored image


@dataclass(frozen=True)
class ModelConfig:
    """The network. `num_classes`, ids, names and skeleton come from the data when they are left empty."""

    num_classes: int = 0  # foreground classes C; 0: taken from the data
    category_ids: tuple[int, ...] = ()  # category_ids[k - 1] is the data set's id of class k
    category_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()  # of the K keypoints
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints, counted from 0, that pictures join with a line
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # in channel_order, on the scale 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    features: Literal["fpn", "c4", "dc5"] = "fpn"  # pyramid; res4, with res5 as the head; res5 dilated to stride 16
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
        """Side S of the predicted masks; 0 without a mask head. C4's res5 halves what was pooled."""
        if self.mask is None:
            return 0
        return self.mask.pool_size if self.features == "c4" else 2 * self.mask.pool_size

    @property
    def num_keypoints(self) -> int:
        """K; 0 without a keypoint head."""
        return self.keypoint.num_keypoints if self.keypoint is not None else 0


@dataclass(frozen=True)
class SplitConfig:
    """One split of a COCO-style data set; paths are relative to `data.root`."""

    annotations: str = "annotations/instances_train2017.json"
    images: str = "train2017"
    image_ids: tuple[int, ...] = ()  # only these images; empty: all


@dataclass(frozen=True)
class ShapesConfig:
    """The procedural data set: when set, it is written to `data.root` as COCO JSON + PNG if it is not there yet."""

    train_images: int = 400
    eval_images: int = 100
    image_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Where images come from, and the fixed shapes that they are padded to."""

    root: str = ""
    train: SplitConfig = field(default_factory=SplitConfig)
    eval: SplitConfig = field(default_factory=lambda: SplitConfig("annotations/instances_val2017.json", "val2017"))
    shapes: ShapesConfig | None = None
    categories: tuple[str, ...] = ()  # names of the only categories to use, in both splits; empty: all
    min_keypoints: int = 0  # train on images with at least so many labelled keypoints (Detectron2: 1, torchvision: 10)
    cache_dir: str = ""  # prepared records; empty: ~/.cache/mrcnn_jax/datasets
    buckets: tuple[tuple[int, int], ...] = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))  # height, width
    shortest_edge_train: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each image
    shortest_edge_eval: int = 800
    longest_edge: int = 1333
    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0
    max_instances: int = 100  # ground-truth slots N
    mask_size: int = 112  # side M of the mask crops
    workers: int = 0  # worker processes; 0: threads of this process


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum or AdamW, warmup, then a multistep or cosine schedule. Norms and biases as in Detectron2."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4  # never on norms
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (60_000, 80_000)
    milestone_factor: float = 0.1
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    clip_norm: float | None = None  # global gradient norm


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, what it keeps, and how often it speaks."""

    steps: int = 90_000
    batch_size: int = 16  # images in a global batch, over all devices
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 5000
    keep_checkpoints: int = 3


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation after training and in eval.py, and how images are made ready for inference."""

    batch_size: int = 8  # of the images of one bucket
    # Into `data.buckets`; or each image alone, resized and padded exactly as the peer does it: one compile a shape.
    resize: Literal["bucket", "torchvision", "detectron2"] = "bucket"
    overlays: int = 8  # pictures with predictions drawn, written to the workdir
    keypoint_sigmas: tuple[float, ...] = ()  # of OKS, one a keypoint; empty: COCO's for 17, else their mean for each


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    name: str = "mask_rcnn"
    init: str = ""  # file with the initial weights; needed where layers are frozen
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Run `get_config()` of a recipe file and apply dotted `name=value` overrides.

    Raises ConfigError for a missing file, a file without `get_config`, an unknown field or a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}; recipes are in configs/")
    spec = importlib.util.spec_from_file_location(f"mrcnn_jax_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config()")
    return apply_overrides(module.get_config(), overrides)


def apply_overrides(config: T, overrides: typing.Sequence[str]) -> T:
    """Return `config` with each dotted `name=value` applied, in order."""
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r} is not of the form name=value")
        config = _replace(config, name.split("."), text, name)
    return config


def to_json(config: Any) -> str:
    """The resolved configuration as JSON; `from_json` reads it back unchanged."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Read what `to_json` wrote. Raises ConfigError for unknown fields or values of the wrong type."""
    return _coerce(json.loads(text), Config, "config")


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


def _replace(node: Any, path: list[str], text: str, full_name: str) -> Any:
    """Copy of dataclass `node` with the field at `path` set to the parsed `text`."""
    hints = typing.get_type_hints(type(node)) if dataclasses.is_dataclass(node) else {}
    if path[0] not in hints:
        raise _unknown_field(full_name, path[0], hints)
    if len(path) == 1:
        return dataclasses.replace(node, **{path[0]: _coerce(_parse(text, hints[path[0]]), hints[path[0]], full_name)})
    child = getattr(node, path[0])
    if child is None:
        raise ConfigError(f"{full_name!r} cannot be set: {path[0]!r} is None in this recipe")
    return dataclasses.replace(node, **{path[0]: _replace(child, path[1:], text, full_name)})


def _unknown_field(full_name: str, name: str, fields: typing.Iterable[str]) -> ConfigError:
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"fields here: {', '.join(fields) or 'none'}"
    return ConfigError(f"unknown configuration field {full_name!r} (no {name!r}); {hint}")


def _parse(text: str, hint: Any) -> Any:
    """A Python literal, or the text itself when it is none, so that text needs no quotes: neither `weights.npz`, nor
    a folder called `1_000` where the field is a string."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return text if hint is str and not isinstance(value, str) else value


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Check `value` against a type hint; ints become floats, lists become tuples, dicts become dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(a for a in arguments if a is not type(None)), name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        return _coerce_tuple(value, arguments, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        for key in value.keys() - hints.keys():
            raise _unknown_field(f"{name}.{key}", key, hints)
        return typing.cast(Any, hint)(**{k: _coerce(v, hints[k], f"{name}.{k}") for k, v in value.items()})
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise ConfigError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _coerce_tuple(value: Any, arguments: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        value = (value,)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_coerce(item, arguments[0], name) for item in value)
    if len(value) != len(arguments):
        raise ConfigError(f"{name}: expected {len(arguments)} values, got {len(value)}")
    return tuple(_coerce(item, argument, name) for item, argument in zip(value, arguments, strict=True))

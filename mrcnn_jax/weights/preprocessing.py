"""Preprocessing, stride and batch norm epsilon that each source of weights was trained with.

| weights | channels | mean, std of pixels 0..255 | stride of a block | source |
|---|---|---|---|---|
| torchvision's detectors, classifiers | RGB | ImageNet's | 3x3 | torchvision 0.29.2, detection/faster_rcnn.py |
| Detectron2's, from MSRA's ResNets | BGR | ImageNet's means, 1 | 1x1 | detectron2 02b5c4e, config/defaults.py |
| Detectron2's, group norm | BGR | ImageNet's means, 1 | 3x3 | configs/Misc/mask_rcnn_R_50_FPN_3x_gn.yaml |
| Detectron2's, ResNeXt | BGR | ImageNet's | 3x3 | COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml |
| Detectron2's, from torchvision's ResNets | RGB | ImageNet's | 3x3 | tools/convert-torchvision-to-d2.py |
| Detectron's (2018) | BGR | 102.9801 115.9465 122.7717, 1 | 1x1 | Detectron 04155a0, core/config.py |
| Detectron's, group norm or ResNeXt | BGR | the same | 3x3 | core/config.py, RESNETS.STRIDE_1X1 |
| EfficientNet-Lite's | RGB | 127, 128 | - | tensorflow/tpu 22d5cab, efficientnet/lite/efficientnet_lite_builder.py |

If a Detectron2 state dict contains `pixel_mean` and `pixel_std`, they are used; otherwise the table is a guess from the
shapes, which does not apply to models trained from random weights. So `import_weights` uses the model's preprocessing
then. The epsilon is 1e-5, in EfficientNet-Lite 1e-3; torchvision uses 0 for its published COCO_V1 files
(`overwrite_eps` in models/detection).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.naming import StateDict

log = logging.getLogger(__name__)

Triple = tuple[float, float, float]


class Preprocessing(NamedTuple):
    """The fields of a ModelConfig that the weights determine. `pixel_mean` and `pixel_std`: in `channel_order`."""

    channel_order: Literal["rgb", "bgr"]
    pixel_mean: Triple
    pixel_std: Triple
    stride_in_1x1: bool = False
    norm_eps: float = 1e-5


_UNSCALED = (1.0, 1.0, 1.0)
_BGR_MEAN = (103.53, 116.28, 123.675)

TORCHVISION = Preprocessing(
    "rgb", (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255), stride_in_1x1=False
)
_MSRA = Preprocessing("bgr", _BGR_MEAN, _UNSCALED, stride_in_1x1=True)
_GROUP_NORM = _MSRA._replace(stride_in_1x1=False)
_RESNEXT = Preprocessing("bgr", _BGR_MEAN, (57.375, 57.12, 58.395), stride_in_1x1=False)
_DETECTRON_MEAN = (102.9801, 115.9465, 122.7717)
EFFICIENTNET_LITE = Preprocessing("rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0), norm_eps=1e-3)

# torchvision's FasterRCNN_, MaskRCNN_ and KeypointRCNN_ResNet50_FPN_Weights.COCO_V1. The digits in the name are the
# first ones of the file's SHA-256.
_COCO_V1 = (
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
)


def detectron2_preprocessing(state: StateDict, author: str) -> Preprocessing:
    """Return the preprocessing of a state dict with Detectron2's names; `author` is `__author__` of its file.

    It is inferred from the shapes if the file does not state it (see `states_preprocessing`).
    """
    if _has_pixel_statistics(state):
        return _from_pixel_statistics(state)
    if author == "torchvision":
        return TORCHVISION
    return {"resnext": _RESNEXT, "group norm": _GROUP_NORM, "resnet": _MSRA}[_backbone_type(state)]


def states_preprocessing(state: StateDict, author: str) -> bool:
    """Whether a state dict with Detectron2's names has pixel statistics, or is from torchvision."""
    return _has_pixel_statistics(state) or author == "torchvision"


def detectron_preprocessing(state: StateDict, author: str = "") -> Preprocessing:
    """Return the preprocessing of weights of Detectron (2018), converted to Detectron2's names."""
    return Preprocessing("bgr", _DETECTRON_MEAN, _UNSCALED, stride_in_1x1=_backbone_type(state) == "resnet")


def apply_preprocessing(model: ModelConfig, new: Preprocessing) -> ModelConfig:
    """Return `model` with the fields of `new`."""
    order, mean, std, stride_in_1x1, norm_eps = new
    backbone = dataclasses.replace(model.backbone, stride_in_1x1=stride_in_1x1, norm_eps=norm_eps)
    return dataclasses.replace(model, channel_order=order, pixel_mean=mean, pixel_std=std, backbone=backbone)


def preprocessing_of(model: ModelConfig) -> Preprocessing:
    """Return the fields of `model` that the weights determine; the inverse of `apply_preprocessing`."""
    stride_in_1x1, norm_eps = model.backbone.stride_in_1x1, model.backbone.norm_eps
    return Preprocessing(model.channel_order, model.pixel_mean, model.pixel_std, stride_in_1x1, norm_eps)


def select_norm_eps(default: Preprocessing, norm: str, path: Path | None, override: float | None) -> Preprocessing:
    """Return `default` with the epsilon of the frozen batch norms, which is logged.

    Args:
      norm: the norm of the backbone; without frozen batch norms, `default` is returned.
      path: a file that may be one of torchvision's published COCO_V1 files, which have epsilon 0.
      override: an epsilon that replaces all others.

    Raises WeightsError if there is an `override` but no frozen batch norm.
    """
    if norm != "frozen_bn":
        if override is not None:
            raise WeightsError(f"frozen_bn_eps={override} is for frozen batch norms; the backbone's norm is {norm!r}")
        return default
    selected = default
    if override is not None:
        selected, reason = default._replace(norm_eps=override), "as requested"
    elif path is not None and (name := published_file_name(path)):
        selected, reason = default._replace(norm_eps=0.0), f"the file is torchvision's {name}"
    else:
        reason = "the default" if path is None else "the file is not one of torchvision's published COCO_V1 files"
    log.info("epsilon of the frozen batch norms: %g (%s)", selected.norm_eps, reason)
    return selected


def published_file_name(path: Path) -> str | None:
    """Return the name of torchvision's COCO_V1 file with the content of `path`; None if there is none."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((name for name in _COCO_V1 if digest.startswith(name[-12:-4])), None)


def _backbone_type(state: StateDict) -> Literal["resnet", "resnext", "group norm"]:
    """The type of the backbone in a state dict with Detectron2's names."""
    kernel = next((value for name, value in state.items() if name.endswith("res2.0.conv2.weight")), None)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] < kernel.shape[0]:
        return "resnext"
    batch_norm = any(name.endswith("stem.conv1.norm.running_mean") for name in state)
    return "resnet" if batch_norm else "group norm"


def _has_pixel_statistics(state: StateDict) -> bool:
    return "pixel_mean" in state and "pixel_std" in state


def _from_pixel_statistics(state: StateDict) -> Preprocessing:
    """Preprocessing of a state dict that contains its pixel mean and std.

    The channel order is inferred: red has the highest mean in ImageNet. Scaled pixels in RGB belong to torchvision's
    ResNets, scaled pixels in BGR to Caffe2's ResNeXt; both have the stride in the 3x3 convolution.
    """
    mean, std = _triple(state["pixel_mean"]), _triple(state["pixel_std"])
    order: Literal["rgb", "bgr"] = "rgb" if mean[0] > mean[2] else "bgr"
    unscaled = std == _UNSCALED and _backbone_type(state) == "resnet"
    return Preprocessing(order, mean, std, stride_in_1x1=unscaled)


def _triple(value: Any) -> Triple:
    """Three float32 numbers in their shortest decimal form: 103.53, not 103.52999877929688."""
    first, second, third = (float(f"{float(v):.7g}") for v in value.reshape(-1))
    return first, second, third

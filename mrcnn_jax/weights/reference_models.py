"""Models of the reference implementations (torchvision, Detectron2), loaded by their own names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from mrcnn_jax.config import Config, ModelConfig, presets
from mrcnn_jax.weights.zoo import ZooEntry

if TYPE_CHECKING:
    from mrcnn_jax.weights.source import WeightsSource

Origin = Literal["torchvision", "detectron2"]
ORIGINS: tuple[Origin, ...] = ("torchvision", "detectron2")


def origin_of(name: str) -> Origin:
    """Return the project of a model name: maskrcnn_... is torchvision's, mask_rcnn_... Detectron2's."""
    return "torchvision" if re.match("(mask|faster|keypoint)rcnn", name) else "detectron2"


def preset_of(entry: ZooEntry) -> tuple[Origin, str]:
    """Return the project and the name, for `load`, of the model of a published detector."""
    if entry.source == "torchvision":
        return "torchvision", entry.name.partition("/")[0]  # without the name of the weights
    return "detectron2", entry.name


def preset(origin: Origin, name: str) -> ModelConfig:
    """Return the configuration of a project's model by its name there. Raises ConfigError for an unknown name."""
    return presets.torchvision_model(name) if origin == "torchvision" else presets.detectron2_model(name)


def load(
    source: WeightsSource,
    origin: Origin,
    name: str,
    recipe: Config | None = None,
    *,
    exact: bool = True,
    frozen_bn_eps: float | None = None,
) -> tuple[Config, Any]:
    """Load the configuration and the variables of a reference model.

    Args:
      source: a weights file (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      origin: the project of the model.
      name: the project's name of the model, such as "maskrcnn_resnet50_fpn" or "mask_rcnn_R_50_FPN"; see `presets`.
      recipe: the configuration of everything but the model. Default: as in `presets.published`.
      exact: whether to resize and pad each image as the reference implementation does; otherwise into the buckets.
      frozen_bn_eps: epsilon of frozen batch norms. Default: the value that belongs to the weights.

    Raises ConfigError for an unknown name, WeightsError for weights that cannot be used.
    """
    from mrcnn_jax.weights.transfer import import_weights  # deferred, because it imports jax

    model, variables = import_weights(source, preset(origin, name), format=origin, frozen_bn_eps=frozen_bn_eps)
    recipe = recipe or presets.published(name, model)
    settings = dataclasses.replace(recipe.eval, resize=origin if exact else "bucket")
    return dataclasses.replace(recipe, name=PurePath(name).stem, model=model, eval=settings), variables

"""torchvision's and Detectron2's models, by the names that they have there, with anybody's weights of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from mrcnn_jax import presets
from mrcnn_jax.config import Config

if TYPE_CHECKING:
    from mrcnn_jax.weights.source import Weights

Peer = Literal["torchvision", "detectron2"]
PEERS: tuple[Peer, ...] = ("torchvision", "detectron2")


def peer_of(name: str) -> Peer:
    """Whose name of a model that is: torchvision writes maskrcnn_..., Detectron2 mask_rcnn_..."""
    return "torchvision" if re.match("(mask|faster|keypoint)rcnn", name) else "detectron2"


def load(
    source: Weights,
    peer: Peer,
    name: str,
    recipe: Config | None = None,
    *,
    exact: bool = True,
    frozen_bn_eps: float | None = None,
) -> tuple[Config, Any]:
    """Configuration and variables of a peer's model.

    Args:
      source: a file of weights (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      name: of the model, such as "maskrcnn_resnet50_fpn" or "mask_rcnn_R_50_FPN"; see `presets`.
      recipe: where data and settings come from, all but the model. Default: COCO 2017.
      exact: resize and pad every image as the peer does; else into the buckets.
      frozen_bn_eps: epsilon of frozen batch norms; default: what the weights were made with.

    Raises ConfigError for an unknown name, WeightsError for weights that cannot be used.
    """
    from mrcnn_jax.weights.load import import_weights  # here: it needs jax

    model = presets.torchvision_model(name) if peer == "torchvision" else presets.detectron2_model(name)
    model, variables = import_weights(source, model, format=peer, frozen_bn_eps=frozen_bn_eps)
    recipe = recipe or presets.coco(name, model, "1x")
    settings = dataclasses.replace(recipe.eval, resize=peer if exact else "bucket")
    return dataclasses.replace(recipe, name=PurePath(name).stem, model=model, eval=settings), variables

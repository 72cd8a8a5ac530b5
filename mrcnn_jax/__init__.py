"""Mask R-CNN in pure functional JAX. Public names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn_jax import visualize as visualize
    from mrcnn_jax.config import load_config as load_config
    from mrcnn_jax.inference.predictor import Predictor as Predictor
    from mrcnn_jax.inference.predictor import read_image as read_image
    from mrcnn_jax.models.mask_rcnn import build_model as build_model

__version__ = "0.2.0"

_PUBLIC = {
    "load_config": "mrcnn_jax.config",
    "build_model": "mrcnn_jax.models.mask_rcnn",
    "Predictor": "mrcnn_jax.inference.predictor",
    "read_image": "mrcnn_jax.inference.predictor",
}
_MODULES = ("visualize",)
__all__ = [*_PUBLIC, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mrcnn_jax.{name}")
    raise AttributeError(f"module 'mrcnn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

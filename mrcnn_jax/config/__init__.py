"""The typed configuration tree, its overrides, its JSON form and its validation.

A recipe is a Python file with `get_config() -> Config`. One override mechanism, dotted `name=value`, serves the
commands and `load_config`; values are checked against the type of the field.
"""

from mrcnn_jax.config.checks import needs_initial_weights, validate
from mrcnn_jax.config.load import PLACES, apply_overrides, flatten, from_json, load_config, to_json
from mrcnn_jax.config.schema import (
    AnchorConfig,
    AugmentConfig,
    BackboneConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    EvalConfig,
    FPNConfig,
    HeadNormName,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    NormName,
    OptimizerConfig,
    RoIConfig,
    RPNConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "PLACES",
    "AnchorConfig",
    "AugmentConfig",
    "BackboneConfig",
    "BoxHeadConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FPNConfig",
    "HeadNormName",
    "KeypointHeadConfig",
    "MaskHeadConfig",
    "ModelConfig",
    "NormName",
    "OptimizerConfig",
    "RPNConfig",
    "RoIConfig",
    "ShapesConfig",
    "SplitConfig",
    "TrainConfig",
    "apply_overrides",
    "flatten",
    "from_json",
    "load_config",
    "needs_initial_weights",
    "to_json",
    "validate",
]

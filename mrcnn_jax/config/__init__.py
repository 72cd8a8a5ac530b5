"""The typed configuration: schema, overrides, JSON format and validation.

A recipe is a Python file with `get_config() -> Config`. Commands and `load_config` accept the same overrides, dotted
`name=value`, whose values are checked against the types of the fields.
"""

from mrcnn_jax.config.checks import needs_initial_weights, validate
from mrcnn_jax.config.field_types import HeadNormName, NormName
from mrcnn_jax.config.load import PATH_FIELDS, apply_overrides, flatten, from_json, load_config, to_json
from mrcnn_jax.config.model_schema import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    OptimizerConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "PATH_FIELDS",
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

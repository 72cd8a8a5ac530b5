"""The typed configuration: schema, overrides, JSON format and validation.

A recipe is a Python file with `get_config() -> Config`. Commands and `load_config` accept the same overrides, dotted
`name=value`, whose values are checked against the types of the fields.
"""

from mrcnn_jax.config.checks import needs_initial_weights as needs_initial_weights
from mrcnn_jax.config.checks import validate as validate
from mrcnn_jax.config.field_types import ChannelOrder as ChannelOrder
from mrcnn_jax.config.field_types import FeaturesName as FeaturesName
from mrcnn_jax.config.field_types import HeadNormName as HeadNormName
from mrcnn_jax.config.field_types import NormName as NormName
from mrcnn_jax.config.field_types import PasteRule as PasteRule
from mrcnn_jax.config.field_types import ScoreRule as ScoreRule
from mrcnn_jax.config.load import PATH_FIELDS as PATH_FIELDS
from mrcnn_jax.config.load import apply_overrides as apply_overrides
from mrcnn_jax.config.load import flatten as flatten
from mrcnn_jax.config.load import from_json as from_json
from mrcnn_jax.config.load import load_config as load_config
from mrcnn_jax.config.load import recipe_file as recipe_file
from mrcnn_jax.config.load import recipes as recipes
from mrcnn_jax.config.load import to_json as to_json
from mrcnn_jax.config.model_schema import AnchorConfig as AnchorConfig
from mrcnn_jax.config.model_schema import BackboneConfig as BackboneConfig
from mrcnn_jax.config.model_schema import BoxHeadConfig as BoxHeadConfig
from mrcnn_jax.config.model_schema import FPNConfig as FPNConfig
from mrcnn_jax.config.model_schema import KeypointHeadConfig as KeypointHeadConfig
from mrcnn_jax.config.model_schema import MaskHeadConfig as MaskHeadConfig
from mrcnn_jax.config.model_schema import ModelConfig as ModelConfig
from mrcnn_jax.config.model_schema import RoIConfig as RoIConfig
from mrcnn_jax.config.model_schema import RPNConfig as RPNConfig
from mrcnn_jax.config.schema import AugmentConfig as AugmentConfig
from mrcnn_jax.config.schema import Config as Config
from mrcnn_jax.config.schema import DataConfig as DataConfig
from mrcnn_jax.config.schema import EvalConfig as EvalConfig
from mrcnn_jax.config.schema import OptimizerConfig as OptimizerConfig
from mrcnn_jax.config.schema import ShapesConfig as ShapesConfig
from mrcnn_jax.config.schema import SplitConfig as SplitConfig
from mrcnn_jax.config.schema import TrainConfig as TrainConfig

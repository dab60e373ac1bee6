"""Every setting of every job: one tree of frozen models, read from YAML, changed by dotted overrides.

A recipe file holds only what differs from the defaults in `settings`. `load_recipe` reads one, applies overrides such
as `optimizer.learning_rate=3e-4`, and returns a `Recipe`; a mistake raises `UserError` with the field and the fix.
What YAML a recipe may hold is in `yaml_text`, which of it is a text in `fields`, and what becomes of settings under
another kind in `kinds`.
"""

from segtrain.config.inference_settings import InferenceConfig
from segtrain.config.load import load_recipe, override, recorded
from segtrain.config.model_settings import FCNConfig, Model, UNetConfig
from segtrain.config.optimizer_settings import (
    AdamConfig,
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    Optimizer,
    PlateauSchedule,
    RMSpropConfig,
    Schedule,
    SGDConfig,
)
from segtrain.config.recipe import Recipe, flatten, identity, identity_differences, known_fields
from segtrain.config.settings import (
    AugmentConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    LossTerms,
    PrepareConfig,
    RunConfig,
    StorageConfig,
    TrainConfig,
)
from segtrain.config.source_settings import CarvanaSource, FolderSource, KaggleSource, Source, SyntheticSource
from segtrain.config.sweep_settings import Axis, TuneConfig
from segtrain.config.yaml_text import MOST_BYTES as MOST_RECIPE_BYTES

__all__ = [
    "MOST_RECIPE_BYTES",
    "AdamConfig",
    "AdamWConfig",
    "AugmentConfig",
    "Axis",
    "CarvanaSource",
    "CheckpointConfig",
    "ClusterConfig",
    "ConstantSchedule",
    "CosineSchedule",
    "DataConfig",
    "EvaluationConfig",
    "FCNConfig",
    "FolderSource",
    "InferenceConfig",
    "KaggleSource",
    "LossConfig",
    "LossTerms",
    "Model",
    "Optimizer",
    "PlateauSchedule",
    "PrepareConfig",
    "RMSpropConfig",
    "Recipe",
    "RunConfig",
    "SGDConfig",
    "Schedule",
    "Source",
    "StorageConfig",
    "SyntheticSource",
    "TrainConfig",
    "TuneConfig",
    "UNetConfig",
    "flatten",
    "identity",
    "identity_differences",
    "known_fields",
    "load_recipe",
    "override",
    "recorded",
]

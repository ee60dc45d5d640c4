"""Every setting, its default and its unit, once; `command` is the door they come in by.

The dataclasses of this package are the schema. YAML files under `conf/` hold only what differs from
them. Members of enums are lower-case because their names are what people type.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Any

from clipstem.config.ask import AskConfig, Pictures
from clipstem.config.checks import SOURCE_SPLITS
from clipstem.config.cluster import Action, SubmitConfig, SweepVerb, Where
from clipstem.config.curation import CurateConfig
from clipstem.config.data import BankConfig, PrepareConfig, Source, Verify
from clipstem.config.exams import Choices, ExamConfig, ExamRules, ReportConfig, Rule, ServeConfig
from clipstem.config.model import ModelConfig, PictureFit, Precision, TrainerConfig
from clipstem.config.rerank import RerankConfig, Scores
from clipstem.config.routing import Method, RouteConfig
from clipstem.config.scoring import ExportConfig, PredictConfig, Variant
from clipstem.config.training import (
    AssembleConfig,
    Augment,
    DistillConfig,
    LoggerConfig,
    OptimizerConfig,
    Perturbation,
    TowerConfig,
    TrainConfig,
    TuneConfig,
    TuneMode,
)

__all__ = [
    "SOURCE_SPLITS",
    "Action",
    "AskConfig",
    "AssembleConfig",
    "Augment",
    "BankConfig",
    "Choices",
    "CurateConfig",
    "DistillConfig",
    "ExamConfig",
    "ExamRules",
    "ExportConfig",
    "LoggerConfig",
    "Method",
    "ModelConfig",
    "OptimizerConfig",
    "Perturbation",
    "PictureFit",
    "Pictures",
    "Precision",
    "PredictConfig",
    "PrepareConfig",
    "ReportConfig",
    "RerankConfig",
    "RouteConfig",
    "Rule",
    "Scores",
    "ServeConfig",
    "Source",
    "SubmitConfig",
    "SweepVerb",
    "TowerConfig",
    "TrainConfig",
    "TrainerConfig",
    "TuneConfig",
    "TuneMode",
    "Variant",
    "Verify",
    "Where",
    "plain",
]


def plain(config: Any) -> dict[str, Any]:
    """A configuration's settings, as JSON has them."""
    settings: dict[str, Any] = _plain(asdict(config))
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value

"""Settings: what is refused and how, and that each is described."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from clipstem import config
from clipstem.config import (
    ModelConfig,
    PredictConfig,
    PrepareConfig,
    RerankConfig,
    Scores,
    Source,
    TrainConfig,
    TuneConfig,
    TuneMode,
    Variant,
)
from clipstem.config.checks import require_at_least, require_fraction, require_positive
from clipstem.question import ClipstemError, ProblemPicture

# ---------------------------------------------------------------------------- cross-field checks


ONE_OF_THREE = (
    "give one of run=<folder of a finished run>, bundle=<an exported folder> and "
    "model=<a file of conf/model>"
)


def train(**values: Any) -> TrainConfig:
    return TrainConfig(data="d", out="o", **values)


def tune(**values: Any) -> TuneConfig:
    return TuneConfig(**values)


def predict(**values: Any) -> PredictConfig:
    return PredictConfig(data="d", **values)


def rerank(**values: Any) -> RerankConfig:
    return RerankConfig(out="o", **values)


def prepare(**values: Any) -> PrepareConfig:
    return PrepareConfig(out="o", **values)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            train,
            {"batch_size": 10, "accumulate": 4},
            "conf key 'accumulate': 4 does not divide batch_size=10; choose a divisor of it",
        ),
        (
            train,
            {"model": ModelConfig("RN50", problem_picture=ProblemPicture.reference)},
            "conf key 'model.problem_picture': 'reference' always answers 0, so there is nothing "
            "to train; expected 'added' or 'ignored'",
        ),
        (
            tune,
            {"mode": TuneMode.zero_shot, "soup": 3},
            "conf key 'tune.soup': has no effect with tune.mode=zero_shot; leave it out",
        ),
        (
            tune,
            {"mode": TuneMode.head, "drop_path": 0.1},
            "conf key 'tune.drop_path': has no effect with tune.mode=head; leave it out",
        ),
        (tune, {"layer_decay": 0.0}, "conf key 'layer_decay': 0.0 is not above 0 and at most 1"),
        (tune, {"ema_decay": 1.0}, "conf key 'ema_decay': 1.0 is not from 0 to below 1"),
        (tune, {"blocks": 0}, "conf key 'blocks': 0 is below 1"),
        (train, {"batch_size": 0}, "conf key 'batch_size': 0 is not above 0"),
        (train, {"accumulate": 0}, "conf key 'accumulate': 0 is not above 0"),
        (train, {"steps": 0}, "conf key 'steps': 0 is below 1"),
        (train, {"epochs": float("nan")}, "conf key 'epochs': nan is not a finite number"),
        (train, {"eval_every_steps": -1}, "conf key 'eval_every_steps': -1 is not above 0"),
        (predict, {}, ONE_OF_THREE),
        (
            predict,
            {"run": "r", "model": ModelConfig("RN50")},
            ONE_OF_THREE,
        ),
        (
            predict,
            {"model": ModelConfig("RN50")},
            "conf key 'out' is missing; with model= give out=<file>.parquet",
        ),
        (
            predict,
            {"run": "r", "split": "vaild"},
            "conf key 'split': there is no split 'vaild'; "
            "expected one of train, tune, valid, test, all",
        ),
        (predict, {"run": "r", "temperature": 0.0}, "conf key 'temperature': 0.0 is not above 0"),
        (
            predict,
            {"run": "r", "parts": 3},
            "conf keys 'part', 'parts': one needs the other beside it",
        ),
        (
            predict,
            {"run": "r", "part": 4, "parts": 3},
            "conf key 'part': 4 is not from 1 to 3",
        ),
        (
            predict,
            {"run": "r", "part": 1, "parts": 3, "preds_txt": "p.txt"},
            "conf key 'preds_txt': has a line for each row, not for a part's",
        ),
        (
            predict,
            {"bundle": "b"},
            "conf key 'out' is missing; with bundle= give out=<file>.parquet",
        ),
        (
            predict,
            {"run": "r", "variant": Variant.int8},
            "conf key 'variant': needs bundle=<an exported folder> beside it",
        ),
        (
            prepare,
            {"source": Source.stem},
            "conf key 'path': is missing; source=stem expects a folder of parquet files, or a Hub "
            "data set owner/name",
        ),
        (rerank, {"folds": 2}, "conf key 'folds': 2 is below 3"),
        (rerank, {"folds": 1, "scores": Scores.none}, "conf key 'folds': 1 is below 2"),
        (
            rerank,
            {"scores_file": "s"},
            "conf key 'scores_file': needs scores=given beside it",
        ),
        (
            rerank,
            {"scores": Scores.given},
            "conf key 'candidates' is missing; scores=given needs candidates=[<file>.jsonl]",
        ),
        (prepare, {"seed": -1}, "conf key 'seed': -1 is not from 0 to below 4294967296"),
        (prepare, {"tune_fraction": 1.0}, "conf key 'tune_fraction': 1.0 is not from 0 to below 1"),
        (
            prepare,
            {"questions_per_skill": {"valid": -3}},
            "conf key 'questions_per_skill.valid': -3 is below 0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    make: Callable[..., Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClipstemError) as error:
        make(**values)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("check", "arguments"),
    [(require_at_least, (0,)), (require_positive, ()), (require_fraction, ())],
)
def test_no_number_is_infinite_or_none(
    check: Callable[..., None], arguments: tuple[int, ...], value: float
) -> None:
    with pytest.raises(ClipstemError, match=f"conf key 'lr': {value} is not a finite number"):
        check(SimpleNamespace(lr=value), *arguments, "lr")
    check(SimpleNamespace(lr=None), *arguments, "lr")


GIVEN: dict[Any, dict[str, Any]] = {
    PredictConfig: {"run": "r"},
    config.ExportConfig: {"run": "r"},
    config.RouteConfig: {"tool": "t"},
}
"""What the others need not be given."""


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "schema", [it for it in vars(config).values() if is_dataclass(it) and hasattr(it, "seed")]
)
def test_every_seed_is_one_that_all_generators_take(schema: Any, seed: int) -> None:
    with pytest.raises(ClipstemError, match=f"conf key 'seed': {seed} is not from 0 to below"):
        schema(**GIVEN.get(schema, {}), seed=seed)
    assert schema(**GIVEN.get(schema, {}), seed=2**32 - 1).seed == 2**32 - 1


# ---------------------------------------------------------------------------- preparing


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": Source.stem}, "'path': is missing; source=stem expects a folder"),
        ({"source": Source.jsonl}, "'path': is missing; source=jsonl expects a file"),
        ({"path": "x"}, "'path': is x; source=drawn expects no path"),
        ({"split": "valid"}, "source=drawn has its own splits"),
        ({"tune_fraction": 1.0}, "'tune_fraction': 1.0 is not from 0 to below 1"),
        ({"seed": -1}, "'seed': -1 is not from 0 to below 4294967296"),
        ({"workers": 0}, "'workers': 0 is below 1"),
        ({"max_image_side": 0}, "'max_image_side': 0 is below 1"),
        ({"shard_bytes": 0}, "'shard_bytes': 0 is not above 0"),
        ({"questions_per_skill": {"dev": 1}}, "there is no split 'dev'; expected one of train,"),
        ({"questions_per_skill": {"test": -1}}, "'questions_per_skill.test': -1 is below 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        PrepareConfig(out="x", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"split": "tune"},
            "'split': there is no split 'tune'; expected one of train, valid, test",
        ),
        ({"split": "test", "split_fractions": {"train": 1.0}}, "give one of them, not both"),
        ({"split_fractions": {"train": 0.5}}, "{'train': 0.5} are not all above 0 with sum 1"),
        (
            {"split_fractions": {"train": 0.5, "test": float("nan")}},
            "are not all above 0 with sum 1",
        ),
    ],
)
def test_wrong_splits_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        PrepareConfig(out="x", source=Source.jsonl, path="y", **values)


# ---------------------------------------------------------------------------- the schema itself


def test_every_setting_is_described_under_its_default_and_every_section_in_itself() -> None:
    checked_classes = set()
    files = Path(config.__file__).parent.glob("*.py")
    for node in (node for file in files for node in ast.parse(file.read_text()).body):
        if not isinstance(node, ast.ClassDef) or not is_dataclass(getattr(config, node.name)):
            continue
        assert ast.get_docstring(node), node.name
        described = {
            ast.unparse(setting.target)
            for setting, text in pairwise(node.body)
            if isinstance(setting, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and ast.unparse(text).rstrip("'\"").endswith(".")
        }
        schema = getattr(config, node.name)
        inherited = {
            name for base in schema.__mro__[1:-1] for name in vars(base)["__annotations__"]
        }
        hints = {n: hint for n, hint in get_type_hints(schema).items() if n not in inherited}
        sections = {name for name, hint in hints.items() if is_dataclass(hint)}
        assert described | sections == set(hints), node.name
        checked_classes.add(node.name)
    assert checked_classes == {name for name, it in vars(config).items() if is_dataclass(it)}

"""The door: every file under `conf/` fits its schema, and mistakes are told in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from clipstem import command
from clipstem.command import (
    check_keys,
    conf_folder,
    help_text,
    model_config,
    to_dataclass,
    verb,
)
from clipstem.config import (
    AskConfig,
    AssembleConfig,
    BankConfig,
    CurateConfig,
    ExamConfig,
    ExportConfig,
    ModelConfig,
    PictureFit,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    RerankConfig,
    RouteConfig,
    ServeConfig,
    SubmitConfig,
    TrainConfig,
    TuneConfig,
    TuneMode,
)
from clipstem.question import ClipstemError

SCHEMAS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "predict": PredictConfig,
    "prepare": PrepareConfig,
    "bank": BankConfig,
    "curate": CurateConfig,
    "assemble": AssembleConfig,
    "exam": ExamConfig,
    "report": ReportConfig,
    "route": RouteConfig,
    "rerank": RerankConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "submit": SubmitConfig,
    "ask": AskConfig,
}
NEEDED = {
    "train": ["data=d", "out=o"],
    "predict": ["data=d", "run=r", "split=valid"],
    "prepare": ["out=o"],
    "bank": ["out=o"],
    "curate": ["data=d", "out=o"],
    "assemble": ["out=o", "picture.name=p", "text.name=t"],
    "exam": ["predictions=p"],
    "report": ["predictions=[p]", "out=o"],
    "route": ["fast=f", "tool=t", "out=o"],
    "rerank": ["out=o"],
    "export": ["run=r", "out=o"],
    "serve": ["bundle=b"],
    "submit": ["tasks=t"],
    "ask": ["data=d", "split=valid", "out=o", "model_name=m", "base_url=http://h/v1"],
}
OPENED_WITH = {"model": ("train", ""), "trainer": ("train", ""), "experiment": ("train", "+")}
OPENED_WITH |= {"drawn": ("prepare", "+"), "tune": ("train", ""), "assembled": ("assemble", "+")}
ALSO_NEEDED = {"open_clip": ["model.name=RN50"]}


def composed(name: str, *overrides: str) -> DictConfig:
    verb(name, SCHEMAS[name])  # makes the schema known to Hydra
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose(name, [*overrides])


def checked(name: str, *overrides: str) -> Any:
    return to_dataclass(SCHEMAS[name], composed(name, *overrides))


# ---------------------------------------------------------------------------- conf/

FILES = sorted(path.relative_to(conf_folder()) for path in conf_folder().rglob("*.yaml"))


def test_every_file_of_conf_is_known_here() -> None:
    everything = [path for path in conf_folder().rglob("*") if path.is_file()]
    assert len(FILES) == len(everything) == 50
    folders = {str(file.parent) for file in FILES}
    assert folders == {".", *OPENED_WITH}
    assert {file.stem for file in FILES if file.parent == Path()} == {"quiet", *SCHEMAS}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_composes_and_fits_its_schema(file: Path) -> None:
    if file.parent == Path():
        names, overrides = (list(SCHEMAS) if file.stem == "quiet" else [file.stem]), []
    else:
        name, plus = OPENED_WITH[str(file.parent)]
        names, overrides = [name], [f"{plus}{file.parent}={file.stem}"]
        overrides += ALSO_NEEDED.get(file.stem, [])
    for name in names:
        assert isinstance(checked(name, *overrides, *NEEDED[name]), SCHEMAS[name])


@pytest.mark.parametrize("name", SCHEMAS)
def test_hydra_leaves_no_folder_and_no_log(name: str) -> None:
    verb(name, SCHEMAS[name])
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        door = hydra.compose(name, return_hydra_config=True).hydra
    assert door.output_subdir is None
    assert (door.run.dir, door.sweep.dir, door.sweep.subdir) == (".", ".", ".")
    assert door.job_logging is None or not door.job_logging.get("handlers")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_verbs_file_is_short(name: str) -> None:
    assert len((conf_folder() / f"{name}.yaml").read_text().splitlines()) <= 15


def test_files_that_differ_from_the_defaults_do() -> None:
    assert checked("train", *NEEDED["train"]).model.name == "tiny"
    assert checked("predict", "data=d", "run=r", "split=valid").model is None
    assert checked("train", *NEEDED["train"]).tune == TuneConfig()
    head = checked("train", *NEEDED["train"], "tune=head", "tune.soup=2").tune
    assert head == TuneConfig(mode=TuneMode.head, soup=2)
    large = checked("predict", "data=d", "out=o", "split=valid", "model=vit_l14_336").model
    assert large == ModelConfig("ViT-L-14-336-quickgelu", "openai") == model_config("vit_l14_336")


def test_a_name_without_a_file_is_open_clips() -> None:
    assert model_config("RN50") == ModelConfig(name="RN50")


# ---------------------------------------------------------------------------- to_dataclass


def parts(value: Any) -> list[Any]:
    """The value and everything in it."""
    inside: list[Any] = []
    if is_dataclass(value):
        inside = list(vars(value).values())
    elif isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = list(value)
    return [value, *(part for one in inside for part in parts(one))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_beyond_the_door_everything_is_plain(name: str) -> None:
    found = checked(name, *NEEDED[name])
    assert type(found) is SCHEMAS[name]
    assert not [part for part in parts(found) if isinstance(part, DictConfig | ListConfig)]


def test_values_get_their_types() -> None:
    overrides = ["model.picture_fit=pad", "optimizer.lr=1", "steps=3"]
    found = checked("train", *NEEDED["train"], *overrides)
    assert found.model.picture_fit is PictureFit.pad
    assert type(found.optimizer.lr) is float
    assert (found.data, found.steps) == ("d", 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=???"], "conf key 'data' is missing; give data=<value>"),
        (["model=open_clip"], "conf key 'model.name' is missing; give model.name=<value>"),
        (["+batch_sise=3"], "conf key 'batch_sise' is unknown; did you mean 'batch_size'?"),
        (["+typo=1"], "conf key 'typo' is unknown; expected data, out, resume, model, trainer, "),
        (
            ["+optimizer.lrr=1"],
            "conf key 'optimizer.lrr' is unknown; did you mean 'optimizer.lr'?",
        ),
    ],
)
def test_what_composes_but_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    raw = composed("train", *NEEDED["train"], *overrides)
    with pytest.raises(ClipstemError) as error:
        to_dataclass(TrainConfig, raw)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": "x"}, "conf key 'batch_size': Value 'x' of type 'str' could not be"),
        ({"out": "${nowhere}"}, "conf key 'out': Interpolation key 'nowhere' not found"),
        ({"optimizer": {"lr": None}}, "conf key 'optimizer.lr': Incompatible value 'None'"),
        (
            {"model": {"picture_fit": "cut"}},
            "conf key 'model.picture_fit': Invalid value 'cut', expected one of [crop, pad, ",
        ),
    ],
)
def test_values_of_the_wrong_type_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError) as error:
        to_dataclass(TrainConfig, OmegaConf.create({"data": "d", "out": "o", **values}))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- check_keys


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=tiny", "conf key 'modle' is unknown; did you mean 'model'?"),
        ("optimizer.lrr=1", "conf key 'optimizer.lrr' is unknown; did you mean 'optimizer.lr'?"),
        ("optimiser.lr=1", "conf key 'optimiser.lr' is unknown; did you mean 'optimizer.lr'?"),
        ("+typo=1", "conf key 'typo' is unknown; expected data, out, resume, model, trainer,"),
        ("++batch_sizes=1", "conf key 'batch_sizes' is unknown; did you mean 'batch_size'?"),
        (
            "distill.teachers=a.parquet",
            "conf key 'distill.teachers': is a.parquet; expected a list, distill.teachers=[a.pa",
        ),
        ("distill.teachers=[a.parquet]", None),
        ("distill.teachers=${x}", None),
        ("distill.teachers=choice([a],[b])", None),
        ("distill.teachers= Null", None),
        ("data.x=1", None),
        ("model.architecture.embed_dim=3", None),
        ("model=tiny", None),
        ("+experiment=quickstart", None),
        ("hydra.verbose=true", None),
        ("hydra/launcher=basic", None),
        ("~trainer", None),
        ("--multirun", None),
        ("--config-dir=elsewhere", None),
        ("optimizer.lr=1e-3", None),
    ],
)
def test_unknown_keys_of_the_command_line_name_the_nearest(
    override: str, message: str | None
) -> None:
    if message is None:
        check_keys(TrainConfig, ["data=d", override])
        return
    with pytest.raises(ClipstemError) as error:
        check_keys(TrainConfig, ["data=d", override])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("runs/Prüfung 1", "runs/Prüfung 1"),
        ("実験/一", "実験/一"),
        ("'Prüfung, zwei'", "Prüfung, zwei"),
        ("plain", "plain"),
    ],
)
def test_a_name_may_have_letters_of_any_script(out: str, expected: str) -> None:
    given = ["data=ö", f"out={out}", "model=tiny"]
    assert command.composed("train", TrainConfig, given).out == expected


def test_ones_own_experiments_come_from_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train", f"--config-dir={tmp_path}", *arguments])
        GlobalHydra.instance().clear()
        verb("train", TrainConfig)(asked.append)()

    asked: list[TrainConfig] = []
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("# @package _global_\nbatch_size: 7\n")
    run("data=d", "out=o", "+experiment=mine")
    assert [config.batch_size for config in asked] == [7]
    with pytest.raises(SystemExit):
        run("data=d", "out=o", "+experiment=theirs")
    assert "conf key 'experiment': there is no 'theirs'; expected" in capsys.readouterr().err
    mine.write_text("# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n")
    with pytest.raises(SystemExit):
        run("data=d", "out=o", "+experiment=mine")
    assert f"{mine}: sets Hydra's own settings; expected plain" in capsys.readouterr().err
    assert len(asked) == 1


def test_a_cross_field_check_survives_composition() -> None:
    raw = composed("train", "data=d", "out=o", "accumulate=5")
    with pytest.raises(ClipstemError, match="'accumulate': 5 does not divide batch_size=64"):
        to_dataclass(TrainConfig, raw)


# ---------------------------------------------------------------------------- the door


def test_errors_of_the_function_exit_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: BankConfig) -> None:
        raise ClipstemError("there is no such thing")

    monkeypatch.setattr(sys, "argv", ["bank", "out=o"])
    with pytest.raises(SystemExit) as ended:
        verb("bank", BankConfig)(refuse)()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "clipstem bank: there is no such thing\n"


def test_an_interrupt_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: BankConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["bank", "out=o"])
    with pytest.raises(SystemExit) as ended:
        verb("bank", BankConfig)(interrupted)()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "clipstem bank: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["out=o", "shard_byte=1"], 2, "'shard_byte' is unknown; did you mean 'shard_bytes'?\n"),
        (
            ["out=o", "source=jsonl"],
            2,
            "clipstem prepare: conf key 'path': is missing; source=jsonl",
        ),
        (
            ["out=o", "shard_bytes=x"],
            1,
            "Value 'x' of type 'str' could not be converted to Integer",
        ),
    ],
)
def test_mistakes_on_the_command_line_have_no_traceback(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "clipstem.prepare", *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    if code == 2:
        assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_says_what_every_setting_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    verb(name, SCHEMAS[name])(lambda config: pytest.fail("help runs nothing"))()
    printed = capsys.readouterr().out
    for setting in vars(checked(name, *NEEDED[name])):
        assert re.search(rf"^  {setting}[.=\n]", printed, flags=re.M), setting
    assert f"conf/{name}.yaml" in printed


def test_help_shows_defaults_as_they_are_typed() -> None:
    printed = help_text("exam", ExamConfig)
    assert "\n  replacement=true\n      Whether a question can come twice" in printed
    assert "\n  predictions=<needed>\n" in printed and "\n  rule=regular\n" in printed

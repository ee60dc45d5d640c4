"""Every command that the README or an experiment's header shows is composed and run, shrunk."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from serving import server

from clipstem import config, prediction
from clipstem.command import check_keys, composed, conf_folder, to_dataclass
from clipstem.shards import open_dataset

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import claims  # noqa: E402
import measure  # noqa: E402
import tables  # noqa: E402
from chat_server import ChatServer  # noqa: E402

README = (ROOT / "README.md").read_text()
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").rglob("*.yaml"))
SCHEMAS = {
    "prepare": config.PrepareConfig,
    "train": config.TrainConfig,
    "predict": config.PredictConfig,
    "bank": config.BankConfig,
    "curate": config.CurateConfig,
    "assemble": config.AssembleConfig,
    "exam": config.ExamConfig,
    "report": config.ReportConfig,
    "route": config.RouteConfig,
    "rerank": config.RerankConfig,
    "export": config.ExportConfig,
    "serve": config.ServeConfig,
    "submit": config.SubmitConfig,
    "ask": config.AskConfig,
}
PACKAGES = ("ask", "bank", "curate", "report", "rerank", "route", "serve")
MODULES: dict[str, Any] = {
    verb: import_module(f"clipstem.{verb}{'.__main__' if verb in PACKAGES else ''}")
    for verb in SCHEMAS
}
DRAWN = "questions_per_skill={train: 6, valid: 2, test: 2}"
FEW = ["skills=[weather,find-the-solid,mixing-screen-lights]"]
PRETRAINED = [path.stem for path in EXPERIMENTS if "override /model: vit_" in path.read_text()]
STEPS = ["steps=2", "batch_size=8", "eval_every_steps=1", "trainer=cpu", "trainer.workers=0"]


def readme_commands() -> list[str]:
    """The lines of the README's shell blocks that call clipstem."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = "".join(blocks).splitlines()
    return [line for line in lines if line.startswith("python -m clipstem.")]


def experiment_commands() -> list[str]:
    return [command for path in EXPERIMENTS for command in measure.commands(path)]


def split_command(command: str) -> tuple[str, list[str]]:
    """The verb and its overrides."""
    _, _, module, *overrides = shlex.split(os.path.expandvars(command))
    if module == "clipstem.submit" and "=" not in overrides[0]:
        overrides[0] = f"action={overrides[0]}"
    return module.removeprefix("clipstem."), overrides


def is_sweep(overrides: list[str]) -> bool:
    return bool({"-m", "--multirun"} & set(overrides))


def shrunk(verb: str, overrides: list[str]) -> list[str]:
    """The same command at a size for a test, on the device that every machine has."""
    said = " ".join(overrides)
    if is_sweep(overrides):  # the first of each swept setting
        overrides = [override.split(",")[0] for override in overrides]
    if verb == "train":
        kept = [o for o in overrides if not o.startswith(("steps=", "batch_size=", "model="))]
        given = [o for o in overrides if o.startswith("model=")]
        is_pretrained = "=vit_" in said or any(name in said for name in PRETRAINED)
        return [*kept, *(["model=tiny_vit"] if is_pretrained else given), *STEPS]
    if verb in ("prepare", "bank") and "source=" not in said:
        kept = [o for o in overrides if not o.startswith("questions_per_skill=")]
        few = [] if "+drawn" in said else FEW
        held_out = ["tune_fraction=0.3"] if verb == "prepare" else []
        return [*kept, DRAWN, *few, *held_out, "workers=1"]
    if verb == "prepare":
        return [*overrides, "workers=1", "verify=header", "tune_fraction=0.3"]
    if verb in ("predict", "export"):
        return [*overrides, "batch_size=8", "trainer.workers=0"]
    if verb == "exam":
        return [*overrides, "repeats=20"]
    if verb == "curate":  # of a sweep's runs there is the first
        return [*(re.sub(r"(=\[[^,]*),.*\]", r"\1]", o) for o in overrides), "workers=1"]
    if verb == "report":
        return [*overrides, "repeats=20", "exam.repeats=20"]
    if verb == "route" and not any(o.startswith("gate=") for o in overrides):
        return [*overrides, "folds=3", "repeats=20"]
    if verb == "rerank":
        return [*overrides, "questions=24", "epochs=1", "folds=3"]
    return overrides


def single(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run that a multirun command starts."""
    if not is_sweep(overrides):
        return [overrides]
    choices = [o.split("=", 1) for o in overrides if "=" in o]
    runs = product(*([f"{key}={value}" for value in values.split(",")] for key, values in choices))
    return [list(run) for run in runs]


@pytest.mark.parametrize("command", readme_commands() + experiment_commands())
def test_a_shown_command_composes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTEM_REALSET", "somewhere")
    verb, overrides = split_command(command)
    check_keys(SCHEMAS[verb], overrides)
    GlobalHydra.instance().clear()
    for run in single(overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose(verb, run)
            if "hydra" in composed:
                del composed["hydra"]
        assert isinstance(to_dataclass(SCHEMAS[verb], composed), SCHEMAS[verb])


def run_shrunk(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, overrides = split_command(command)
    monkeypatch.setattr("sys.argv", [verb, *shrunk(verb, overrides)])
    GlobalHydra.instance().clear()
    MODULES[verb].main()


def bring_stem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few drawn questions for the real ones, whose path other tests walk."""
    monkeypatch.chdir(folder)
    for name in ("stand_in", "stemdataset/STEM"):
        monkeypatch.setattr("sys.argv", ["bank", f"out={name}", DRAWN, *FEW, "workers=1"])
        MODULES["bank"].main()
    monkeypatch.setenv("CLIPSTEM_REALSET", "stand_in")


def bring_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README takes for granted: questions of one's own, a picture, real questions."""
    (folder / "pictures").mkdir()
    line = re.search(r'^\{"id": "q1".*$', README, flags=re.M)
    assert line
    lines = []
    for number in range(1, 31):
        Image.new("RGB", (40, 40), (number * 8, 20, 90)).save(folder / f"pictures/{number}.png")
        question = json.loads(line[0])
        lines.append(
            json.dumps({**question, "id": f"q{number}", "image": f"pictures/{number}.png"})
        )
    (folder / "questions.jsonl").write_text("\n".join(lines))
    caption = re.search(r'^\{"picture": "pictures/1\.png".*$', README, flags=re.M)
    assert caption
    captions = [caption[0].replace("/1.png", f"/{number}.png") for number in range(1, 31)]
    (folder / "captions.jsonl").write_text("\n".join(captions))
    Image.new("RGB", (30, 30), "blue").save(folder / "picture.png")
    bring_stem(folder, monkeypatch)


def bring_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make quickstart` leaves: questions, and the tool that hard ones are deferred to."""
    prepare = "python -m clipstem.prepare +drawn=quickstart out=shards/quickstart"
    run_shrunk(prepare, monkeypatch)
    run_shrunk("python -m clipstem.train +experiment=quickstart", monkeypatch)
    predict = "python -m clipstem.predict run=runs/quickstart data=shards/quickstart split=test"
    run_shrunk(predict, monkeypatch)


def ask_the_stand_in(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it with another address; every question is asked with its picture or a caption of it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    with ChatServer() as stand_in:
        run_shrunk(re.sub(r"base_url=\S+", f"base_url={stand_in.url}", command), monkeypatch)
        overrides = dict(it.split("=", 1) for it in split_command(command)[1])
        found = prediction.read(Path(overrides["out"]))
        assert len(found) > 0 == found.provenance["without_caption"]
        has_key = {"Authorization" in call.headers for call in stand_in.calls}
        assert has_key == {"api_key_env" in overrides}


def test_the_readmes_commands_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bring_questions(tmp_path, monkeypatch)
    commands = readme_commands()
    assert len(commands) == 44
    for command in commands:
        if ".serve " in command or ".submit " in command:
            continue  # the one runs until it is told to end: below; the other in test_slurm.py
        if ".ask " in command:
            ask_the_stand_in(command, monkeypatch)
            continue
        if "+experiment=route" in command:  # after `make quickstart`
            bring_quickstart(monkeypatch)
        if "resume=true" in command:  # of a run that is not finished
            (tmp_path / "runs/first/DONE").unlink()
        run_shrunk(command, monkeypatch)
    made = {path.name for path in (tmp_path / "runs").iterdir()}
    trained = {"careful", "two", "first", "mini", "vit_b32", "quickstart", "student"}
    assert made == {*trained, "fast", "fold-1", "curated", "rerank", "reranked"}
    assert (tmp_path / "routes/fast/predictions.parquet").is_file()
    assert (tmp_path / "routes/to_ask/decisions.parquet").is_file()
    assert (tmp_path / "preds.txt").is_file()
    assert (tmp_path / "runs/first/exam/exam.json").is_file()
    assert (tmp_path / "report/report.html").is_file()
    beside = (tmp_path / "report_of_all/report.md").read_text()
    for title in ("Routing to a tool", "which to take", "What curation found"):
        assert title in beside
    assert (tmp_path / "runs/reranked/rerank.json").is_file()
    asks_the_server(commands)
    python = re.search(r"```python\n(import clipstem.*?)```", README, flags=re.S)
    assert python
    names: dict[str, Any] = {}
    exec(python[1], names)
    assert names["probabilities"].shape == (2,)
    assert names["probabilities"].sum() == pytest.approx(1)


def asks_the_server(commands: list[str]) -> None:
    """Run the README's server, and ask it as the README does."""
    (overrides,) = (split_command(it)[1] for it in commands if ".serve " in it)
    (bundle,) = (it.removeprefix("bundle=") for it in overrides)
    curl = re.search(r"^curl -F .*$", README, flags=re.M)
    assert curl and "127.0.0.1:8000" in curl[0]
    fields = [it for it in shlex.split(curl[0]) if "=" in it]
    texts: dict[str, list[str]] = {}
    for name, value in (it.split("=", 1) for it in fields if "=@" not in it):
        texts.setdefault(name, []).append(value)
    (file,) = (it.split("=@") for it in fields if "=@" in it)
    with server(Path(bundle)) as (_, address):
        with Path(file[1]).open("rb") as opened:
            answer = httpx.post(f"{address}/v1/score", data=texts, files={file[0]: opened})
        shown = re.search(r'^\{"answers".*$', README, flags=re.M)
        assert shown and answer.json().keys() == json.loads(shown[0]).keys()
        assert answer.json()["answers"][0].keys() == json.loads(shown[0])["answers"][0].keys()


SWEEPS = {"lr": "train", "predict": "predict"}


def tasks_of(sweep: Path) -> list[str]:
    return [line for line in sweep.read_text().splitlines() if line and not line.startswith("#")]


def test_every_task_of_a_shown_sweep_composes() -> None:
    files = sorted((ROOT / "scripts" / "sweeps").iterdir())
    assert [path.stem for path in files] == sorted(SWEEPS)
    for path in files:
        verb = SWEEPS[path.stem]
        for line in tasks_of(path):
            assert isinstance(composed(verb, SCHEMAS[verb], shlex.split(line)), SCHEMAS[verb])


COMMANDS = {path: measure.commands(path) for path in EXPERIMENTS}


def is_long(experiment: Path) -> bool:
    """Of many runs, or of a large model's own settings: minutes of tests that tell little more."""
    return len(COMMANDS[experiment]) > 2 or experiment.stem == "stem_vitl14_336"


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if is_long(path) else [])
        for path, commands in COMMANDS.items()
        if not any(set(commands) < set(others) for others in COMMANDS.values())
    ],  # where all commands stand in another's, they run there
)
def test_an_experiments_commands_run_in_their_order(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_stem(tmp_path, monkeypatch)
    for command in COMMANDS[experiment]:
        run_shrunk(command, monkeypatch)
    runs = list((tmp_path / "runs").iterdir())
    assert runs and all((run / "DONE").is_file() for run in runs)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_of_several_runs_has_a_claim(experiment: Path) -> None:
    trainings = [split_command(it)[1] for it in measure.commands(experiment) if ".train " in it]
    if sum(len(single(overrides)) for overrides in trainings) > 1:
        assert experiment.stem in {*claims.CLAIMS, *claims.ROUTED}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_header_is_whole(experiment: Path) -> None:
    fields = measure.header(experiment)
    assert list(fields) == ["Idea", "Source", "Command", "Cost", "Result"]
    assert any(f"+experiment={experiment.stem}" in line for line in fields["Command"])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_result_is_the_measured_one(experiment: Path) -> None:
    figures = tables.BENCHMARKS / f"{experiment.stem}.json"
    if not figures.exists():
        assert measure.header(experiment)["Result"] == ["not run"]
        return
    found, text = json.loads(figures.read_text()), experiment.read_text()
    assert measure.result_lines(found) in text
    if all(ran["seconds"] for ran in found["commands"]):  # each was timed
        assert measure.cost_lines(found) in text
        assert measure.with_measured(text, found) == text


KINDS = ("duplicates", "leaks")


def measured(name: str) -> dict[str, Any]:
    return json.loads((tables.BENCHMARKS / f"{name}.json").read_text())


def test_the_quickstart_reaches_what_it_promises() -> None:
    figures = measured("quickstart")
    assert figures["macro"] >= 0.75 and figures["mastered"] >= 6
    assert sum(ran["seconds"] for ran in figures["commands"]) < 8 * 60
    assert max(ran["peak_gib"] for ran in figures["commands"]) < 4


def test_exam_and_report_of_stems_size_take_what_was_promised() -> None:
    figures = measured("report")
    exam, report = figures["commands"]
    assert (figures["questions"], figures["skills"]) == (214_077, 448)
    assert exam["core_seconds"] < 10
    assert report["core_seconds"] < 30 and report["peak_gib"] < 1 and figures["html_mib"] < 10


def test_reranking_reaches_what_it_promises() -> None:
    sets = measured("rerank")["sets"]
    for found in (sets["gsm8k"], sets["gsm8k without abel-70b"]):
        mix = found["methods"]["mix"]
        assert found["questions"] == 1100 and found["scores"] is not None
        assert mix["over_majority"]["interval"][0] > 0.03
        assert mix["value"] > found["majority_by_lot"] + 0.03
    mix = sets["gsm8k"]["methods"]["mix"]
    assert mix["value"] >= sets["gsm8k"]["methods"]["best_system"]["value"]
    assert sets["gsm8k without abel-70b"]["methods"]["mix"]["over_best_system"]["interval"][0] > 0


def test_routing_reaches_what_it_promises() -> None:
    cases = measured("route")["routings"]
    (eight,) = measured("route_eight")["routings"].values()
    assert eight["below_tool"][1] > -0.01 and eight["accuracy_gain"][1] > 0.05
    assert eight["gate"]["calls"] < 0.55 and eight["hard_auroc"] > eight["confidence_auroc"] + 0.1
    for case in cases.values():
        assert case["gate"]["calls"] <= 0.5 and case["gate"]["tool_usage"] >= 0.6
        assert case["steps_below_confidence"] == 0
        assert case["below_tool"][0] >= -0.01
    assert cases["fast_samples"]["accuracy_gain"][1] > 0


def test_curation_reaches_what_it_promises() -> None:
    found = measured("curate")
    faults, noise = found["faults"], found["noise"]
    assert min(faults[kind][rate] for kind in KINDS for rate in ("precision", "recall")) >= 0.99
    assert min(faults["labels"]["on_learnt_skills"][it] for it in ("precision", "recall")) >= 0.8
    assert noise["clean"] > noise["weighted"] > noise["noisy"] and noise["regained"] > 0.5


def test_students_reach_what_is_promised() -> None:
    found = measured("distill")
    assert found["gain_kept"]["distill"] >= 0.9
    assert found["parameters"]["student"] < found["parameters"]["teacher"] / 3
    assert found["distill_adds_to"]["tenth"]["interval"][0] > 0.2


def test_asking_loses_nothing() -> None:
    found = measured("ask")
    assert found["predicted"] == found["questions"] == found["with_faults"]["answered"]
    assert found["same_as_asked_without_faults"] and found["left_out"] == 0
    assert found["killed"]["asked_again_though_kept"] == 0
    assert found["killed"]["answered_twice"] <= found["concurrency"]


def test_make_quickstart_runs_the_experiments_commands() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("$(RUN)", "python")
    commands = measure.commands(ROOT / "conf" / "experiment" / "quickstart.yaml")
    assert len(commands) == 5 and all(command in makefile for command in commands)


def test_the_readmes_figures_are_the_measured_ones() -> None:
    assert tables.with_blocks(README) == README


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the checkout says of itself; a test may change it."""
    said = {"commit": "a1", "python": "3", "versions": {"clipstem": "1"}, "started": "2026-01-02T"}
    monkeypatch.setattr("clipstem.run.environment", lambda: dict(said))
    return said


def test_a_measurement_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: dict[str, Any]
) -> None:
    once = "python -c 'import time; held = bytes(range(256)) * 2**18; time.sleep(2.5)'"
    then = "python -c 'import sys; sys.exit(3)'"
    ran = measure.run_each([once], tmp_path)
    assert ran[once]["seconds"] >= 2.5 and ran[once]["peak_gib"] >= 2**26 / 2**30
    with pytest.raises(SystemExit, match="exit 3"):
        measure.run_each([once, then], tmp_path)
    again: list[str] = []

    def run_command(command: str, _: Path) -> dict[str, Any]:
        again.append(command)
        return {"command": command, "seconds": 2.0, "peak_gib": 0.1}

    monkeypatch.setattr(measure, "run_command", run_command)
    checkout["started"] = "2026-01-03T"
    ran = measure.run_each([once, then], tmp_path)
    assert again == [then]
    made_by = measure.made_by(list(ran.values()))
    assert [set(it) for it in made_by["commands"]] == [{"command", "seconds", "peak_gib"}] * 2
    assert (made_by["commit"], made_by["date"]) == ("a1", "2026-01-03")
    assert measure.run_each([then], tmp_path)[then]["facts"]["started"] == "2026-01-03T"


@pytest.mark.parametrize(
    ("name", "now", "said"),
    [
        ("commit", "b2", "not one commit"),
        ("versions", {"clipstem": "2"}, "not one versions"),
        ("commit", "a1-dirty", "a1-dirty: commit first"),
        ("commit", None, "None: commit first"),
    ],
)
def test_a_measurement_is_of_one_commit(
    tmp_path: Path, checkout: dict[str, Any], name: str, now: Any, said: str
) -> None:
    facts = measure.facts()
    ended = {"once": {"command": "once", "seconds": 1.0, "peak_gib": 0.0, "facts": facts}}
    (tmp_path / "ended.json").write_text(json.dumps(ended))
    checkout[name] = now
    assert measure.run_each(["once"], tmp_path) == ended  # nothing is left to run
    with pytest.raises(SystemExit, match=said):
        measure.run_each(["once", "then"], tmp_path)


def test_what_is_published_stands_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in tables.BENCHMARKS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(tables, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(measure, "README", tmp_path / "README.md")
    measure.publish("ask", {**measured("ask"), "questions": 2345})
    assert measured("ask")["questions"] == 2345
    text = (tmp_path / "README.md").read_text()
    assert text == README.replace("\n2,000 questions to a server", "\n2,345 questions to a server")


def test_the_sample_of_shards_opens() -> None:
    sample = open_dataset(str(ROOT / "shards" / "sample"))
    for split, size in sample.manifest.questions.items():
        assert len(sample.read(split, range(size))) == size > 0


def test_the_readmes_targets_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    shown = set(re.findall(r"^make ([a-z]+)$|`make ([a-z]+)`", README, flags=re.M))
    assert {name for names in shown for name in names if name} <= targets


def test_the_readmes_paths_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local and all((ROOT / link).exists() for link in local)


def test_the_readmes_tree_names_every_module() -> None:
    (tree,) = re.findall(r"```\nclipstem/\n(.*?)\nconf/", README, flags=re.S)
    named = set(re.findall(r"[a-z_]+", tree))
    modules = {path.stem for path in (ROOT / "clipstem").glob("*.py")} - {"__init__"}
    assert modules <= named

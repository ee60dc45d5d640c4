"""A run's folder: never overwritten, taken up where it stopped, used only when it is finished."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from clipstem import run
from clipstem.question import ClipstemError
from clipstem.run import Run


def unfinished(folder: Path) -> Run:
    """A run that has written its first checkpoint."""
    made = run.start(folder, "seed: 1\n", resume=False, facts={"seed": 1})
    write_checkpoint(made, 1)
    return made


def write_checkpoint(made: Run, step: int) -> Path:
    """As torch writes them: members that are stored, each with its checksum."""
    path = made.checkpoint(step)
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data/0", bytes(range(256)) * 20)
    return path


def test_a_start_makes_the_folder_with_the_config(tmp_path: Path) -> None:
    made = run.start(tmp_path / "runs" / "a", "seed: 1\n", resume=False, facts={"seed": 1})
    assert (made.folder / "config.yaml").read_text() == "seed: 1\n"
    assert made.facts["seed"] == 1 and made.facts["python"]
    assert sorted(it.name for it in made.folder.iterdir()) == ["config.yaml", "run.json"]
    assert not made.is_done


def test_names_are_those_of_the_readme(tmp_path: Path) -> None:
    made = Run(tmp_path)
    assert made.weights == tmp_path / "weights"
    assert made.kept(12) == tmp_path / "checkpoints" / "best-00000012"
    assert made.checkpoint(12) == tmp_path / "checkpoints" / "step-00000012.ckpt"
    assert made.metrics == tmp_path / "metrics.csv"
    assert made.predictions("valid") == tmp_path / "predictions" / "valid.parquet"


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ClipstemError) as error:
        run.start(tmp_path / "a", "", resume=False, facts={})
    assert str(error.value) == (
        f"{tmp_path}/a exists and is never overwritten; give another out=<folder>, "
        "or resume=true for an unfinished run"
    )
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_refused(resume: bool, tmp_path: Path) -> None:
    unfinished(tmp_path / "a").finish()
    with pytest.raises(ClipstemError, match="a: this run is finished; choose another out=<folder>"):
        run.start(tmp_path / "a", "", resume, {})


def test_an_unfinished_run_is_taken_up_on_another_machine(tmp_path: Path) -> None:
    run.start(tmp_path / "a", "seed: 1\ntrainer: {workers: 1}\n", resume=False, facts={})
    again = run.start(tmp_path / "a", "seed: 1\ntrainer: {workers: 4}\n", resume=True, facts={})
    assert again.config.read_text() == "seed: 1\ntrainer: {workers: 1}\n"


def test_an_unfinished_run_is_not_taken_up_with_other_settings(tmp_path: Path) -> None:
    unfinished(tmp_path / "a")
    with pytest.raises(ClipstemError, match=r"conf key 'seed': is 2, but .*a began with 1; resume"):
        run.start(tmp_path / "a", "seed: 2\n", resume=True, facts={})


@dataclass
class Needed:
    seed: int
    data: str | None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}" + " " * 2**24, "has more than 16,777,216 bytes"),
        ("{}", "lacks seed"),
        ('{"seed": "1"}', "seed is '1'; expected a whole number"),
    ],
)
def test_facts_of_strangers_are_checked(text: str, message: str, tmp_path: Path) -> None:
    made = unfinished(tmp_path / "a")
    assert made.facts_as(Needed, data=None) == Needed(seed=1, data=None)
    (made.folder / "run.json").write_text(text)
    expected = rf"^{made.folder}/run\.json: {message}.*; copy the run again$"
    with pytest.raises(ClipstemError, match=expected):
        made.facts_as(Needed, data=None)


@pytest.mark.parametrize("exists", [False, True])
def test_without_a_run_there_is_nothing_to_take_up(exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "a").mkdir()
    with pytest.raises(ClipstemError, match="a: there is no run to resume; leave resume out"):
        run.start(tmp_path / "a", "", resume=True, facts={})
    assert (tmp_path / "a").exists() is exists


def test_facts_are_added_and_changed_and_the_rest_is_kept(tmp_path: Path) -> None:
    made = Run(tmp_path)
    made.write_facts(seed=1, model="tiny ü")
    made.write_facts(temperature=0.5, seed=2)
    assert made.facts == {"seed": 2, "model": "tiny ü", "temperature": 0.5}
    assert json.loads((tmp_path / "run.json").read_text()) == made.facts
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]


def test_who_only_reads_a_run_writes_nothing(tmp_path: Path) -> None:
    reader = replace(unfinished(tmp_path / "a"), is_writer=False)
    reader.write_facts(seed=2)
    reader.finish()
    assert reader.facts["seed"] == 1 and not reader.is_done


def test_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    made = unfinished(tmp_path / "a")
    for step in (9, 100, 1_000):
        write_checkpoint(made, step)
    made.keep_last_checkpoints()
    assert made.checkpoints == [made.checkpoint(1_000), made.checkpoint(100)]
    assert made.last_whole_checkpoint(run.damage_of) == (made.checkpoint(1_000), 1_000)


def test_a_run_without_a_checkpoint_begins_at_0(tmp_path: Path) -> None:
    made = run.start(tmp_path / "a", "", resume=False, facts={})
    assert made.last_whole_checkpoint(run.damage_of) == (None, 0)


@pytest.mark.parametrize("damage", ["shorter", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = unfinished(tmp_path / "a")
    path = write_checkpoint(made, 20)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes(
        {"shorter": whole[:-30], "flipped": flipped, "empty": b"", "text": b"hello"}[damage]
    )
    assert made.last_whole_checkpoint(run.damage_of) == (made.checkpoint(1), 1)
    assert f"{path}: is damaged (" in caplog.text and "the one before it is used" in caplog.text
    assert not path.exists() and path.with_suffix(".damaged").exists()
    made.checkpoint(1).write_bytes(b"")
    with pytest.raises(ClipstemError, match=r"every checkpoint is damaged; move .*a away"):
        made.last_whole_checkpoint(run.damage_of)


def test_only_a_finished_run_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError) as error:
        run.finished(tmp_path / "none")
    assert str(error.value) == (
        f"{tmp_path}/none: there is no run here (no run.json); expected a folder made by "
        "python -m clipstem.train out=<folder>"
    )
    made = unfinished(tmp_path / "a")
    made.write_facts(seed=1)
    with pytest.raises(ClipstemError, match="a: this run is not finished; go on with resume=true"):
        run.finished(tmp_path / "a")
    made.finish()
    assert made.is_done
    assert run.finished(tmp_path / "a") == made


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_clipstems_own_and_no_other_repositorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    installed = tmp_path / ".venv" / "clipstem" / "run.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(run, "__file__", str(installed))
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=theirs")
    assert run.environment()["commit"] is None
    git("add", str(installed))
    git("commit", "--quiet", "--message=ours")
    assert re.fullmatch(r"[0-9a-f]{40}", run.environment()["commit"])
    new = installed.with_name("new.py")
    new.touch()
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", run.environment()["commit"])
    new.unlink()
    installed.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", run.environment()["commit"])


def test_the_environment_names_code_versions_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/clipstem/train.py", "out=runs/a b", "steps=3"])
    found = run.environment()
    assert found.keys() == {"command", "started", "commit", "python", "platform", "versions"}
    assert found["command"] == "python -m clipstem.train 'out=runs/a b' steps=3"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["started"])
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])
    assert found["python"] == platform.python_version()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"clipstem", "numpy", "pillow", "open_clip_torch"} <= found["versions"].keys()
    assert json.loads(json.dumps(found)) == found


def test_a_package_that_is_run_is_named_without_its_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/clipstem/bank/__main__.py", "out=b"])
    assert run.environment()["command"] == "python -m clipstem.bank out=b"

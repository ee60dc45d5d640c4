"""Sweeps without SLURM, and with commands that only speak like its."""

from __future__ import annotations

import fcntl
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import wait_for
from hypothesis import given
from hypothesis import strategies as st

from clipstem import prediction, slurm, sweep
from clipstem.config import Action, PredictConfig, SubmitConfig, SweepVerb, TrainerConfig, Where
from clipstem.predict import predict
from clipstem.question import ClipstemError
from clipstem.submit import last_line, main, read_tasks, retry, standings
from clipstem.sweep import Live, State, Submission, Sweep, Task

TRAIN = "data={data} model=tiny_vit out=runs/{name}"


@pytest.fixture
def tasks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a tasks file into an empty folder to work in."""
    monkeypatch.chdir(tmp_path)

    def write(*lines: str) -> Path:
        Path("tasks.txt").write_text("\n".join(lines))
        return Path("tasks.txt")

    return write


# ---------------------------------------------------------------------------- the tasks file


def test_line_n_is_task_n_without_comments_and_blank_lines(
    tasks_file: Callable[..., Path], drawn_data: Path, tmp_path: Path
) -> None:
    a, b = (TRAIN.format(data=drawn_data, name=name) for name in "ab")
    file = tasks_file("# rates", a, "", f"  # {a}", f"{b} 'optimizer.lr=1e-4'")
    first, second = read_tasks(file, SweepVerb.train)
    assert (first.number, second.number) == (1, 2)
    assert first.overrides == tuple(a.split())
    assert second.out == tmp_path / "runs" / "b"
    assert second.settings["optimizer.lr"] == "1e-4"


@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        ("train", "data={data} out=b stesp=3", "conf key 'stesp' is unknown; did you mean 'steps'"),
        ("train", "data={data} out=b steps=soon", "Value 'soon' of type 'str' could not be"),
        ("train", "data={data} out=b batch_size=7 accumulate=2", "'accumulate': 2 does not divide"),
        ("train", "data={data}", "conf key 'out' is missing"),
        ("train", "data=nowhere out=b", "nowhere"),
        ("train", "data={data} out=runs/a", "runs/a, as line 2 does; give each its own out="),
        ("train", "data={data} out=there", "there exists and is never overwritten"),
        ("train", "data={data} out=b resume=true", "'resume': is decided by the task"),
        ("train", "-m data={data} out=b seed=1,2", "'-m' is no override; expected key=value"),
        ("train", "data={data} out='b", "No closing quotation"),
        ("train", "data={data} out=b model=tiny_vitt", "'model': there is no 'tiny_vitt'; did you"),
        ("train", "data={data} out=b steps=[", "no viable alternative at input '['"),
        ("predict", "data={data} bundle=x out=b split=all", "'split': is all; a task makes one"),
        ("predict", "data={data} run=x split=valid", "x: there is no run here"),
        ("predict", "data={data} bundle=x out=b split=valid part=1", "'part', 'parts': one needs"),
    ],
)
def test_the_line_of_a_mistake_is_named(
    verb: str, line: str, message: str, tasks_file: Callable[..., Path], drawn_data: Path
) -> None:
    Path("there").mkdir()
    good = {
        "train": TRAIN.format(data=drawn_data, name="a"),
        "predict": f"data={drawn_data} bundle=x out=a split=valid",
    }[verb]
    file = tasks_file("# the first is good", good, line.format(data=drawn_data))
    with pytest.raises(ClipstemError, match=rf"^tasks\.txt: line 3: .*{re.escape(message)}"):
        read_tasks(file, SweepVerb(verb))


def test_a_file_without_tasks_is_named(tasks_file: Callable[..., Path]) -> None:
    with pytest.raises(ClipstemError, match=r"tasks\.txt: has no task"):
        read_tasks(tasks_file("# nothing"), SweepVerb.train)
    with pytest.raises(ClipstemError, match=r"other\.txt: there is no such file"):
        read_tasks(Path("other.txt"), SweepVerb.train)


# ---------------------------------------------------------------------------- on this machine


def submit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["submit", *arguments])
    main()


def test_parts_are_predicted_retried_and_merged_on_this_machine(
    tasks_file: Callable[..., Path],
    drawn_data: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = f"bundle={tiny_bundle} data={drawn_data} split=valid parts=2"
    tasks_file(*(f"{common} part={part} out=part{part}.parquet" for part in (1, 2)))
    here = ("tasks=tasks.txt", "where=local")
    submit(monkeypatch, "submit", "verb=predict", *here)
    made = Sweep(Path("sweeps/tasks").absolute())
    wait_for(lambda: all(it.state is State.finished for it in standings(made)), "both parts")
    # ---- one part is lost: what has not failed is not started again, a missing file not merged
    with pytest.raises(SystemExit):
        submit(monkeypatch, "retry", *here)
    assert "no task has failed; there is nothing to retry" in capsys.readouterr().err
    Path("part2.parquet").unlink()
    with pytest.raises(SystemExit):
        submit(monkeypatch, "merge", *here)
    assert "part2.parquet: there is no such predictions file" in capsys.readouterr().err
    made.began(2, "local-1")  # and dies
    expected = [State.finished, State.failed]
    wait_for(lambda: [it.state for it in standings(made)] == expected, "the first process's end")
    with pytest.raises(SystemExit):
        submit(monkeypatch, "merge", *here)
    assert "not every task is finished, so none is merged: 2 " in capsys.readouterr().err
    submit(monkeypatch, "retry", *here)
    assert made.submissions[-1] == Submission(Where.local, "local-2", (2,))
    wait_for(lambda: all(it.state is State.finished for it in standings(made)), "the second part")
    submit(monkeypatch, "status", *here)
    assert "finished" in capsys.readouterr().out
    submit(monkeypatch, "merge", *here, "preds_txt=preds.txt")
    assert "preds.txt: one choice a source row; 0 skipped" in capsys.readouterr().out
    # ---- what one process predicts
    merged = prediction.read(made.folder / "predictions.parquet")
    config = PredictConfig(str(drawn_data), bundle=str(tiny_bundle), split="valid", out="whole")
    whole = predict(replace(config, trainer=TrainerConfig("cpu", workers=0)))["valid"]
    assert merged.columns["id"] == whole.columns["id"]
    np.testing.assert_array_equal(merged.choice_Q, whole.choice_Q)
    whole.write_choices(Path("expected.txt"), whole.provenance["source_rows"])
    assert Path("preds.txt").read_text() == Path("expected.txt").read_text()
    np.testing.assert_allclose(merged.probs_QK, whole.probs_QK, atol=1e-6, rtol=0)
    with pytest.raises(SystemExit):
        submit(monkeypatch, *here, "verb=predict")
    assert "sweeps/tasks exists and is never overwritten" in capsys.readouterr().err


def test_what_is_no_sweep_or_no_text_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for action in ("retry", "status", "merge"):
        with pytest.raises(SystemExit):
            submit(monkeypatch, action, "tasks=typo.txt", "where=local")
        assert "there is no sweep here (no sweep.json)" in capsys.readouterr().err
    Path("latin.txt").write_bytes("# Prüfung\n".encode("latin-1"))
    with pytest.raises(ClipstemError, match=r"latin\.txt: cannot be read as UTF-8 text"):
        read_tasks(Path("latin.txt"), SweepVerb.train)
    Path("bom.txt").write_text("\ufeff# nothing\n")
    with pytest.raises(ClipstemError, match=r"bom\.txt: has no task"):
        read_tasks(Path("bom.txt"), SweepVerb.train)


def test_tasks_on_this_machine_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(number, ("x",), tmp_path / f"{number}") for number in (1, 2)]
    made = sweep.create(tmp_path / "slow", SweepVerb.predict, tasks, "tasks.txt")
    made.add(Submission(Where.local, "local-1", (1, 2)))
    made.began(1, "local-1")
    made.ended(1, 1)
    with (made.folder / ".local-1.lock").open("w") as lock:  # as the process holds that still runs
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = SubmitConfig(Action.retry, out=str(made.folder), where=Where.local)
        with pytest.raises(
            ClipstemError, match="tasks of it still run on this machine, one by one"
        ):
            retry(config)
    assert len(made.submissions) == 1


def test_a_task_that_ends_while_slurm_is_asked_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sweep.create(tmp_path / "s", SweepVerb.predict, [Task(1, ("x",), tmp_path / "1")], "t")
    made.add(Submission(Where.slurm, "12", (1,)))
    made.began(1, "12")

    def ends_meanwhile(_: Submission) -> dict[int, Live]:
        made.ended(1, 0)
        return {}

    monkeypatch.setattr(slurm, "live", ends_meanwhile)
    assert [it.state for it in standings(made)] == [State.finished]


def test_trainings_have_no_leaderboard_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sweep.create(tmp_path / "s", SweepVerb.train, [Task(1, ("x",), tmp_path / "1")], "t")
    made.began(1, "local-1")
    made.ended(1, 0)
    with pytest.raises(SystemExit):
        submit(monkeypatch, "merge", f"out={made.folder}", "preds_txt=p.txt")
    assert "'preds_txt': is for predictions; these tasks are trainings" in capsys.readouterr().err


def test_slurm_is_not_asked_about_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(1, ("x",), tmp_path / "1")]
    made = sweep.create(tmp_path / "done", SweepVerb.predict, tasks, "tasks.txt")
    made.add(Submission(Where.slurm, "12", (1,)))
    made.began(1, "12")
    made.ended(1, 0)
    monkeypatch.setenv("PATH", "")
    assert [it.state for it in standings(made)] == [State.finished]


def test_a_task_that_fails_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bundle=nowhere", "data=gone", "split=valid", "out=x")
    tasks = [Task(number, words, tmp_path / f"{number}") for number in (1, 2)]
    made = sweep.create(tmp_path / "bad", SweepVerb.predict, tasks, "tasks.txt")
    submit(monkeypatch, "retry", f"out={made.folder}", "where=local")
    wait_for(lambda: all(it.state is State.failed for it in standings(made)), "both failures")
    assert len(made.attempts(2)) == 1
    assert standings(made)[0].why.startswith("exit status 2: clipstem predict: data: there is no")
    submit(monkeypatch, "status", f"out={made.folder}")
    assert "failed (exit status 2" in capsys.readouterr().out


# ---------------------------------------------------------------------------- what SLURM says


@pytest.fixture
def speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """Puts a command of a name on the PATH that prints a text and exits with a status."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def write(name: str, text: str, status: int = 0) -> None:
        stream = "&2" if status else "&1"
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\ncat >{stream} <<'.'\n{text}\n.\nexit {status}\n")
        file.chmod(0o755)

    return write


ARRAY = Submission(Where.slurm, "12", (1, 2, 3, 5))


def test_what_squeue_lists_is_alive(speaks: Callable[..., None]) -> None:
    listed = "1|RUNNING|None\n2|PENDING|Resources\n3|COMPLETING|None\n4|RUNNING|None\nN/A|RUNNING|-"
    speaks("squeue", listed)
    expected = {1: Live(False), 2: Live(True, "Resources"), 3: Live(False)}
    assert slurm.live(ARRAY) == expected  # 4 is not ours


def test_a_job_that_slurm_has_forgotten_is_not_alive(speaks: Callable[..., None]) -> None:
    speaks("squeue", "slurm_load_jobs error: Invalid job id specified", 1)
    assert slurm.live(ARRAY) == {}


def test_nothing_is_said_where_slurm_does_not_answer(speaks: Callable[..., None]) -> None:
    speaks("squeue", "Unable to contact slurm controller (connect failure)", 1)
    with pytest.raises(ClipstemError, match="squeue failed: Unable to contact slurm controller"):
        slurm.live(ARRAY)


def test_endings_come_from_the_controller_and_from_accounting_where_there_is_any(
    speaks: Callable[..., None],
) -> None:
    speaks("squeue", "1|TIMEOUT|TimeLimit\n2|RUNNING|None")
    speaks("sacct", "Slurm accounting storage is disabled", 1)
    assert slurm.endings(ARRAY) == {1: "TIMEOUT", 2: "RUNNING"}
    speaks("sacct", "12_1|FAILED\n12_3|CANCELLED by 1000\n12_[5]|PENDING\n12_5|OUT_OF_MEMORY")
    expected = {1: "TIMEOUT", 2: "RUNNING", 3: "CANCELLED", 5: "OUT_OF_MEMORY"}
    assert slurm.endings(ARRAY) == expected


def test_a_submission_is_what_sbatch_says(speaks: Callable[..., None], tmp_path: Path) -> None:
    speaks("sbatch", "34;cluster")
    found = slurm.submit(Sweep(tmp_path), [1, 3], ["--time 1"], None)
    assert found == Submission(Where.slurm, "34", (1, 3))


def test_the_batch_script_is_one_that_a_person_could_have_written(tmp_path: Path) -> None:
    made = sweep.create(tmp_path / "my sweep", SweepVerb.train, [], "tasks.txt")
    script = slurm.script(made, [1, 2, 3, 7], ["--gres gpu:1"], 2, 90)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    directives = re.findall(r"^#SBATCH (.*)$", script, flags=re.M)
    assert directives == [
        "--job-name='my sweep'",
        "--array=1-3,7%2",
        f"--chdir={Path.cwd()}",
        f"--output='{tmp_path}/my sweep/logs/%a.log'",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@90",
        "--gres gpu:1",
    ]
    assert "case $status in 75 | 143 | 138) scontrol requeue" in script


def test_a_prediction_which_cannot_save_is_not_told_of_its_time_limit(tmp_path: Path) -> None:
    made = sweep.create(tmp_path / "parts", SweepVerb.predict, [], "tasks.txt")
    script = slurm.script(made, [1], [], None, 90)
    assert "--signal" not in script and "#SBATCH --requeue" in script


@given(st.sets(st.integers(1, 40), min_size=1))
def test_an_array_names_each_task_once(numbers: set[int]) -> None:
    found: list[int] = []
    for word in slurm.array(sorted(numbers), None).split(","):
        first, _, last = word.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


def test_the_last_line_is_the_tasks_own(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    assert last_line(log) == ""
    log.write_text("first\nout of memory\n\nsrun: error: task 0\nslurmstepd-one: error: x\n")
    assert last_line(log) == "out of memory"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "conf key 'tasks' is missing; give tasks=<a file with a task a line>"),
        ({"out": "x"}, "conf key 'tasks' is missing"),
        ({"tasks": "x", "preds_txt": "p"}, "conf key 'preds_txt': is written by merge, of all"),
        ({"tasks": "x", "at_once": 0}, "conf key 'at_once': 0 is below 1"),
        ({"tasks": "x", "grace_seconds": 0}, "conf key 'grace_seconds': 0 is below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        SubmitConfig(**values)

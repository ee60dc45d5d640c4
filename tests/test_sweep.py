"""What a sweep's folder remembers, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipstem import sweep
from clipstem.config import SweepVerb, Where
from clipstem.question import ClipstemError
from clipstem.sweep import Attempt, Live, State, Submission, Sweep, Task, differing, state_of

BEGAN = Attempt(job="7", host="here", started="2026-11-22T10:00:00Z")


def ended(status: int) -> Attempt:
    return replace(BEGAN, ended="2026-11-22T10:01:00Z", status=status)


@pytest.fixture
def made(tmp_path: Path) -> Sweep:
    tasks = [
        Task(number, ("data=d", f"out=r{number}"), tmp_path / f"r{number}") for number in (1, 2)
    ]
    return sweep.create(tmp_path / "sweep", SweepVerb.train, tasks, "tasks.txt")


def test_a_sweep_is_read_as_it_was_made(made: Sweep, tmp_path: Path) -> None:
    made.add(Submission(Where.slurm, "12", (1, 2)))
    made.add(Submission(Where.local, "local-2", (2,)))
    again = Sweep(tmp_path / "sweep")
    assert [task.overrides for task in again.tasks] == [("data=d", "out=r1"), ("data=d", "out=r2")]
    assert again.submissions == [
        Submission(Where.slurm, "12", (1, 2)),
        Submission(Where.local, "local-2", (2,)),
    ]
    assert {"commit", "versions", "command"} <= again.manifest.keys()


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match=r"there is no sweep here \(no sweep\.json\)"):
        assert Sweep(tmp_path).tasks


def test_a_damaged_manifest_is_named(made: Sweep) -> None:
    for text, message in (("{", "cannot be read"), ("[]", "lacks some of"), ("{}", "lacks some")):
        (made.folder / "sweep.json").write_text(text)
        with pytest.raises(ClipstemError, match=rf"sweep\.json: {message}"):
            assert made.tasks


def test_attempts_are_what_the_task_wrote(made: Sweep) -> None:
    made.began(1, "7")
    made.ended(1, 75)
    made.began(1, "7")
    first, second = made.attempts(1)
    assert (first.status, first.was_stopped, first.job) == (75, True, "7")
    assert second.status is None and second.ended is None
    assert made.attempts(2) == []


def test_a_line_that_a_crash_cut_off_costs_only_itself(made: Sweep) -> None:
    made.began(1, "7")
    made.ended(1, 75)
    file = made.folder / "attempts" / "1.jsonl"
    file.write_text(file.read_text()[:-9])
    made.began(1, "8")
    made.ended(1, 0)
    assert [(it.job, it.status) for it in made.attempts(1)] == [("7", None), ("8", 0)]
    assert json.loads(file.read_text().splitlines()[-1])["status"] == 0


@pytest.mark.parametrize(
    ("attempts", "live", "state", "why"),
    [
        ([], Live(True, "Resources"), State.waiting, "Resources"),
        ([], Live(False), State.running, ""),
        ([], None, State.failed, "never began"),
        ([BEGAN], Live(False), State.running, ""),
        ([BEGAN], None, State.failed, "killed"),
        ([BEGAN], Live(True, "BeginTime"), State.requeued, "BeginTime"),
        ([ended(75)], Live(True, ""), State.requeued, ""),
        ([ended(75)], None, State.failed, "stopped, and not requeued"),
        ([ended(143)], None, State.failed, "stopped, and not requeued"),
        ([ended(137)], None, State.failed, "killed by SIGKILL"),
        ([ended(2)], None, State.failed, "exit status 2"),
        ([ended(255)], None, State.failed, "exit status 255"),
        ([ended(2)], Live(True, "Priority"), State.requeued, "Priority"),
        ([ended(75), ended(0)], None, State.finished, ""),
        ([ended(0)], Live(False), State.finished, ""),
    ],
)
def test_a_tasks_state_follows_from_its_attempts_and_the_queue(
    attempts: list[Attempt], live: Live | None, state: State, why: str
) -> None:
    assert state_of(attempts, live) == (state, why)


def test_what_differs_between_tasks_is_found_by_key() -> None:
    lines = ("seed=1 lr=2 out=a", "seed=1 lr=3 out=b", "seed=1 lr=3 tune=head out=c")
    tasks = [Task(number, tuple(line.split()), Path("x")) for number, line in enumerate(lines, 1)]
    assert differing(tasks) == ["lr", "tune"]

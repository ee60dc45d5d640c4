"""A task's own process: what it writes down, and signals that it hands on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipstem import sweep, task
from clipstem.config import SweepVerb
from clipstem.stopping import SIGNALS
from clipstem.sweep import Sweep, Task
from clipstem.task import Runner

# Tells the test that it is ready, and ends as train does when it is asked to.
STOPS = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: sys.exit(75))
os.kill(os.getppid(), signal.SIGUSR2)
while True:
    time.sleep(0.1)
"""


@pytest.fixture
def made(tmp_path: Path) -> Sweep:
    tasks = [Task(1, ("data=d", "out=run"), tmp_path / "run")]
    return sweep.create(tmp_path / "sweep", SweepVerb.train, tasks, "tasks.txt")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What a runner does to signals ends with its test."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(made: Sweep, code: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(task, "command", lambda *_: [sys.executable, "-c", code])
    return Runner(made, "7").run(made.tasks[0])


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)],
)
def test_a_tasks_end_is_written_down(
    made: Sweep, code: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(made, code, monkeypatch) == status
    (attempt,) = made.attempts(1)
    assert (attempt.job, attempt.status) == ("7", status) and attempt.ended


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_handed_on(
    made: Sweep, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), number))
    assert run(made, STOPS, monkeypatch) == 75
    assert made.attempts(1)[0].was_stopped


def test_what_a_task_prints_is_in_its_log(made: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run(made, "import sys; print('out'); print('err', file=sys.stderr)", monkeypatch)
    assert sorted(made.log(1).read_text().split()) == ["err", "err", "out", "out"]


def test_lightning_does_not_take_a_task_for_one_of_several(
    made: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    code = "import os; raise SystemExit('SLURM_NTASKS' in os.environ)"
    assert run(made, code, monkeypatch) == 0


def test_a_training_goes_on_only_where_it_has_begun(made: Sweep) -> None:
    (first,) = made.tasks
    words = [sys.executable, "-m", "clipstem.train", "data=d", "out=run"]
    assert task.command(made, first) == words
    first.out.mkdir()
    (first.out / "run.json").write_text("{}")
    assert task.command(made, first) == [*words, "resume=true"]


def test_what_is_finished_does_not_run_again(made: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.tasks[0].out
    out.mkdir()
    (out / "DONE").touch()
    assert run(made, "raise SystemExit(1)", monkeypatch) == 0
    assert made.attempts(1)[0].status == 0

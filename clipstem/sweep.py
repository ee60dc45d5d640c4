"""A sweep's folder: its tasks, where they were submitted to, and what became of each attempt.

    sweeps/lr/
    ├── sweep.json        the tasks with their overrides, every submission, and the environment
    ├── array.sbatch      what SLURM was given
    ├── attempts/3.jsonl  a line when task 3 began and a line when it ended, for each attempt
    └── logs/3.log        what it printed

Tasks are numbered from 1. A task writes its attempts itself, so that its true state is known where
SLURM keeps no accounts and after it has forgotten the job.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from clipstem.atomic import new_file, new_folder
from clipstem.config import SweepVerb, Where
from clipstem.question import ClipstemError
from clipstem.run import Run, environment
from clipstem.stopping import SIGNALS, STOPPED

MANIFEST = "sweep.json"
KEYS = ("verb", "cwd", "tasks", "submissions")  # of it, which are used
GOES_ON = (STOPPED, *(128 + number for number in SIGNALS))
"""Exit statuses of what was asked to stop and is to go on: 75 if it has saved, else a signal's."""


@dataclass(frozen=True)
class Task:
    """One line of the tasks file; `out` is the run's folder or the predictions file."""

    number: int
    overrides: tuple[str, ...]
    out: Path

    @property
    def settings(self) -> dict[str, str]:
        """The value of each override by its key."""
        return {key: value for key, _, value in (word.partition("=") for word in self.overrides)}


@dataclass(frozen=True)
class Submission:
    """Tasks that were started together; `job` is SLURM's number of the array, or our own name."""

    where: Where
    job: str
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Attempt:
    """One time that a task ran; a `status` of None means that no end was written (yet)."""

    job: str
    host: str
    started: str
    ended: str | None = None
    status: int | None = None

    @property
    def was_stopped(self) -> bool:
        """Whether it ended because it was asked to, and is to go on."""
        return self.status in GOES_ON


@dataclass(frozen=True)
class Live:
    """A task that SLURM, or this machine, still has to run or is running."""

    is_waiting: bool
    reason: str = ""


class State(Enum):
    """What a task is doing; `failed` is whatever will not go on by itself."""

    waiting = "waiting"
    running = "running"
    requeued = "requeued"  # it has begun before, and waits to go on
    finished = "finished"
    failed = "failed"


def state_of(attempts: Sequence[Attempt], live: Live | None) -> tuple[State, str]:
    """The state of a task, with a word on why; what is not live and wrote no end has died."""
    last = attempts[-1] if attempts else None
    if last and last.status == 0:
        return State.finished, ""
    if live:
        began = State.requeued if last else State.waiting
        return (began, live.reason) if live.is_waiting else (State.running, "")
    if last is None:
        return State.failed, "never began"
    if last.status is None:
        return State.failed, "killed"
    if last.was_stopped:
        return State.failed, "stopped, and not requeued"
    if last.status - 128 in set(signal.Signals):
        return State.failed, f"killed by {signal.Signals(last.status - 128).name}"
    return State.failed, f"exit status {last.status}"


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder; see the module."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """`sweep.json`.

        Raises:
            ClipstemError: if it is not there.
        """
        try:
            manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
        except FileNotFoundError:
            raise ClipstemError(
                f"{self.folder}: there is no sweep here (no {MANIFEST}); expected a folder made by "
                "python -m clipstem.submit"
            ) from None
        except (OSError, ValueError) as error:
            raise ClipstemError(f"{self.folder / MANIFEST}: cannot be read ({error})") from None
        if not isinstance(manifest, dict) or not {*KEYS} <= manifest.keys():
            raise ClipstemError(f"{self.folder / MANIFEST}: lacks some of {', '.join(KEYS)}")
        return manifest

    @property
    def verb(self) -> SweepVerb:
        return SweepVerb(self.manifest["verb"])

    @property
    def cwd(self) -> Path:
        """Where the tasks run: where they were submitted."""
        return Path(self.manifest["cwd"])

    @property
    def tasks(self) -> list[Task]:
        return [
            Task(number, tuple(it["overrides"]), Path(it["out"]))
            for number, it in enumerate(self.manifest["tasks"], 1)
        ]

    @property
    def submissions(self) -> list[Submission]:
        return [
            Submission(Where(it["where"]), it["job"], tuple(it["tasks"]))
            for it in self.manifest["submissions"]
        ]

    @property
    def script(self) -> Path:
        return self.folder / "array.sbatch"

    def log(self, number: int | str) -> Path:
        return self.folder / "logs" / f"{number}.log"

    def is_finished(self, task: Task) -> bool:
        """Whether what the task makes is there, which is written last."""
        return Run(task.out).is_done if self.verb is SweepVerb.train else task.out.is_file()

    def add(self, submission: Submission) -> None:
        """Write down that tasks were submitted."""
        said = {"where": submission.where.value, "job": submission.job, "submitted": _now()}
        manifest = self.manifest
        manifest["submissions"].append({**said, "tasks": list(submission.tasks)})
        _write(self.folder / MANIFEST, manifest, replace=True)

    def attempts(self, number: int) -> list[Attempt]:
        """Every attempt of a task, the latest last."""
        found: list[Attempt] = []
        for event in _events(self._attempts_file(number)):
            if "started" in event:
                found.append(Attempt(**event))
            elif found:
                found[-1] = Attempt(**{**asdict(found[-1]), **event})
        return found

    def began(self, number: int, job: str) -> None:
        """Called by the task itself."""
        _append(self._attempts_file(number), started=_now(), job=job, host=socket.gethostname())

    def ended(self, number: int, status: int) -> None:
        _append(self._attempts_file(number), ended=_now(), status=status)

    def _attempts_file(self, number: int) -> Path:
        return self.folder / "attempts" / f"{number}.jsonl"

    @contextmanager
    def only_submitter(self) -> Iterator[None]:
        """Meanwhile no other process submits tasks of this sweep."""
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def create(folder: Path, verb: SweepVerb, tasks: Sequence[Task], tasks_file: str) -> Sweep:
    """Make a sweep's folder, with nothing submitted yet.

    Raises:
        ClipstemError: if it exists.
    """
    manifest = {
        "verb": verb.value,
        "tasks_file": tasks_file,
        "cwd": str(Path.cwd()),
        **environment(),
        "tasks": [{"overrides": list(task.overrides), "out": str(task.out)} for task in tasks],
        "submissions": [],
    }
    with new_folder(folder) as partial:
        for name in ("attempts", "logs"):
            (partial / name).mkdir()
        _write(partial / MANIFEST, manifest)
    return Sweep(folder.absolute())


def differing(tasks: Sequence[Task]) -> list[str]:
    """The keys that not every task gives the same value, in the order of their appearance."""
    keys = dict.fromkeys(key for task in tasks for key in task.settings if key != "out")
    return [key for key in keys if len({task.settings.get(key) for task in tasks}) > 1]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _write(path: Path, manifest: Mapping[str, Any], replace: bool = False) -> None:
    with new_file(path, replace) as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n")


def _append(path: Path, **event: Any) -> None:
    """Add a line that is on the disk when this returns, on a line of its own whatever was there."""
    line = json.dumps(event).encode() + b"\n"
    with path.open("a+b") as file:
        if size := file.tell():
            file.seek(size - 1)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an attempts file; a last one that a crash cut off does not count."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue

"""Tasks of a sweep on this machine, one after the other, in a process that outlives the shell.

The process and its children hold a lock for as long as one of them lives: so it is known whether
anything still runs, whatever ended it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipstem.config import Where
from clipstem.sweep import Live, Submission, Sweep


def submit(sweep: Sweep, numbers: Sequence[int]) -> Submission:
    """Start the tasks; returns at once."""
    job = f"local-{len(sweep.submissions) + 1}"
    command = [sys.executable, "-m", "clipstem.task", str(sweep.folder), job, *map(str, numbers)]
    with _lock(sweep, job).open("w+") as lock, sweep.log(job).open("a") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Nobody reads standard input: it is inherited by the children, and the lock with it.
        streams = [(os.POSIX_SPAWN_DUP2, lock.fileno(), 0)]
        streams += [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
        os.posix_spawn(command[0], command, os.environ, file_actions=streams, setsid=True)
    return Submission(Where.local, job, tuple(numbers))


def live(sweep: Sweep, submission: Submission) -> dict[int, Live]:
    """The tasks of a submission that wait or run, by their number."""
    if not _is_held(_lock(sweep, submission.job)):
        return {}
    found = {}
    for number in submission.tasks:
        attempts = [it for it in sweep.attempts(number) if it.job == submission.job]
        if not attempts or attempts[-1].status is None:
            found[number] = Live(is_waiting=not attempts)
    return found


def runs(sweep: Sweep) -> bool:
    """Whether a submission of the sweep still runs on this machine."""
    local = (it for it in sweep.submissions if it.where is Where.local)
    return any(_is_held(_lock(sweep, it.job)) for it in local)


def _lock(sweep: Sweep, job: str) -> Path:
    return sweep.folder / f".{job}.lock"


def _is_held(lock: Path) -> bool:
    if not lock.exists():  # of a folder that was copied from elsewhere
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

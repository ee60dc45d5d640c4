"""`python -m clipstem.task <sweep's folder> <job> <number> …`: tasks of a sweep, one by one.

What `clipstem.submit` lets SLURM run, or starts in the background where there is none. It exits
with the last task's status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from clipstem.config import SweepVerb
from clipstem.stopping import SIGNALS
from clipstem.sweep import Sweep, Task


class Runner:
    """Runs tasks; a signal that asks to stop is handed on to the one that runs."""

    def __init__(self, sweep: Sweep, job: str) -> None:
        self.sweep = sweep
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_to_stop: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        self.asked_to_stop = number
        if self.process:
            self.process.send_signal(number)

    def run(self, task: Task) -> int:
        """Run a task to its end, write down both, and return its exit status."""
        self.sweep.began(task.number, self.job)
        status = 0 if self.sweep.is_finished(task) else self._run(task)
        self.sweep.ended(task.number, status)
        return status

    def _run(self, task: Task) -> int:
        with self.sweep.log(task.number).open("ab") as log:
            self.process = subprocess.Popen(
                command(self.sweep, task), cwd=self.sweep.cwd, env=_alone(), stdout=log, stderr=log
            )
            if self.asked_to_stop:  # before there was a process
                self.process.send_signal(self.asked_to_stop)
            status = self.process.wait()
        self.process = None
        return 128 - status if status < 0 else status  # as a shell says it


def command(sweep: Sweep, task: Task) -> list[str]:
    """What a task runs; a training that has begun before goes on."""
    goes_on = sweep.verb is SweepVerb.train and (task.out / "run.json").is_file()
    resume = ["resume=true"] if goes_on else []
    return [sys.executable, "-m", f"clipstem.{sweep.verb.value}", *task.overrides, *resume]


def _alone() -> dict[str, str]:
    """The environment, without what makes Lightning take a task for one of SLURM's several.

    It would answer the signals itself.
    """
    return {key: value for key, value in os.environ.items() if key != "SLURM_NTASKS"}


def main() -> None:
    folder, job, *numbers = sys.argv[1:]
    sweep = Sweep(Path(folder))
    runner = Runner(sweep, job)
    tasks = {task.number: task for task in sweep.tasks}
    status = 0
    for number in map(int, numbers):
        if runner.asked_to_stop:
            break
        status = runner.run(tasks[number])
    sys.exit(status)


if __name__ == "__main__":
    main()

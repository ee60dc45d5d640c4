"""SLURM, through its own commands: one array for many tasks, and what it knows of them.

Tried on SLURM 22.05: pre-emption sends SIGTERM at the beginning of the partition's GraceTime, and
`--signal=USR1@N` sends SIGUSR1 before the time limit, to the steps of a job alone. So the task is a
step (srun), and the batch script is still there behind it to ask for a requeue. `scancel`, and
pre-emption without GraceTime, end the batch script at once: the first is not to be requeued, and
after the second SLURM itself does it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipstem.config import SweepVerb, Where
from clipstem.question import ClipstemError
from clipstem.sweep import GOES_ON, Live, Submission, Sweep

WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States of squeue in which a task does not run; in all others that it lists the task does."""


def is_here() -> bool:
    """Whether tasks can be submitted to SLURM from here."""
    return shutil.which("sbatch") is not None


def script(
    sweep: Sweep, numbers: Sequence[int], options: Sequence[str], at_once: int | None, grace: int
) -> str:
    """The batch script of an array; `grace` is the time to save before the time limit, seconds.

    Only a training can save. A prediction is left alone until its limit, where SLURM ends the batch
    script too: told sooner, it would be requeued, and begin anew, without end.
    """
    lines = [f"--job-name={shlex.quote(sweep.folder.name)}"]
    lines += [f"--array={array(numbers, at_once)}", f"--chdir={shlex.quote(str(sweep.cwd))}"]
    lines += [f"--output={shlex.quote(str(sweep.log('%a')))}", "--open-mode=append"]
    signal = [f"--signal=USR1@{grace}"] if sweep.verb is SweepVerb.train else []
    lines += ["--requeue", *signal, *options]
    directives = "\n".join(f"#SBATCH {line}" for line in lines)
    stopped = " | ".join(map(str, GOES_ON))
    task = shlex.join([sys.executable, "-m", "clipstem.task", str(sweep.folder)])
    return f"""\
#!/bin/bash
# Each element of the array is one task of the sweep in {sweep.folder}.
{directives}

export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}  # since SLURM 22.05 srun does not see it
srun --ntasks=1 {task} "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
status=$?
# Stopped by pre-emption or the coming time limit: to go on from what it has saved.
case $status in {stopped}) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit $status
"""


def submit(
    sweep: Sweep, numbers: Sequence[int], options: Sequence[str], at_once: int | None
) -> Submission:
    """Submit tasks of a sweep whose script is written; `options` count more than those in it.

    Raises:
        ClipstemError: with what sbatch says, if it refuses.
    """
    words = [f"--array={array(numbers, at_once)}"]
    words += [word for option in options for word in shlex.split(option)]
    said = _run("sbatch", "--parsable", *words, str(sweep.script))
    return Submission(Where.slurm, said.strip().split(";")[0], tuple(numbers))


def array(numbers: Sequence[int], at_once: int | None) -> str:
    """`1-3,7%2`: runs of neighbours, and how many at the same time."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return said if at_once is None else f"{said}%{at_once}"


def live(submission: Submission) -> dict[int, Live]:
    """The tasks of a submission that wait or run, by their number.

    Raises:
        ClipstemError: if SLURM does not answer, so that nothing true can be said.
    """
    return {
        number: Live(state in WAITING, reason)
        for number, state, reason in _squeue(submission)
        if number in submission.tasks
    }


def endings(submission: Submission) -> dict[int, str]:
    """SLURM's own word on tasks that it does not run any more, such as OUT_OF_MEMORY.

    Accounting remembers it where there is any, the controller for some minutes (MinJobAge).
    """
    found = {number: state for number, state, _ in _squeue(submission, "--states=all")}
    if shutil.which("sacct"):
        form = ("--allocations", "--noheader", "--parsable2", "--format=JobID,State")
        accounts = subprocess.run(
            ["sacct", f"--jobs={submission.job}", *form], capture_output=True, text=True
        )
        if accounts.returncode == 0:  # elsewhere "accounting storage is disabled"
            for line in accounts.stdout.splitlines():
                if match := re.fullmatch(r"\d+_(\d+)\|(\w+).*", line):
                    found.setdefault(int(match[1]), match[2])
    return found


def _squeue(submission: Submission, *options: str) -> Iterator[tuple[int, str, str]]:
    """Number, state and reason of each of the array's tasks that squeue lists."""
    try:
        said = _run(
            *("squeue", "--noheader", "--array", f"--jobs={submission.job}", *options),
            "--format=%K|%T|%r",
        )
    except ClipstemError as error:
        if "Invalid job id" in str(error):  # so long ago that SLURM has forgotten it
            return
        raise
    for line in said.splitlines():
        number, state, reason = line.strip().split("|", 2)
        if number.isdigit():
            yield int(number), state, "" if reason == "None" else reason


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ClipstemError(
            f"{command[0]}: is not installed here; these tasks are on SLURM, ask where it is"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ClipstemError(f"{Path(command[0]).name} failed: {reason}")
    return done.stdout

"""Many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from clipstem.config.checks import require_at_least
from clipstem.question import ClipstemError


class Action(Enum):
    """What `clipstem.submit` is asked to do; the first word of its command line."""

    submit = "submit"  # start every task
    status = "status"  # say what became of each
    retry = "retry"  # start again what failed
    merge = "merge"  # join what the tasks made


class SweepVerb(Enum):
    """What each task of a sweep runs."""

    train = "train"
    predict = "predict"


class Where(Enum):
    """Where a sweep's tasks run."""

    auto = "auto"  # on SLURM where there is an `sbatch`, else here
    slurm = "slurm"
    local = "local"  # on this machine, one after the other, behind the shell's back


@dataclass
class SubmitConfig:
    """`python -m clipstem.submit [submit|status|retry|merge]`: a sweep of many trainings, or of the
    parts of one prediction, as one SLURM array or on this machine."""

    action: Action = Action.submit
    """`submit`, `status`, `retry` or `merge`: a bare first word of the command line."""
    verb: SweepVerb = SweepVerb.train
    """What each task runs: `train` or `predict`."""
    tasks: str | None = None
    """A text file: each line is one task, with the overrides as `verb` would be given them."""
    out: str | None = None
    """The sweep's folder; null is `sweeps/<name of the tasks file>`."""
    where: Where = Where.auto
    """Where the tasks run: `slurm`, `local`, or `auto`: SLURM where there is an `sbatch`."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, such as [--time 4:00:00,--gres gpu:1]: with spaces, not `=`."""
    at_once: int | None = None
    """Most tasks of the array that run at the same time; null leaves it to SLURM."""
    grace_seconds: int = 120
    """How long before its time limit a training is told to save and stop; a prediction is not."""

    preds_txt: str | None = None
    """`merge` of predictions: a file that gets their choices in STEM's leaderboard format, too."""

    def __post_init__(self) -> None:
        if self.preds_txt is not None and self.action is not Action.merge:
            raise ClipstemError("conf key 'preds_txt': is written by merge, of all parts")
        require_at_least(self, 1, "at_once", "grace_seconds")
        if self.tasks is None and (self.out is None or self.action is Action.submit):
            raise ClipstemError(
                "conf key 'tasks' is missing; give tasks=<a file with a task a line>"
                + (", or out=<the sweep's folder>" if self.action is not Action.submit else "")
            )

"""Which questions of a data set deserve a look before a model learns from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from clipstem.config.checks import require_at_least, require_different_files, require_seed
from clipstem.question import ClipstemError


@dataclass
class CurateConfig:
    """`python -m clipstem.curate`: look for duplicates, leaks and wrong answers; weigh the rest."""

    data: str = MISSING
    """A prepared folder, or its URL."""
    out: str = MISSING
    """The folder to write, which must not exist yet."""
    folds: int | None = None
    """Only write so many files of weights, each of which leaves another part of `train` out; near-
    duplicates stay together. Runs that are trained with them answer what they have not seen."""
    predictions: list[str] = field(default_factory=list)
    """Predictions for `train` of runs that left questions out by a file of weights. Of each, only
    the questions that its run did not see are taken; without any, labels are not judged."""
    unseen: bool = False
    """Take all predictions as of models that have seen none of the questions, which cannot be
    checked: for models as they come, and for files from elsewhere."""
    balance: float = 0.0
    """How far weights even out the skills of each grade: 0 leaves them, 1 gives all the same."""
    shown: int = 24
    """Most questions of each finding on the sheet."""
    workers: int | None = None
    """Processes; null is one for each usable core, 1 is none beside this one."""
    seed: int = 0
    """Seed of the folds, and of the halves that shortcuts are tried on."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "shown")
        require_at_least(self, 1, "workers")
        require_at_least(self, 2, "folds")
        require_seed(self.seed)
        require_different_files(self, "predictions")
        if not 0 <= self.balance <= 1:
            raise ClipstemError(f"conf key 'balance': {self.balance} is not from 0 to 1")
        if self.folds is not None and self.predictions:
            raise ClipstemError(
                "conf keys 'folds', 'predictions': folds come first, and predictions of the runs "
                "that were trained with them afterwards; give one of them"
            )
        if self.unseen and not self.predictions:
            raise ClipstemError("conf key 'unseen': needs predictions=[<file>.parquet] beside it")

"""How generated answers are verified, and which of them is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import (
    require_at_least,
    require_fraction,
    require_positive,
    require_seed,
)
from clipstem.config.model import ModelConfig, TrainerConfig
from clipstem.config.training import OptimizerConfig, TuneMode
from clipstem.question import ClipstemError


class Scores(Enum):
    """Where the scores of candidates come from."""

    trained = "trained"  # a scorer that is trained on the candidates known to be right or wrong
    given = "given"  # the field `score` of each candidate, or `scores_file`; needs no torch
    none = "none"  # nowhere: votes and the systems' track records alone; needs no torch


@dataclass
class RerankConfig:
    """`python -m clipstem.rerank`: which of several generated answers to take."""

    candidates: list[str] = field(default_factory=list)
    """Files with a question and its candidates a line, as JSON; empty draws some by code."""
    out: str = MISSING
    """A new folder for figures, choices, predictions and the chart."""
    scores: Scores = Scores.trained
    """Where the candidates' scores come from: `trained`, `given` or `none`."""
    scores_file: str | None = None
    """`given`: scores for the candidates, such as the `choices.jsonl` of an earlier rerank; null
    takes the candidates' own field `score`."""
    leave_out: list[str] = field(default_factory=list)
    """Systems whose candidates are left out."""
    folds: int = 4
    """Parts that the questions are divided into. What judges a part has never seen its labels;
    `trained` trains a scorer for every two of them."""
    subsets: int = 100
    """Best of N: all subsets of N of a question's candidates, but at most so many drawn ones."""
    max_skipped_fraction: float = 0.01
    """Share of bad lines that are skipped; more stop the command."""
    questions: int = 300
    """How many questions are drawn where no `candidates` are given."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """`trained`: the model whose text tower reads the candidates (a file of `conf/model`)."""
    learns: TuneMode = TuneMode.full
    """`trained`: what of the model learns besides the direction: `full`, `last_blocks`, `head`, or
    with `zero_shot` nothing; then each text is encoded only once."""
    epochs: int = 3
    """`trained`: times that a scorer sees each candidate of its questions."""
    batch_size: int = 16
    """`trained`: questions of a training step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    """Seed of parts, subsets, drawn questions, weights and the order of training."""

    def __post_init__(self) -> None:
        require_positive(self, "subsets", "questions", "epochs", "batch_size")
        require_seed(self.seed)
        require_fraction(self, "max_skipped_fraction")
        # Of three parts, a scorer for two learns from the third.
        require_at_least(self, 3 if self.scores is Scores.trained else 2, "folds")
        if self.scores_file is not None and self.scores is not Scores.given:
            raise ClipstemError("conf key 'scores_file': needs scores=given beside it")
        if self.scores is Scores.given and not self.candidates:
            raise ClipstemError(
                "conf key 'candidates' is missing; scores=given needs candidates=[<file>.jsonl]"
            )

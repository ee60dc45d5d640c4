"""Which questions a fast model answers itself, and which a tool does."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import (
    require_at_least,
    require_different_files,
    require_positive,
    require_seed,
)
from clipstem.question import ClipstemError

FEWEST_FOLDS = 3


class Method(Enum):
    """How a gate learns which questions are hard."""

    best = "best"  # whichever is best on questions that it was not fitted on
    confidence = "confidence"  # logistic regression on the confidence alone
    logistic = "logistic"  # logistic regression on all that is known
    boosting = "boosting"  # small trees, one after the other


@dataclass
class RouteConfig:
    """`python -m clipstem.route`: a fast model answers, or defers to a tool that costs more."""

    fast: str = MISSING
    """The fast model's predictions file, for the questions that are routed."""
    tool: str | None = None
    """The tool's predictions file: a larger model, a person …; null only says what to ask it."""
    samples: list[str] = field(default_factory=list)
    """Other answers of the fast model to them: to perturbed questions, or of other checkpoints."""
    fit_fast: str | None = None
    """The same for the questions that the gate is fitted on; null: other parts of `fast`'s own."""
    fit_tool: str | None = None
    """The tool's predictions file for the questions of `fit_fast`."""
    fit_samples: list[str] = field(default_factory=list)
    """The same as `samples`, in the same order, for the questions of `fit_fast`."""
    gate: str | None = None
    """Or a `gate.json` that was fitted before; then no answer needs to be known."""
    out: str = MISSING
    """A new folder for figures, decisions, the routed predictions, the curve and the gate."""
    method: Method = Method.best
    """How the gate learns: `confidence`, `logistic`, `boosting`, or what is `best` elsewhere."""
    agreement: bool = True
    """Whether the gate sees how the samples agree; if not, they only say what is easy."""
    easy_at: float = 0.5
    """A question is easy if this share of the fast model's answers is right, samples included."""
    budget: float | None = None
    """Most mean cost of a question, in `cost_unit`; null: what `points_below_tool` takes."""
    points_below_tool: float = 1.0
    """Accuracy that may be lost against always asking the tool, points (of a 95 % interval)."""
    fast_cost: float = 0.0
    """What an answer of the fast model costs, and each of the samples that the gate sees."""
    tool_cost: float = 1.0
    """What an answer of the tool costs."""
    cost_unit: str = "tool calls"
    """What costs are counted in; with the default costs the budget is the share of calls."""
    folds: int = 5
    """Parts of the fitting questions that take turns in being left out."""
    repeats: int = 2000
    """Bootstrap repeats behind an interval."""
    seed: int = 0
    """Seed of the folds, of boosting and of the bootstrap."""

    def __post_init__(self) -> None:
        require_positive(self, "repeats", "tool_cost")
        require_at_least(self, 0, "fast_cost", "points_below_tool")
        require_at_least(self, FEWEST_FOLDS, "folds")
        require_seed(self.seed)
        if self.gate is None:
            self.check_budget(1 + (len(self.samples) if self.agreement else 0))
        if not 0 < self.easy_at <= 1:
            raise ClipstemError(f"conf key 'easy_at': {self.easy_at} is not above 0 and at most 1")
        self._check_files()

    def check_budget(self, fast_passes: int) -> None:
        """Refuse a budget that nothing can be bought with, or that buys all.

        `fast_passes` is how often the fast model answers a question before the gate decides.

        Raises:
            ClipstemError: naming the range.
        """
        least = self.fast_cost * fast_passes
        if self.budget is not None and not least <= self.budget <= least + self.tool_cost:
            raise ClipstemError(
                f"conf key 'budget': {self.budget} {self.cost_unit} a question is not between "
                f"{least:g}, which the fast model costs by itself, and {least + self.tool_cost:g}, "
                "with the tool asked always"
            )

    def _check_files(self) -> None:
        if self.fit_fast is None and (self.fit_tool or self.fit_samples):
            raise ClipstemError(
                "conf keys 'fit_tool', 'fit_samples': need fit_fast=<file> beside them"
            )
        if self.fit_fast is not None and self.fit_tool is None:
            raise ClipstemError(
                "conf key 'fit_tool' is missing; give the tool's answers to the questions of "
                "fit_fast, or thresholds cannot be chosen"
            )
        if self.gate is not None and self.fit_fast is not None:
            raise ClipstemError("conf keys 'gate', 'fit_fast': give one of them, not both")
        if self.tool is None and self.gate is None and self.fit_fast is None:
            raise ClipstemError(
                "conf key 'tool' is missing; it can be left out with gate=<file> or fit_fast=<file>"
            )
        require_different_files(
            self, "fast", "tool", "samples", "fit_fast", "fit_tool", "fit_samples"
        )

"""What it is worth to defer some questions: pure functions of arrays.

Q questions, G groups of equal scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.route.gate import Flags, Floats
from clipstem.statistics import Interval, bootstrap_mean_interval

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What a choice of questions to defer comes to.

    Attributes:
        calls: share of the questions that are deferred.
        cost: mean cost of a question.
        accuracy: of the answers.
        easy_direct, easy_tool, hard_direct, hard_tool: EN, ET, HN and HT: how many easy and hard
            questions the fast model answered (N) or the tool (T).
        tool_usage: tool-usage accuracy: the mean of EN/(EN+ET) and HT/(HN+HT); None if all
            questions are easy, or all hard.
    """

    calls: float
    cost: float
    accuracy: float
    easy_direct: float
    easy_tool: float
    hard_direct: float
    hard_tool: float
    tool_usage: float | None


@dataclass(frozen=True)
class Difference:
    """Of two ways to route the same questions, with the 95 % interval of a paired bootstrap."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Graded:
    """Questions with known answers, for which everything is known.

    Deferring is a number of each question, from 0 to 1: between them it is the probability with
    which a question is deferred, as of several with the same score of which only some can be.
    """

    fast_right_Q: Flags
    tool_right_Q: Flags
    hard_Q: Flags
    repeats: int
    seed: int

    def outcome(self, deferred_Q: NDArray[Any], cost_before: float, tool_cost: float) -> Outcome:
        """`cost_before` is what a question costs before the tool is asked."""
        deferred_Q = deferred_Q.astype(np.float64)
        hard_Q = self.hard_Q
        calls = float(deferred_Q.mean())
        counts = [
            float(share_Q[which_Q].sum())
            for which_Q in (~hard_Q, hard_Q)
            for share_Q in (1 - deferred_Q, deferred_Q)
        ]
        return Outcome(
            calls=calls,
            cost=cost_before + calls * tool_cost,
            accuracy=float(self._credit_Q(deferred_Q).mean()),
            easy_direct=counts[0],
            easy_tool=counts[1],
            hard_direct=counts[2],
            hard_tool=counts[3],
            tool_usage=self._tool_usage(deferred_Q),
        )

    def _credit_Q(self, deferred_Q: Floats) -> Floats:
        """How probably each question is answered rightly."""
        return deferred_Q * self.tool_right_Q + (1 - deferred_Q) * self.fast_right_Q

    def _tool_usage(self, deferred_Q: Floats) -> float | None:
        if self.hard_Q.all() or not self.hard_Q.any():
            return None
        return float(((1 - deferred_Q)[~self.hard_Q].mean() + deferred_Q[self.hard_Q].mean()) / 2)

    def accuracy_difference(self, one_Q: NDArray[Any], other_Q: NDArray[Any]) -> Difference:
        """Accuracy of one way to route, less that of the other."""
        credits = [self._credit_Q(it.astype(np.float64)) for it in (one_Q, other_Q)]
        return self._difference(credits[0] - credits[1], np.zeros(len(one_Q), np.int64))

    def usage_difference(self, one_Q: NDArray[Any], other_Q: NDArray[Any]) -> Difference | None:
        """The same of tool-usage accuracy, in which easy and hard questions count the same."""
        if self.hard_Q.all() or not self.hard_Q.any():
            return None
        more_Q = one_Q.astype(np.float64) - other_Q
        return self._difference(
            np.where(self.hard_Q, more_Q, -more_Q), self.hard_Q.astype(np.int64)
        )

    def _difference(self, value_Q: Floats, group_Q: Ints) -> Difference:
        means = [value_Q[group_Q == group].mean() for group in np.unique(group_Q)]
        interval = bootstrap_mean_interval(value_Q, group_Q, self.repeats, self.seed)
        return Difference(float(np.mean(means)), interval)


def deferred_first(score_Q: NDArray[Any], calls: float) -> Floats:
    """Defer this share of the questions, those of the largest scores first.

    Of several with the same score of which only some can be deferred, each is with the same
    probability, which is what drawing among them comes to.
    """
    budget = round(calls * len(score_Q), 9)  # a share of calls that was added up is a hair off
    _, rank_Q = np.unique(-score_Q, return_inverse=True)
    count_G = np.bincount(rank_Q)
    before_G = np.cumsum(count_G) - count_G
    share_G: Floats = np.clip((budget - before_G) / count_G, 0.0, 1.0)
    return share_G[rank_Q]

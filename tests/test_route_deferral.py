"""What deferring is worth, against questions counted one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from routing import Flags, graded, one_by_one
from sklearn.metrics import balanced_accuracy_score

from clipstem.route.deferral import Graded, deferred_first


@given(graded(), st.integers(0, 999))
def test_an_outcome_is_the_papers_measure(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], seed: int
) -> None:
    rest = made[1:]
    deferred_Q = np.random.default_rng(seed).random(len(rest[0])) < 0.5
    found = Graded(*rest, 10, 0).outcome(deferred_Q, cost_before=0.5, tool_cost=3.0)
    calls, accuracy, usage, counts = one_by_one(deferred_Q.tolist(), *rest)
    assert (found.calls, found.accuracy, found.tool_usage) == pytest.approx(
        (calls, accuracy, usage)
    )
    assert [found.easy_direct, found.easy_tool, found.hard_direct, found.hard_tool] == counts
    assert found.cost == pytest.approx(0.5 + 3 * calls)
    assert usage == pytest.approx(balanced_accuracy_score(rest[2], deferred_Q))


@given(graded(), st.floats(0, 1))
def test_the_first_to_be_deferred_are_those_of_the_largest_scores(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], calls: float
) -> None:
    score_Q = made[0]
    found_Q = deferred_first(score_Q, calls)
    assert found_Q.sum() == pytest.approx(calls * len(score_Q), abs=1e-8)
    order_Q = np.argsort(-score_Q, kind="stable")
    assert (np.diff(found_Q[order_Q]) <= 1e-12).all()


def test_equal_scores_are_as_drawn_among_them() -> None:
    score_Q = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    drawn = [
        [1, *(place in chosen for place in range(3)), 0] for chosen in combinations(range(3), 2)
    ]
    assert deferred_first(score_Q, 3 / 5).tolist() == pytest.approx(np.mean(drawn, axis=0).tolist())


@settings(max_examples=20)
@given(graded())
def test_random_deferral_has_half_of_tool_usage_and_the_oracle_is_the_best(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags],
) -> None:
    score_Q, fast_Q, tool_Q, _ = made
    judge = Graded(*made[1:], 10, 0)
    gain_Q = tool_Q.astype(int) - fast_Q
    for calls in (0.0, 0.3, 0.7, 1.0):
        blind = judge.outcome(np.full(len(score_Q), calls), 0, 1)
        assert blind.tool_usage == pytest.approx(0.5)
        assert blind.accuracy == pytest.approx((1 - calls) * fast_Q.mean() + calls * tool_Q.mean())
        best = judge.outcome(deferred_first(gain_Q, calls), 0, 1).accuracy
        assert best >= judge.outcome(deferred_first(score_Q, calls), 0, 1).accuracy - 1e-12


def test_differences_are_those_of_the_outcomes() -> None:
    rng = np.random.default_rng(3)
    fast_Q, tool_Q, hard_Q = rng.random((3, 300)) < 0.5
    judge = Graded(fast_Q, tool_Q, hard_Q, 400, 0)
    one_Q, other_Q = rng.random((2, 300)) < 0.5
    one, other = (judge.outcome(it, 0, 1) for it in (one_Q, other_Q))
    accuracy, usage = (
        judge.accuracy_difference(one_Q, other_Q),
        judge.usage_difference(one_Q, other_Q),
    )
    assert accuracy.value == pytest.approx(one.accuracy - other.accuracy)
    assert usage is not None and one.tool_usage is not None and other.tool_usage is not None
    assert usage.value == pytest.approx(one.tool_usage - other.tool_usage)
    assert accuracy.interval.low < accuracy.value < accuracy.interval.high
    assert usage.interval.low < usage.value < usage.interval.high
    same = judge.accuracy_difference(one_Q, one_Q)
    assert (same.value, same.interval.low, same.interval.high) == (0, 0, 0)

"""Choosing and voting, against one subset at a time, counting by hand and other libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clipstem.rerank import choosing
from clipstem.rerank.choosing import Judge, Slate, best_of, choose, features, learn, subsets


@st.composite
def slates(draw: st.DrawFn) -> Slate:
    count = draw(st.integers(1, 6))

    def some(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    numbers: dict[int, int] = {}
    finals = [numbers.setdefault(it, len(numbers)) for it in some(st.integers(0, 3))]
    return Slate(
        system_C=np.array(some(st.integers(0, 2))),
        final_C=np.array(finals),
        right_C=np.array(some(st.booleans())),
        score_C=np.array(some(st.sampled_from([-1.0, 0.0, 0.5, 2.0]))),
    )


def judge(seed: int = 0) -> Judge:
    rng = np.random.default_rng(seed)
    widths = {"mix": (7, True), "mix_without_scores": (5, False)}
    mixes = {
        name: choosing.Mix(rng.normal(size=width), 0.3, scored)
        for name, (width, scored) in widths.items()
    }
    return Judge(np.array([0.2, 0.7, 0.4]), mixes, slope=1.5, intercept=-0.2)


def one_choice(method: str, slate: Slate, members: list[int], judge: Judge) -> int:
    """The same for one subset, by loops over its candidates."""
    score_C = slate.score_C
    assert score_C is not None

    def highest(places: list[int], value: Callable[[int], float]) -> int:
        return next(it for it in places if value(it) == max(map(value, places)))

    def score(place: int) -> float:
        return float(score_C[place])

    if method == "best_system":
        return highest(members, lambda it: judge.rate_S[slate.system_C[it]])
    if method == "best_score":
        return highest(members, score)
    gives: dict[int, list[int]] = {}
    for it in members:
        gives.setdefault(int(slate.final_C[it]), []).append(it)
    shares = {final: len(who) / len(members) for final, who in gives.items()}
    worth: dict[int, float] = {}
    for final, who in sorted(gives.items()):
        if method == "majority":
            worth[final] = len(who)
        elif method == "weighted_vote":
            worth[final] = sum(1 / (1 + np.exp(0.2 - 1.5 * score(it))) for it in who)
        else:
            mix = judge.mixes[method]
            own = []
            for system in range(3):
                of_system = [it for it in members if slate.system_C[it] == system]
                own.append(len({*of_system} & {*who}) / max(1, len(of_system)))
            others = [share for key, share in shares.items() if key != final]
            own += [shares[final], shares[final] - max(others, default=0.0)]
            if mix.with_scores:
                own += [max(map(score, who)), sum(map(score, who)) / len(who)]
            worth[final] = float(np.dot(own, mix.weight_X) + mix.bias)
    best = max(worth.values())
    final = next(final for final in sorted(worth) if worth[final] >= best - 1e-12)
    return highest(gives[final], score if method in choosing.WITH_SCORES else lambda it: 0.0)


@settings(max_examples=60)
@given(slates(), st.sampled_from(choosing.METHODS), st.integers(0, 5))
def test_choices_of_all_subsets_are_one_subset_at_a_time(
    slate: Slate, method: str, seed: int
) -> None:
    count = len(slate.final_C)
    for size in range(1, count + 1):
        member_BC = subsets(count, size, 1000, np.random.default_rng(0))
        expected = [
            one_choice(method, slate, list(members), judge(seed))
            for members in combinations(range(count), size)
        ]
        assert choose(method, slate, member_BC, judge(seed)).tolist() == expected


@given(slates(), st.data())
def test_best_of_n_is_counted_by_hand(slate: Slate, data: st.DataObject) -> None:
    right_C = slate.right_C
    assert right_C is not None
    count, size = len(right_C), data.draw(st.integers(1, 7))
    found = best_of(size, slate, judge(), choosing.METHODS, 1000, [0])
    size = min(size, count)
    wrong = int((~right_C).sum())
    assert found["any_right"] == pytest.approx(1 - comb(wrong, size) / comb(count, size))
    expected = []
    for members in combinations(range(count), size):
        votes = Counter(int(slate.final_C[it]) for it in members)
        final = min(votes, key=lambda key: (-votes[key], key))
        expected.append(right_C[next(it for it in members if slate.final_C[it] == final)])
    assert found["majority"] == pytest.approx(np.mean(expected))
    assert all(0 <= value <= found["any_right"] + 1e-12 for value in found.values())


def test_drawn_subsets_are_of_their_size_and_the_same_each_time() -> None:
    made = [subsets(30, 10, 50, np.random.default_rng(1)) for _ in range(2)]
    assert (made[0] == made[1]).all()
    assert made[0].shape == (50, 30) and (made[0].sum(axis=1) == 10).all()
    assert choosing.sizes(7) == [1, 2, 3, 4, 5, 6, 7]
    assert choosing.sizes(40)[15:] == [16, 20, 24, 29, 35, 40]


def test_majority_by_lot_is_the_mean_of_the_tied() -> None:
    tied = Slate(np.zeros(4, np.int64), np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]) > 0, None)
    assert choosing.majority_by_lot(tied) == 0.5


def test_a_judge_learns_whom_to_believe() -> None:
    """System 0 is always right, two others are wrong together."""
    wise = [
        Slate(np.array([1, 2, 0]), np.array([0, 0, 1]), np.array([False, False, True]), None),
        Slate(np.array([1, 2, 0]), np.array([0, 0, 0]), np.array([True, True, True]), None),
    ] * 20
    learnt = learn(wise, 3, np.arange(len(wise)))
    assert learnt.rate_S == pytest.approx([41 / 42, 21 / 42, 21 / 42])
    whole = wise[0].whole_1C
    assert choose("majority", wise[0], whole, learnt) == 0
    assert choose("mix_without_scores", wise[0], whole, learnt) == 2
    assert choose("best_system", wise[0], whole, learnt) == 2
    odds_F = choosing.final_odds(wise[0], learnt)
    assert odds_F[1] > 10 * odds_F[0]


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_one_option_a_question_is_a_logistic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_NX = rng.normal(size=(60, 3)) * [1, 10, 0.1] + [0, 5, 1]
    right_N = rng.random(60) < 1 / (1 + np.exp(-x_NX[:, 0]))
    weight_X, bias = choosing.conditional_logit(x_NX, np.arange(60), right_N)
    spread_X = x_NX.std(axis=0)
    expected = LogisticRegression(tol=1e-8).fit((x_NX - x_NX.mean(axis=0)) / spread_X, right_N)
    assert weight_X * spread_X == pytest.approx(expected.coef_[0], abs=1e-3)
    assert bias + weight_X @ x_NX.mean(axis=0) == pytest.approx(expected.intercept_[0], abs=1e-3)


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_a_conditional_logit_has_the_least_loss(seed: int) -> None:
    """Written out one question at a time; no step to any side is better."""
    rng = np.random.default_rng(seed)
    question_N = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    x_NX = rng.normal(size=(len(question_N), 2))
    x_NX = (x_NX - x_NX.mean(axis=0)) / x_NX.std(axis=0)
    right_N = rng.random(len(question_N)) < 0.3
    found = np.append(*choosing.conditional_logit(x_NX, question_N, right_N))

    def loss(theta: Any) -> float:
        total = theta[:-1] @ theta[:-1] / 2
        for question in range(30):
            odds = np.exp(x_NX[question_N == question] @ theta[:-1] + theta[-1])
            right = odds[right_N[question_N == question]]
            total -= np.log((right.sum() if len(right) else 1.0) / (1 + odds.sum()))
        return float(total)

    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 0.01:
        assert loss(found + step) > loss(found)


def test_features_have_names() -> None:
    one = Slate(np.array([0, 1]), np.array([0, 1]), None, np.array([0.0, 1.0]))
    for with_scores in (True, False):
        names = choosing.feature_names(["a", "b"], with_scores)
        assert features(one, one.whole_1C, 2, with_scores).shape == (1, 2, len(names))

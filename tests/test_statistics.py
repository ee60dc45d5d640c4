"""Intervals and tests, against scipy and statsmodels, and by how often they hold the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from clipstem.statistics import (
    Interval,
    auc,
    block_jackknife,
    bootstrap_mean_interval,
    holm,
    mcnemar_exact,
    numbered,
    paired_difference,
    paired_loss_at_most,
    ranks,
    skills_like_these_interval,
    these_skills_interval,
    these_skills_mean_interval,
    wilson,
)

seeds = st.integers(0, 999)
Draw = Callable[[np.random.Generator], tuple[NDArray[np.float64], NDArray[np.int64]]]


def drawn(seed: int, skills: int = 12) -> tuple[NDArray[np.bool_], list[str]]:
    """Answers to some questions in each skill, in any order."""
    rng = np.random.default_rng(seed)
    skill_Q = np.repeat(np.arange(skills), rng.integers(2, 9, skills))
    rng.shuffle(skill_Q)
    right_Q = rng.random(len(skill_Q)) < rng.random(skills)[skill_Q]
    return right_Q, [f"skill-{number:02}" for number in skill_Q]


# ---------------------------------------------------------------------------- other libraries


@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_is_statsmodels(total: int, share: float) -> None:
    right = round(share * total)
    found = wilson(right, total)
    expected = proportion_confint(right, total, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    scipys = scipy.stats.binomtest(right, total).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)


@settings(max_examples=5)
@given(seed=seeds)
def test_a_bootstrap_by_values_is_scipys_by_questions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.choice([-1.0, 0.0, 0.5, 1.0], size) for size in (60, 140)]
    value_Q, group_Q = np.concatenate(groups), np.repeat([3, 7], [60, 140])
    found = bootstrap_mean_interval(value_Q, group_Q, 4000, seed)
    theirs = scipy.stats.bootstrap(
        groups,
        lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2,
        method="percentile",
        n_resamples=4000,
        rng=rng,
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def drawn_alike(seed: int, skills: int = 12) -> tuple[NDArray[np.bool_], list[str]]:
    """Answers to equally many questions in each skill."""
    rng = np.random.default_rng(seed)
    right_Q = rng.random(6 * skills) < np.tile(rng.random(skills), 6)
    return right_Q, [f"skill-{number:02}" for number in np.tile(np.arange(skills), 6)]


def clustered(value_Q: NDArray[Any], skill_Q: list[str]) -> tuple[float, float]:
    """statsmodels' interval of the mean: a regression on a constant, clustered by skill."""
    fit = OLS(value_Q.astype(float), np.ones(len(value_Q))).fit(
        cov_type="cluster", cov_kwds={"groups": numbered(skill_Q)[1]}, use_t=True
    )
    return tuple(fit.conf_int()[0])


def jackknifed(value_Q: NDArray[Any], skill_Q: list[str]) -> tuple[float, float]:
    """The same mean's variance, leaving out a skill at a time, and its degrees of freedom."""
    skills = sorted(set(skill_Q))
    means = [value_Q[[name != skill for name in skill_Q]].astype(float).mean() for skill in skills]
    variance = (len(skills) - 1) / len(skills) * ((means - value_Q.mean()) ** 2).sum()
    shares = [skill_Q.count(skill) / len(skill_Q) for skill in skills]
    return variance, 1 / sum(share**2 for share in shares) - 1


@given(seed=seeds)
def test_skills_like_these_is_statsmodels_where_skills_are_equally_large(seed: int) -> None:
    right_Q, skill_Q = drawn_alike(seed)
    found = skills_like_these_interval(right_Q, skill_Q)
    assert found
    low, high = clustered(right_Q, skill_Q)
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)))


@given(seed=seeds)
def test_skills_like_these_leaves_out_a_skill_at_a_time(seed: int) -> None:
    right_Q, skill_Q = drawn(seed)
    found = skills_like_these_interval(right_Q, skill_Q)
    assert found
    variance, degrees = jackknifed(right_Q, skill_Q)
    half = scipy.stats.t.ppf(0.975, degrees) * variance**0.5
    expected = max(right_Q.mean() - half, 0), min(right_Q.mean() + half, 1)
    assert (found.low, found.high) == pytest.approx(expected)
    assert degrees <= 11


@given(seed=seeds)
def test_a_paired_difference_is_statsmodels(seed: int) -> None:
    right_a_Q, skill_Q = drawn_alike(seed)
    right_b_Q = np.random.default_rng(seed).permutation(right_a_Q)
    found = paired_difference(right_a_Q, right_b_Q, skill_Q)
    table = [
        [(right_a_Q & right_b_Q).sum(), (right_a_Q & ~right_b_Q).sum()],
        [(~right_a_Q & right_b_Q).sum(), (~right_a_Q & ~right_b_Q).sum()],
    ]
    assert found.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert found.difference == pytest.approx(right_a_Q.mean() - right_b_Q.mean())
    expected = clustered(right_a_Q.astype(float) - right_b_Q, skill_Q)
    assert found.interval
    assert (found.interval.low, found.interval.high) == pytest.approx(expected)


@given(only_a=st.integers(0, 3000), only_b=st.integers(0, 3000))
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    if only_a + only_b:
        expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue
        assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-8, abs=1e-250)
    assert mcnemar_exact(only_a, only_a) == 1


@settings(max_examples=4)  # statsmodels collects garbage at each call
@given(seed=seeds, skills=st.integers(1, 30))
def test_holm_is_statsmodels(seed: int, skills: int) -> None:
    p_S = np.random.default_rng(seed).random(skills).round(2)  # some are equal
    _, expected_S, _, _ = multipletests(p_S, method="holm")
    np.testing.assert_allclose(holm(p_S), expected_S)


def test_the_macro_standard_error_is_that_of_a_stratified_sample_of_skills() -> None:
    right_Q, skill_Q = drawn(3, skills=20)
    subject_Q = ["math" if skill < "skill-08" else "science" for skill in skill_Q]
    found = skills_like_these_interval(right_Q, skill_Q, subject_Q)
    assert found
    means, variances, degrees = [], [], []
    for subject in ("math", "science"):
        here_Q = np.array(subject_Q) == subject
        variance, degree = jackknifed(right_Q[here_Q], np.array(skill_Q)[here_Q].tolist())
        means.append(right_Q[here_Q].mean())
        variances.append(variance / 4)
        degrees.append(degree)
    t = scipy.stats.t(
        sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    )
    half = t.ppf(0.975) * np.sqrt(sum(variances))
    assert (found.low, found.high) == pytest.approx((np.mean(means) - half, np.mean(means) + half))


# ---------------------------------------------------------------------------- edges


@given(seed=seeds)
def test_the_order_of_the_questions_does_not_matter(seed: int) -> None:
    right_Q, skill_Q = drawn(seed)
    order = np.random.default_rng(seed).permutation(len(right_Q))
    shuffled = [skill_Q[place] for place in order]
    assert these_skills_interval(right_Q, skill_Q) == these_skills_interval(
        right_Q[order], shuffled
    )
    one, other = (
        skills_like_these_interval(right_Q, skill_Q),
        skills_like_these_interval(right_Q[order], shuffled),
    )
    assert one and other and (one.low, one.high) == pytest.approx((other.low, other.high))


@given(seed=seeds)
def test_these_skills_hold_the_accuracy_itself(seed: int) -> None:
    right_Q, skill_Q = drawn(seed)
    found = these_skills_interval(right_Q, skill_Q)
    assert found
    assert 0 <= found.low <= right_Q.mean() <= found.high <= 1
    subject_Q = [skill[-1] for skill in skill_Q]
    macro = np.mean([right_Q[np.array(subject_Q) == name].mean() for name in set(subject_Q)])
    found = these_skills_interval(right_Q, skill_Q, subject_Q=subject_Q)
    if min(subject_Q.count(name) for name in subject_Q) > 1:
        assert found and 0 <= found.low <= macro <= found.high <= 1


def test_all_right_is_not_certainty() -> None:
    found = these_skills_interval(np.ones(40, np.bool_), ["a", "b"] * 20)
    assert found
    assert found.low == pytest.approx(wilson(40, 40).low)
    assert 0.9 < found.low < 0.95 and found.high == pytest.approx(1)


def test_a_skill_of_one_question_is_joined_to_its_subjects_smallest() -> None:
    right_Q = np.array([1, 0, 1, 1, 0, 1, 1, 0], np.bool_)
    joined = these_skills_interval(right_Q, ["a"] * 5 + ["b"] * 3)
    assert these_skills_interval(right_Q, ["a"] * 5 + ["b", "b", "c"]) == joined
    alone = these_skills_interval(right_Q, ["d"] * 8)
    assert these_skills_interval(right_Q, list("abcdefgh")) == alone


def test_a_subject_of_one_question_says_nothing_of_its_spread() -> None:
    right_Q, subject_Q = np.array([1, 0, 1, 1], np.bool_), ["a", "a", "a", "b"]
    assert these_skills_interval(right_Q, list("wxyz"), subject_Q=subject_Q) is None
    assert these_skills_interval(right_Q, list("wxyz")) is not None


def test_below_ten_skills_nothing_is_said_about_others() -> None:
    right_Q = np.arange(40) % 3 > 0
    nine = [f"skill-{number % 9}" for number in range(40)]
    ten = [f"skill-{number % 10}" for number in range(40)]
    assert skills_like_these_interval(right_Q, nine) is None
    assert skills_like_these_interval(right_Q, ten) is not None
    assert paired_difference(right_Q, ~right_Q, nine).interval is None
    lonely = ["art" if name == "skill-0" else "math" for name in ten]
    assert skills_like_these_interval(right_Q, ten, lonely) is None


def test_equal_models_do_not_differ() -> None:
    right_Q, skill_Q = drawn(1)
    found = paired_difference(right_Q, right_Q, skill_Q)
    assert (found.difference, found.interval, found.p) == (0, Interval(0, 0), 1)


# ---------------------------------------------------------------------------- coverage


def some_skills(sizes: tuple[int, int], skills: int, a: float, b: float) -> Draw:
    """Skills of so many questions, their accuracies from a beta distribution."""

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return rng.beta(a, b, skills), rng.integers(sizes[0], sizes[1] + 1, skills)

    return draw


REALSET = some_skills((2, 24), 45, 1, 1)
QUICKSTART = some_skills((100, 100), 16, 8, 1)
FEW_QUESTIONS = some_skills((5, 5), 50, 2, 2)
TINY = some_skills((2, 4), 12, 2, 2)
WITH_SINGLES = some_skills((1, 4), 40, 2, 2)


def coverage_of_these_skills(draw: Draw, trials: int, macro: bool = False) -> float:
    """Each trial: skills, their true accuracies, and other questions of them."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(trials):
        true_S, size_S = draw(rng)
        skill_Q = np.repeat(np.arange(len(size_S)), size_S)
        right_Q = rng.random(len(skill_Q)) < true_S[skill_Q]
        subject_S = np.arange(len(size_S)) % 3 if macro else np.zeros(len(size_S), np.int64)
        subject_Q = [str(subject) for subject in subject_S[skill_Q]]
        truth = np.mean(
            [
                np.average(true_S[subject_S == j], weights=size_S[subject_S == j])
                for j in np.unique(subject_S)
            ]
        )
        names = [str(skill) for skill in skill_Q]
        found = these_skills_interval(right_Q, names, 500, trial, subject_Q if macro else None)
        assert found
        held += found.low <= truth <= found.high
    return held / trials


def coverage_of_skills_like_these(
    skills: int, questions: int, trials: int, unequal: bool = False
) -> float:
    """Each trial: other skills whose accuracies come from the same distribution.

    Where one skill has most of the questions, nothing is said; that is rare.
    """
    rng = np.random.default_rng(1)
    held, said = 0, 0
    for _ in range(trials):
        size_S = np.full(skills, questions)
        if unequal:
            size_S = np.ceil(size_S * np.exp(rng.normal(0, 0.8, skills))).astype(int)
        names = [str(skill) for skill in np.repeat(np.arange(skills), size_S)]
        true_Q = np.repeat(rng.beta(2, 2, skills), size_S)
        found = skills_like_these_interval(rng.random(len(true_Q)) < true_Q, names)
        if found:
            said += 1
            held += found.low <= 0.5 <= found.high
    assert said == trials if not unequal else said > 0.99 * trials
    return held / said


def coverage_of_a_difference(skills: int, questions: int, trials: int) -> float:
    rng = np.random.default_rng(2)
    held = 0
    names = [str(skill) for skill in np.repeat(np.arange(skills), questions)]
    for _ in range(trials):
        a_Q, b_Q = (np.repeat(rng.beta(a, 2, skills), questions) for a in (3, 2))
        right_a_Q, right_b_Q = rng.random(len(a_Q)) < a_Q, rng.random(len(b_Q)) < b_Q
        interval = paired_difference(right_a_Q, right_b_Q, names).interval
        assert interval
        held += interval.low <= 0.6 - 0.5 <= interval.high
    return held / trials


def coverage_of_wilson(total: int, trials: int) -> float:
    rng = np.random.default_rng(3)
    true_T = rng.random(trials)
    found = [wilson(rng.binomial(total, true), total) for true in true_T]
    held = [f.low <= true <= f.high for f, true in zip(found, true_T, strict=True)]
    return float(np.mean(held))


@pytest.mark.parametrize("draw", [REALSET, QUICKSTART, FEW_QUESTIONS, TINY])
def test_these_skills_hold_the_truth_about_19_times_in_20(draw: Draw) -> None:
    assert coverage_of_these_skills(draw, 300) == pytest.approx(0.95, abs=0.04)


def test_the_other_intervals_hold_the_truth_about_19_times_in_20() -> None:
    assert coverage_of_skills_like_these(10, 8, 300) == pytest.approx(0.95, abs=0.04)
    assert coverage_of_a_difference(20, 8, 300) == pytest.approx(0.95, abs=0.04)
    assert coverage_of_wilson(30, 1000) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("macro", [False, True])
@pytest.mark.parametrize("draw", [REALSET, QUICKSTART, FEW_QUESTIONS, TINY, WITH_SINGLES])
def test_these_skills_hold_the_truth_in_95_of_100(draw: Draw, macro: bool) -> None:
    assert coverage_of_these_skills(draw, 3000, macro) == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("skills", "questions"), [(10, 5), (16, 100), (45, 12), (448, 40)])
def test_skills_like_these_and_differences_hold_the_truth_in_95_of_100(
    skills: int, questions: int
) -> None:
    trials = 3000 if skills < 100 else 1000
    found = coverage_of_skills_like_these(skills, questions, trials)
    assert found == pytest.approx(0.95, abs=0.02)
    assert coverage_of_a_difference(skills, questions, trials) == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("skills", [10, 16, 45])
def test_skills_like_these_hold_the_truth_where_few_have_most_questions(skills: int) -> None:
    found = coverage_of_skills_like_these(skills, 12, 4000, unequal=True)
    assert found == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("total", [5, 30, 300])
def test_wilson_holds_the_truth_in_95_of_100(total: int) -> None:
    assert coverage_of_wilson(total, 20_000) == pytest.approx(0.95, abs=0.02)


def test_a_loss_is_at_most_the_upper_end_of_agresti_and_mins_interval() -> None:
    before = np.array([True] * 80 + [False] * 20)
    after = np.array([True] * 70 + [False] * 26 + [True] * 4)
    # 10 lost, 4 won of 100: (10.5 - 4.5) / 102 ± 1.96 √((15 - 6² / 102) / 102²)
    assert paired_loss_at_most(before, after) == pytest.approx(
        (6 + 1.959964 * np.sqrt(15 - 36 / 102)) / 102, rel=1e-6
    )
    same = np.ones(1000, bool)
    assert 0 < paired_loss_at_most(same, same) < 0.005  # nothing changed, and yet not nothing


def test_a_loss_exceeds_its_upper_end_as_rarely_as_it_should() -> None:
    rng = np.random.default_rng(0)
    lost, won = 0.03, 0.01
    exceeded = []
    for _ in range(4000):
        kind = rng.choice(4, 400, p=[lost, won, 0.66, 0.3])
        at_most = paired_loss_at_most((kind == 0) | (kind == 2), (kind == 1) | (kind == 2))
        exceeded.append(at_most < lost - won)
    assert 0.01 < np.mean(exceeded) < 0.04  # 2.5 % on this side


def test_a_mean_of_one_skill_has_students_interval() -> None:
    values_Q = np.random.default_rng(3).uniform(-1, 1, 17)
    found = these_skills_mean_interval(values_Q, ["a"] * 17)
    expected = scipy.stats.t.interval(0.95, 16, values_Q.mean(), scipy.stats.sem(values_Q))
    assert (found.low, found.high) == pytest.approx(expected)
    same = these_skills_mean_interval(np.full(9, 0.25), ["a"] * 9)
    assert (same.low, same.high) == (0.25, 0.25)


def test_a_mean_over_skills_is_covered_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    sizes, means = [5, 8, 20, 60], np.array([-0.3, 0.1, 0.2, 0.4])
    skill_Q = np.repeat(np.arange(4), sizes)
    truth = float(np.average(means, weights=sizes))
    covered = []
    for _ in range(2000):
        shift_Q = rng.choice([-0.4, 0.0, 0.4], len(skill_Q))
        found = these_skills_mean_interval(means[skill_Q] + shift_Q, skill_Q)
        covered.append(found.low <= truth <= found.high)
    assert 0.93 < np.mean(covered) < 0.97


def test_skills_of_which_one_holds_nearly_all_questions_tell_nothing_of_others() -> None:
    skill_Q = [*["large"] * 500, *map(str, range(20))]
    right_Q = np.random.default_rng(0).random(520) < 0.6
    assert skills_like_these_interval(right_Q, skill_Q) is None


# ---------------------------------------------------------------------------- scores and ranks


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_are_scipys(values: list[int]) -> None:
    assert ranks(np.array(values)).tolist() == scipy.stats.rankdata(values).tolist()


def sorted_scores(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Scores, a few of them equal, of right things half a deviation above those of wrong ones."""
    right_N = np.arange(count) % 3 == 0
    return np.round(rng.normal(size=count) + 0.5 * right_N, 1), right_N


@given(seed=seeds, count=st.integers(6, 60))
def test_the_area_under_the_curve_is_scikit_learns_and_delongs(seed: int, count: int) -> None:
    score_N, right_N = sorted_scores(np.random.default_rng(seed), count)
    found = auc(score_N, right_N)
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(roc_auc_score(right_N, score_N))
    # DeLong's variance from its definition, over every pair of a right and a wrong thing.
    gap = score_N[right_N][:, None] - score_N[~right_N]
    wins = (gap > 0) + 0.5 * (gap == 0)
    variance = sum(np.var(wins.mean(axis=1 - a), ddof=1) / wins.shape[a] for a in (0, 1))
    half = scipy.stats.norm.ppf(0.975) * np.sqrt(variance)
    assert found.interval.low == pytest.approx(max(found.value - half, 0))
    assert found.interval.high == pytest.approx(min(found.value + half, 1))


def test_the_area_needs_right_and_wrong_things() -> None:
    score_N = np.array([1.0, 2.0, 3.0])
    assert auc(score_N, np.ones(3, np.bool_)) is None
    assert auc(score_N, np.zeros(3, np.bool_)) is None
    one = auc(score_N, np.array([False, False, True]))
    assert one is not None and (one.value, one.interval) == (1.0, None)


def test_the_areas_interval_holds_the_truth() -> None:
    truth = scipy.stats.norm.cdf(0.5 / np.sqrt(2))
    held = []
    for seed in range(300):
        found = auc(*sorted_scores(np.random.default_rng(seed), 90))
        assert found is not None and found.interval is not None
        held.append(found.interval.low <= truth <= found.interval.high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_a_jackknife_of_a_mean_is_students_interval() -> None:
    """Blocks of one are the usual standard error."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 20)
    without = [float(np.delete(values, place).mean()) for place in range(20)]
    found = block_jackknife(float(values.mean()), without, -1.0)
    expected = scipy.stats.t.interval(0.95, 19, values.mean(), scipy.stats.sem(values))
    assert found is not None and (found.low, found.high) == pytest.approx(expected)
    assert block_jackknife(0.5, without[:9], -1.0) is None

"""How sure a difference or an accuracy is: intervals and tests, pure functions of arrays, no torch.

Q questions, S skills, R repeats. Accuracies are fractions from 0 to 1. scipy is imported where a
distribution is needed, because a verb's `--help` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Names = Sequence[str] | Ints
"""Of a group for each question; any numbers will do."""

LEVEL = 0.95  # of every interval
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

FEWEST_SKILLS = 10
"""Below this many skills nothing is said about skills like them."""

FEWEST_DEGREES = 1
"""Nor with fewer degrees of freedom, because one skill holds most of the questions: below it, an
interval is nearly everything."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def wilson(right: float, total: float) -> Interval:
    """Wilson's score interval of one proportion.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = _normal_quantile()
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return _interval(middle - half, middle + half, 0.0, 1.0)


def these_skills_interval(
    right_Q: NDArray[np.bool_],
    skill_Q: Names,
    repeats: int = 2000,
    seed: int = 0,
    subject_Q: Names | None = None,
) -> Interval | None:
    """Where the accuracy would lie on other questions of the same skills.

    Of the accuracy over all questions, or with `subject_Q` of the mean of the subjects' accuracies.
    A bootstrap of the questions within each skill: n − 1 of a skill's n answers are drawn, because
    n of n would give too little spread (Rao and Wu 1988, "Resampling inference with complex survey
    data"), and the percentiles are stretched from the normal's to Student's t with Satterthwaite's
    degrees, because the spread itself is estimated. With five questions in each of eight skills
    the plain percentiles hold the truth 88 % of the time, these 94 %.

    A skill of one question shows no spread: it is joined to the smallest other one of its subject.
    None if with `subject_Q` a whole subject has one question, of which nothing can be said.
    Where no skill has any spread, as when all answers are right, it is Wilson's interval.
    """
    strata_Q, of_subject_Q = _strata(skill_Q, subject_Q)
    questions_J = np.bincount(of_subject_Q)
    if subject_Q is not None and questions_J.min() < 2:
        return None
    weight_Q = 1 / (len(questions_J) * questions_J[of_subject_Q])
    size_S = np.bincount(strata_Q)
    weight_S = np.bincount(strata_Q, weight_Q)
    share_S = np.bincount(strata_Q, right_Q) / size_S
    estimate = float(share_S @ weight_S)
    drawn_S = np.maximum(size_S - 1, 1)
    variance_S = weight_S**2 * share_S * (1 - share_S) / drawn_S
    if not variance_S.any():
        total = 1 / float((weight_Q**2).sum())
        return wilson(estimate * total, total)
    # Resampling answers that are right or wrong is drawing from a binomial.
    rng = np.random.default_rng(seed)
    right_RS = rng.binomial(drawn_S, share_S, (repeats, len(size_S)))
    low, high = np.quantile((right_RS / drawn_S) @ weight_S, TAILS)
    stretch = _t_quantile(_degrees(variance_S, drawn_S)) / _normal_quantile()
    return _interval(
        estimate + (low - estimate) * stretch, estimate + (high - estimate) * stretch, 0.0, 1.0
    )


def these_skills_mean_interval(value_Q: NDArray[Any], skill_Q: Names) -> Interval:
    """The same for the mean of any values from −1 to 1: shares of several runs, differences.

    Student's t for a stratified mean, with Satterthwaite's degrees. Where no skill has any spread
    it has no width: then it says nothing.
    """
    strata_Q, _ = _strata(skill_Q, None)
    values_Q = np.asarray(value_Q, np.float64)
    size_S = np.bincount(strata_Q)
    mean_S = np.bincount(strata_Q, values_Q) / size_S
    freedom_S = np.maximum(size_S - 1, 1)
    spread_S = np.bincount(strata_Q, (values_Q - mean_S[strata_Q]) ** 2) / freedom_S
    variance_S = (size_S / len(values_Q)) ** 2 * spread_S / size_S
    mean, half = float(values_Q.mean()), 0.0
    if variance_S.any():
        half = _t_quantile(_degrees(variance_S, freedom_S)) * float(np.sqrt(variance_S.sum()))
    return _interval(mean - half, mean + half, -1.0, 1.0)


def bootstrap_mean_interval(
    value_Q: NDArray[Any], group_Q: Names, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Where the mean of the groups' means would lie on other questions like these.

    Values are from −1 to 1. A percentile bootstrap of the questions, drawn anew within each group
    (Efron 1979, "Bootstrap methods: another look at the jackknife"); questions that have one value
    are drawn together, so that it is fast where there are few values.
    """
    rng = np.random.default_rng(seed)
    names, of_group_Q = numbered(group_Q)
    mean_R = np.zeros(repeats)
    for group in range(len(names)):
        value_V, count_V = np.unique(value_Q[of_group_Q == group], return_counts=True)
        questions = int(count_V.sum())
        drawn_RV = rng.multinomial(questions, count_V / questions, repeats)
        mean_R += drawn_RV @ value_V.astype(np.float64) / questions / len(names)
    low, high = np.quantile(mean_R, TAILS)
    return _interval(float(low), float(high), -1.0, 1.0)


def skills_like_these_interval(
    right_Q: NDArray[Any], skill_Q: Names, subject_Q: Names | None = None
) -> Interval | None:
    """Where the accuracy would lie on other skills of the same sort.

    None below 10 skills, and where so few hold most of the questions that they are as good as one.

    `right_Q` says whether the answer is right, or in what share of several runs it is.

    The standard error leaves out a skill at a time, because answers of one skill are alike: where
    skills have equally many questions it is the usual cluster-robust one (MacKinnon, Nielsen and
    Webb 2023, "Fast and reliable jackknife and bootstrap methods for cluster-robust inference").
    The quantile is Student's t with S − 1 degrees, where S is the effective number of skills (Kish
    1965, "Survey sampling"): less than there are if a few hold most of the questions. With ten
    skills of very unequal size the usual one holds the truth 90 % of the time, this one 94 %.

    With `subject_Q` it is of the mean of the subjects' accuracies, skills are drawn within their
    subjects, the degrees are Satterthwaite's, and each subject needs two skills.
    """
    return _clustered(right_Q.astype(np.float64), skill_Q, subject_Q, 0.0)


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions.

    Attributes:
        difference: accuracy of the first minus that of the second.
        interval: of the difference on other skills of the same sort; None where
            `skills_like_these_interval` is.
        p: exact McNemar, two-sided: how likely so uneven a disagreement is by chance.
    """

    difference: float
    interval: Interval | None
    p: float


def paired_difference(right_a_Q: NDArray[Any], right_b_Q: NDArray[Any], skill_Q: Names) -> Paired:
    """Compare two models, or the shares of several runs that are right, question by question."""
    difference_Q = right_a_Q.astype(np.float64) - right_b_Q
    return Paired(
        difference=float(difference_Q.mean()),
        interval=_clustered(difference_Q, skill_Q, None, -1.0),
        p=mcnemar_exact(int((difference_Q > 0).sum()), int((difference_Q < 0).sum())),
    )


def paired_loss_at_most(right_before_Q: NDArray[Any], right_after_Q: NDArray[Any]) -> float:
    """The upper end of the 95 % interval of how much accuracy was lost on questions of this kind.

    Above 0 also where no answer changed: so few questions cannot tell more.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions".
    """
    lost_1 = np.array([(right_before_Q & ~right_after_Q).sum()])
    won_1 = np.array([(~right_before_Q & right_after_Q).sum()])
    return float(losses_at_most(lost_1, won_1, len(right_before_Q))[0])


def losses_at_most(lost_T: NDArray[Any], won_T: NDArray[Any], questions: int) -> Floats:
    """The same for several changes, of which is known how many answers each lost and won."""
    difference_T = (lost_T - won_T) / (questions + 2)
    variance_T = (lost_T + won_T + 1) / (questions + 2) - difference_T**2
    above_T: Floats = _normal_quantile() * np.sqrt(variance_T / (questions + 2))
    return difference_T + above_T


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """The two-sided binomial test that both are right alone equally often.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages".
    """
    from scipy.special import bdtr

    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


@dataclass(frozen=True)
class Auc:
    """How often a right thing has a higher score than a wrong one, equal scores counting half.

    Attributes:
        value: 0.5 says that scores tell nothing.
        interval: None with fewer than two right or two wrong things.
    """

    value: float
    interval: Interval | None


def auc(score_N: Floats, right_N: NDArray[np.bool_]) -> Auc | None:
    """The area under the ROC curve; None where all are right or all are wrong.

    Source of the interval: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two
    or more correlated receiver operating characteristic curves".
    """
    right, wrong = score_N[right_N], score_N[~right_N]
    if not len(right) or not len(wrong):
        return None
    rank_N = ranks(score_N)
    below = (rank_N[right_N] - ranks(right)) / len(wrong)  # share of the wrong below each right
    above = 1 - (rank_N[~right_N] - ranks(wrong)) / len(right)
    value = float(below.mean())
    if min(len(right), len(wrong)) < 2:
        return Auc(value, None)
    variance = below.var(ddof=1) / len(right) + above.var(ddof=1) / len(wrong)
    half = _normal_quantile() * float(np.sqrt(variance))
    return Auc(value, _interval(value - half, value + half, 0.0, 1.0))


def ranks(values: NDArray[Any]) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs; of these Spearman's coefficient is
    the correlation."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: Floats = (ends - (counts - 1) / 2)[place]
    return mean


def block_jackknife(value: float, without_B: Sequence[float], least: float) -> Interval | None:
    """The interval of a statistic from its values without each of B blocks of about equal size.

    None below 10 blocks. `least` is the statistic's lowest value; its highest is 1. Source: Tukey
    1958, "Bias and confidence in not quite large samples".
    """
    blocks = len(without_B)
    if blocks < FEWEST_SKILLS:
        return None
    spread = (blocks - 1) * float(np.var(without_B))
    half = _t_quantile(blocks - 1) * float(np.sqrt(spread))
    return _interval(value - half, value + half, least, 1.0)


def holm(p_S: Floats) -> Floats:
    """Adjusted p-values: all together have the error rate that each is compared with.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order_S = np.argsort(p_S)
    remaining_S = np.arange(len(p_S), 0, -1)
    adjusted_S = np.empty(len(p_S))
    adjusted_S[order_S] = np.minimum(np.maximum.accumulate(p_S[order_S] * remaining_S), 1)
    return adjusted_S


def numbered(names: Iterable[Hashable]) -> tuple[list[Any], Ints]:
    """The distinct names in their order, and the place of each name among them."""
    if isinstance(names, np.ndarray):
        values, place_Q = np.unique(names, return_inverse=True)
        return values.tolist(), place_Q
    names = list(names)
    distinct: list[Any] = sorted(set(names))
    place = {name: number for number, name in enumerate(distinct)}
    return distinct, np.fromiter((place[name] for name in names), np.int64, len(names))


def _cells(skill_Q: Names, subject_Q: Names | None) -> tuple[Ints, Ints]:
    """Number of the subject of each question, and of the skill in it; without subjects in one."""
    of_subject_Q = np.zeros(len(skill_Q), np.int64)
    if subject_Q is not None:
        _, of_subject_Q = numbered(subject_Q)
    skills, skill_number_Q = numbered(skill_Q)
    _, cell_Q = numbered(of_subject_Q * len(skills) + skill_number_Q)
    return of_subject_Q, cell_Q


def _strata(skill_Q: Names, subject_Q: Names | None) -> tuple[Ints, Ints]:
    """Number of the skill and of the subject of each question; single questions are joined."""
    of_subject_Q, skill_number_Q = _cells(skill_Q, subject_Q)
    size_S = np.bincount(skill_number_Q)
    for subject in np.unique(of_subject_Q):
        skills = np.unique(skill_number_Q[of_subject_Q == subject])
        single = skills[size_S[skills] == 1]
        others = skills[size_S[skills] > 1]
        if len(single):
            home = others[size_S[others].argmin()] if len(others) else single[0]
            skill_number_Q[np.isin(skill_number_Q, single)] = home
    _, strata_Q = numbered(skill_number_Q)
    return strata_Q, of_subject_Q


def _clustered(
    value_Q: Floats, skill_Q: Names, subject_Q: Names | None, least: float
) -> Interval | None:
    """The interval over skills of a mean of values from `least` to 1."""
    of_subject_Q, cluster_Q = _cells(skill_Q, subject_Q)
    subject_S = of_subject_Q[np.unique(cluster_Q, return_index=True)[1]]
    skills_J = np.bincount(subject_S)
    if len(subject_S) < FEWEST_SKILLS or skills_J.min() < 2:
        return None
    questions_S, sum_S = np.bincount(cluster_Q), np.bincount(cluster_Q, value_Q)
    questions_J, sum_J = np.bincount(subject_S, questions_S), np.bincount(subject_S, sum_S)
    mean_J = sum_J / questions_J
    # The mean of each skill's subject without that skill.
    without_S = (sum_J[subject_S] - sum_S) / (questions_J[subject_S] - questions_S)
    spread_J = np.bincount(subject_S, (without_S - mean_J[subject_S]) ** 2)
    variance_J = spread_J * (skills_J - 1) / skills_J / len(skills_J) ** 2
    effective_J = 1 / np.bincount(subject_S, (questions_S / questions_J[subject_S]) ** 2)
    half = 0.0
    if variance_J.any():
        degrees = _degrees(variance_J, effective_J - 1)
        if degrees < FEWEST_DEGREES:
            return None
        half = _t_quantile(degrees) * np.sqrt(variance_J.sum())
    return _interval(mean_J.mean() - half, mean_J.mean() + half, least, 1.0)


def _degrees(variances: Floats, degrees: Floats | Ints) -> float:
    """Satterthwaite's degrees of freedom of a sum of estimated variances.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    return float(variances.sum() ** 2 / (variances**2 / degrees).sum())


def _t_quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, TAILS[1]))


def _normal_quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri(TAILS[1]))


def _interval(low: float, high: float, least: float, most: float) -> Interval:
    return Interval(float(np.clip(low, least, most)), float(np.clip(high, least, most)))

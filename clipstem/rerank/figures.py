"""What ways to choose are worth: figures of known questions, none of which has judged itself.

Q questions, C candidates, S systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.rerank.choosing import (
    Judge,
    Slate,
    best_of,
    choose,
    feature_names,
    is_exact,
    majority_by_lot,
    methods_of,
    sizes,
)
from clipstem.statistics import (
    Auc,
    Interval,
    Paired,
    auc,
    block_jackknife,
    paired_difference,
    skills_like_these_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCKS = 20  # of questions, that a jackknife leaves out one after the other


@dataclass(frozen=True)
class Share:
    """A share of questions that are right, and where it would lie on others of their sort."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class OfSystem:
    """A system: its candidates, the share that is right, and what scores say of right and wrong
    ones among them."""

    candidates: int
    right: float
    auc: Auc | None


@dataclass(frozen=True)
class OfMethod:
    """A way to choose: the share of right choices, and question by question the difference to
    others."""

    right: Share
    over_majority: Paired
    over_best_system: Paired


@dataclass(frozen=True)
class OfScores:
    """What scores add.

    Attributes:
        pairs: of a right and a wrong candidate of one question.
        ordered: share of them in which the right one has the higher score, equal ones half.
        ordered_by_track_record: the same by the systems' track records.
        same_system_pairs, same_system_ordered: of these, pairs by one system.
        given_systems: how often the difference of the scores of two systems' candidates is higher
            where the first is right and the second wrong than where it is the other way round: 0.5
            if scores know no more than who wrote. Over all pairs of systems, by comparisons.
        mix: the mix, less the mix without scores.
        judges: how many there are, one for each part of the questions.
        taken: of how many the mix takes scores; of the others it is the mix without.
    """

    pairs: int
    ordered: float | None
    ordered_by_track_record: float | None
    same_system_pairs: int
    same_system_ordered: float | None
    given_systems: Share | None
    mix: Paired
    judges: int
    taken: int


@dataclass(frozen=True)
class BestOf:
    """How often choices among N candidates are right: the mean over subsets and questions.

    Attributes:
        sizes: each N.
        exact: whether it is over all subsets of every question, or over drawn ones.
        right: of each method, and of `any_right`, a share for each N.
    """

    sizes: tuple[int, ...]
    exact: tuple[bool, ...]
    right: dict[str, tuple[Share, ...]]


@dataclass(frozen=True)
class Figures:
    """What `rerank.json` holds.

    Attributes:
        settings: every setting.
        asked, known: questions, and those of which every candidate is known to be right or wrong;
            everything below is of these.
        candidates: of all questions.
        systems: by name.
        methods: by name; `choosing.choose` says what each does.
        any_right: the bound: questions with any right candidate.
        majority_ties: questions where several final answers have the most votes.
        majority_by_lot: the majority's share of right answers if lots were drawn there.
        scores: None without scores.
        weights: of the mix that has learnt from all known questions, by feature; in log-odds.
        notes: what was skipped, left out or odd.
        made_by: command, versions and machine, and of the scorer what it was.
    """

    settings: dict[str, Any]
    asked: int
    known: int
    candidates: int
    systems: dict[str, OfSystem]
    methods: dict[str, OfMethod]
    any_right: Share
    majority_ties: int
    majority_by_lot: float
    scores: OfScores | None
    best_of: BestOf
    weights: dict[str, float]
    notes: tuple[str, ...]
    made_by: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """Known questions, each with the judge that has not seen it; equal problems share a group.

    Scores are compared within a stratum only: of another they may be another scorer's.
    """

    slates: Sequence[Slate]
    judges: Sequence[Judge]
    group_Q: Ints
    stratum_Q: Ints
    systems: Sequence[str]

    @property
    def with_scores(self) -> bool:
        return self.slates[0].score_C is not None

    def right(self, method: str) -> Floats:
        """1 for each question where the method's choice is right."""
        return np.array(
            [
                float(one.known_C[choose(method, one, one.whole_1C, judge)[0]])
                for one, judge in zip(self.slates, self.judges, strict=True)
            ]
        )

    def share(self, value_Q: Floats) -> Share:
        return Share(float(value_Q.mean()), skills_like_these_interval(value_Q, self.group_Q))

    def difference(self, a_Q: Floats, b_Q: Floats) -> Paired:
        return paired_difference(a_Q, b_Q, self.group_Q)


def of_methods(known: Known) -> dict[str, OfMethod]:
    """Every method there is."""
    right = {method: known.right(method) for method in methods_of(known.with_scores)}
    return {
        method: OfMethod(
            right=known.share(right_Q),
            over_majority=known.difference(right_Q, right["majority"]),
            over_best_system=known.difference(right_Q, right["best_system"]),
        )
        for method, right_Q in right.items()
    }


def of_systems(known: Known) -> dict[str, OfSystem]:
    """Every system that has a candidate among the known questions."""
    right_C = np.concatenate([it.known_C for it in known.slates])
    system_C = np.concatenate([it.system_C for it in known.slates])
    question_C = np.repeat(np.arange(len(known.slates)), [len(it.system_C) for it in known.slates])
    scores = [it.score_C for it in known.slates if it.score_C is not None]
    score_C = np.concatenate(scores) if scores else None
    found = {}
    for number, name in enumerate(known.systems):
        here_C = system_C == number
        if here_C.any():
            found[name] = OfSystem(
                candidates=int(here_C.sum()),
                right=float(right_C[here_C].mean()),
                auc=None
                if score_C is None
                else _auc(known, score_C[here_C], right_C[here_C], question_C[here_C]),
            )
    return found


def _auc(known: Known, score_N: Floats, right_N: NDArray[np.bool_], question_N: Ints) -> Auc | None:
    found = _jackknifed(known, [(score_N, right_N, question_N)])
    return None if found is None else Auc(found.value, found.interval)


def any_right(known: Known) -> Share:
    return known.share(np.array([float(it.known_C.any()) for it in known.slates]))


def ties(known: Known) -> tuple[int, float]:
    """Questions where the majority is tied, and its share of right answers by lot."""
    votes = [it.gives_CF.sum(axis=0) for it in known.slates]
    tied = sum(int((votes_F == votes_F.max()).sum() > 1) for votes_F in votes)
    return tied, float(np.mean([majority_by_lot(it) for it in known.slates]))


def weights(judge: Judge, systems: Sequence[str]) -> dict[str, float]:
    """What the mix adds to a final answer's log-odds, by feature."""
    mix = judge.mixes.get("mix", judge.mixes["mix_without_scores"])
    names = feature_names(systems, mix.with_scores)
    return dict(zip(names, mix.weight_X.tolist(), strict=True))


# ---------------------------------------------------------------------------- what scores add


def of_scores(known: Known) -> OfScores | None:
    """None without scores."""
    if not known.with_scores:
        return None
    pairs, ordered, by_record, same, same_ordered = np.sum(
        [_pairs(one, judge) for one, judge in _each(known)], axis=0
    ).tolist()
    judges = {id(judge): judge for judge in known.judges}.values()
    return OfScores(
        pairs=int(pairs),
        ordered=ordered / pairs if pairs else None,
        ordered_by_track_record=by_record / pairs if pairs else None,
        same_system_pairs=int(same),
        same_system_ordered=same_ordered / same if same else None,
        given_systems=_given_systems(known),
        mix=known.difference(known.right("mix"), known.right("mix_without_scores")),
        judges=len(judges),
        taken=sum(it.mixes["mix"].with_scores for it in judges),
    )


def _each(known: Known) -> Iterator[tuple[Slate, Judge]]:
    return zip(known.slates, known.judges, strict=True)


def _pairs(slate: Slate, judge: Judge) -> tuple[float, ...]:
    """Of the pairs of a right and a wrong candidate: how many there are, how many of them scores
    and track records put in order, how many one system has made, and how many of these scores
    put in order."""
    right_C, score_C = slate.known_C, slate.score_C
    assert score_C is not None

    def ordered(value_C: Floats) -> Floats:
        """[right, wrong]; equal ones are half in order."""
        found: Floats = (np.sign(value_C[right_C][:, None] - value_C[~right_C]) + 1) / 2
        return found

    scored = ordered(score_C)
    is_same = slate.system_C[right_C][:, None] == slate.system_C[~right_C]
    by_record = ordered(judge.rate_S[slate.system_C])
    return is_same.size, scored.sum(), by_record.sum(), is_same.sum(), scored[is_same].sum()


def _given_systems(known: Known) -> Share | None:
    """The first candidates of each two systems, where one is right and the other wrong."""
    shape = len(known.slates), len(known.systems)
    score_QS, right_QS = np.full(shape, np.nan), np.full(shape, np.nan)
    for place, one in enumerate(known.slates):
        assert one.score_C is not None
        for candidate in reversed(range(len(one.system_C))):
            system = one.system_C[candidate]
            score_QS[place, system] = one.score_C[candidate]
            right_QS[place, system] = one.known_C[candidate]
    pairs = []
    for a, b in combinations(range(shape[1]), 2):
        sign_Q = right_QS[:, a] - right_QS[:, b]
        here_Q = np.abs(sign_Q) == 1  # not where one is missing, nor where both are right or wrong
        difference_Q = score_QS[:, a] - score_QS[:, b]
        pairs.append((difference_Q[here_Q], sign_Q[here_Q] > 0, np.flatnonzero(here_Q)))
    return _jackknifed(known, pairs)


Scored = tuple[Floats, NDArray[np.bool_], Ints]
"""Of some things to compare with each other: scores, which of them are right, their questions."""


def _jackknifed(known: Known, compared: Sequence[Scored]) -> Share | None:
    """The share of comparisons that scores put in order; None without any."""
    value = _concordance(compared, known.stratum_Q)
    if value is None:
        return None
    # Groups stay whole in the blocks of the jackknife.
    block_Q = np.unique(known.group_Q, return_inverse=True)[1] % BLOCKS
    without = []
    for block in np.unique(block_Q):
        left = [
            (score_N[kept_N], right_N[kept_N], question_N[kept_N])
            for score_N, right_N, question_N in compared
            for kept_N in [block_Q[question_N] != block]
        ]
        without.append(_concordance(left, known.stratum_Q))
    interval = block_jackknife(value, [it for it in without if it is not None], 0.0)
    return Share(value, interval)


def _concordance(compared: Sequence[Scored], stratum_Q: Ints) -> float | None:
    """How often what is right has the higher score than what is wrong, within a stratum."""
    total = comparisons = 0.0
    for score_N, right_N, question_N in compared:
        stratum_N = stratum_Q[question_N]
        for stratum in np.unique(stratum_N):
            here_N = stratum_N == stratum
            found = auc(score_N[here_N], right_N[here_N])
            if found is not None:
                first = int(right_N[here_N].sum())
                weight = first * (int(here_N.sum()) - first)
                total, comparisons = total + weight * found.value, comparisons + weight
    return total / comparisons if comparisons else None


# ---------------------------------------------------------------------------- best of N


def of_subsets(known: Known, most: int, seed: int, progress: Callable[[int], None]) -> BestOf:
    """Every method for every number of candidates."""
    methods = methods_of(known.with_scores)
    counts = [len(it.system_C) for it in known.slates]
    found: dict[str, list[Share]] = {name: [] for name in (*methods, "any_right")}
    every = sizes(max(counts))
    for size in every:
        values: list[Mapping[str, float]] = []
        for place, (one, judge) in enumerate(_each(known)):
            values.append(best_of(size, one, judge, methods, most, [seed, size, place]))
            progress(1)
        for name, shares in found.items():
            shares.append(known.share(np.array([value[name] for value in values])))
    return BestOf(
        sizes=tuple(every),
        exact=tuple(all(is_exact(n, min(size, n), most) for n in counts) for size in every),
        right={name: tuple(shares) for name, shares in found.items()},
    )

"""Choosing among a question's candidates: by votes, scores, track records, and a mix of all.

C candidates of a question, F distinct final answers of it, S systems, B subsets of the candidates,
X features of a final answer. Everything is computed for subsets, of which the whole is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from clipstem import splits
from clipstem.question import ClipstemError
from clipstem.rerank.candidates import Asked

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

WITHOUT_SCORES = ("best_system", "majority", "mix_without_scores")
WITH_SCORES = ("best_score", "weighted_vote", "mix")
METHODS = (*WITHOUT_SCORES, *WITH_SCORES)
"""Ways to choose; `choose` says what each does."""


@dataclass(frozen=True)
class Slate:
    """One question's candidates as numbers.

    Attributes:
        system_C: number of the system, among the names of all.
        final_C: number of the final answer, by first appearance; who has none has one of its own.
        right_C: whether it is right; None where of some candidate nobody knows.
        score_C: higher is better; None without scores.
    """

    system_C: Ints
    final_C: Ints
    right_C: Flags | None
    score_C: Floats | None

    @property
    def known_C(self) -> Flags:
        """`right_C` of a question of which it is known."""
        assert self.right_C is not None
        return self.right_C

    @property
    def finals(self) -> int:
        return int(self.final_C.max()) + 1

    @property
    def gives_CF(self) -> Floats:
        """1 where a candidate has that final answer."""
        return (self.final_C[:, None] == np.arange(self.finals)).astype(np.float64)

    @property
    def right_F(self) -> Flags:
        """Whether a final answer is right: whether most of who give it are."""
        return (self.known_C @ self.gives_CF) / self.gives_CF.sum(axis=0) >= 0.5

    @property
    def whole_1C(self) -> Flags:
        """All candidates, as the only subset."""
        return np.ones((1, len(self.final_C)), np.bool_)


def slate(asked: Asked, systems: Sequence[str], score_C: Floats | None) -> Slate:
    """A question as numbers; `systems` names all systems there are."""
    numbers: dict[object, int] = {}
    keys = [it.place if it.final is None else it.final for it in asked.candidates]
    right = [bool(it.correct) for it in asked.candidates]
    return Slate(
        system_C=np.array([systems.index(it.system) for it in asked.candidates]),
        final_C=np.array([numbers.setdefault(key, len(numbers)) for key in keys]),
        right_C=np.array(right) if asked.is_known else None,
        score_C=score_C,
    )


# ---------------------------------------------------------------------------- what judges learn


@dataclass(frozen=True)
class Mix:
    """The log-odds of a final answer against "none of these", linear in its `features`."""

    weight_X: Floats
    bias: float
    with_scores: bool

    def log_odds(self, slate: Slate, member_BC: Flags) -> Floats:
        """[B, F]; meaningless where no member of a subset gives the final answer."""
        found: Floats = features(slate, member_BC, self.systems, self.with_scores) @ self.weight_X
        return found + self.bias

    @property
    def systems(self) -> int:
        return len(self.weight_X) - len(feature_names((), self.with_scores))


def feature_names(systems: Sequence[str], with_scores: bool) -> list[str]:
    """What each column of `features` is, in words."""
    own = [f"share of {name}'s candidates" for name in systems]
    scored = ["highest score", "mean score"] if with_scores else []
    return [*own, "share of all candidates", "lead over the next answer", *scored]


def features(slate: Slate, member_BC: Flags, systems: int, with_scores: bool) -> Floats:
    """What is known of each final answer in each subset, [B, F, X].

    Of each system, the share of its candidates that give this answer (0 without any of its
    candidates); the share of all candidates; its lead over the answer that most others give; and
    the highest and the mean score of who give it.
    """
    gives_CF, subsets = slate.gives_CF, len(member_BC)
    member = member_BC.astype(np.float64)
    of_system_CS = (slate.system_C[:, None] == np.arange(systems)).astype(np.float64)
    cell_CFS = (gives_CF[:, :, None] * of_system_CS[:, None, :]).reshape(len(member.T), -1)
    votes_BFS = (member @ cell_CFS).reshape(subsets, slate.finals, systems)
    share_BFS = votes_BFS / np.maximum(member @ of_system_CS, 1)[:, None, :]
    votes_BF = member @ gives_CF
    share_BF = votes_BF / member.sum(axis=1, keepdims=True)
    columns = [share_BF, share_BF - _next_best(share_BF)]
    if with_scores:
        assert slate.score_C is not None
        score_CF = np.where(gives_CF > 0, slate.score_C[:, None], -np.inf)
        best_BF = np.stack([score_CF[row_C].max(axis=0) for row_C in member_BC])
        columns.append(np.where(votes_BF > 0, best_BF, 0.0))
        columns.append((member * slate.score_C) @ gives_CF / np.maximum(votes_BF, 1))
    return np.concatenate([share_BFS, np.stack(columns, axis=-1)], axis=-1)


def _next_best(share_BF: Floats) -> Floats:
    """The highest share among the other final answers; 0 without another."""
    if share_BF.shape[1] == 1:
        return np.zeros_like(share_BF)
    in_order = np.sort(share_BF, axis=1)
    highest_B1, second_B1 = in_order[:, -1:], in_order[:, -2:-1]
    return np.where(share_BF == highest_B1, second_B1, highest_B1)


@dataclass(frozen=True)
class Judge:
    """What is learnt from questions whose candidates are known to be right or wrong.

    Attributes:
        rate_S: share of each system's candidates that is right, drawn to a half: (right + 1) /
            (all + 2), so that a system nobody has seen has a half.
        mixes: by method; `mix` is the one without scores where these tell nothing.
        slope, intercept: of the log-odds that a candidate is right, in its score (Platt 1999,
            "Probabilistic outputs for support vector machines").
    """

    rate_S: Floats
    mixes: dict[str, Mix]
    slope: float = 0.0
    intercept: float = 0.0

    def probability(self, score_C: Floats) -> Floats:
        """How probably candidates of these scores are right."""
        found: Floats = 1 / (1 + np.exp(-np.clip(self.slope * score_C + self.intercept, -50, 50)))
        return found


def learn(slates: Sequence[Slate], systems: int, group_Q: Ints) -> Judge:
    """A judge from questions that are all known; equal problems share a group.

    Scores that tell nothing only add noise. So the mix takes them if a mix with them gives
    questions that it has not learnt from the higher likelihood: those left out in turn, a fifth of
    the groups each time. Nothing but these questions decides that.

    Raises:
        ClipstemError: if no candidate is right, or none wrong.
    """
    right_C = np.concatenate([it.known_C for it in slates]) if slates else np.zeros(0, np.bool_)
    if right_C.all() or not right_C.any():
        only = "right" if len(right_C) and right_C.all() else "wrong"
        raise ClipstemError(
            f"of the {len(right_C):,} candidates to learn from none is "
            f"{'wrong' if only == 'right' else 'right'}; expected both: give more questions, or "
            "fewer folds"
        )
    system_C = np.concatenate([it.system_C for it in slates])
    rate_S = (np.bincount(system_C, right_C, systems) + 1) / (
        np.bincount(system_C, minlength=systems) + 2
    )
    mixes = {"mix_without_scores": _mix(slates, systems, False)}
    if slates[0].score_C is None:
        return Judge(rate_S, mixes)
    score_C = np.concatenate([it.score_C for it in slates if it.score_C is not None])
    # One candidate against "none of these": the same as a logistic regression.
    (slope,), intercept = conditional_logit(score_C[:, None], np.arange(len(score_C)), right_C)
    likelihoods = [_held_out(slates, systems, it, group_Q) for it in (False, True)]
    if likelihoods[1] > likelihoods[0]:
        mixes["mix"] = _mix(slates, systems, True)
    else:
        mixes["mix"] = mixes["mix_without_scores"]
    return Judge(rate_S, mixes, float(slope), intercept)


def _mix(slates: Sequence[Slate], systems: int, with_scores: bool) -> Mix:
    return Mix(*conditional_logit(*_options(slates, systems, with_scores)), with_scores)


def _options(
    slates: Sequence[Slate], systems: int, with_scores: bool
) -> tuple[Floats, Ints, Flags]:
    """All final answers: x_NX, question_N and right_N of `conditional_logit`."""
    rows = [features(it, it.whole_1C, systems, with_scores)[0] for it in slates]
    question_N = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return np.concatenate(rows), question_N, np.concatenate([it.right_F for it in slates])


def _held_out(slates: Sequence[Slate], systems: int, with_scores: bool, group_Q: Ints) -> float:
    """The log-likelihood of every question under a mix that has not learnt from its part."""
    parts = min(PARTS, len(np.unique(group_Q)))
    if parts < 2:  # nothing that could be left out: no mix is better than another
        return 0.0
    x_NX, question_N, right_N = _options(slates, systems, with_scores)
    part_N = splits.divide(group_Q, [1 / parts] * parts, 0)[question_N]
    total = 0.0
    for part in range(parts):
        is_out_N = part_N == part
        learnt, out = (
            (x_NX[here_N], np.unique(question_N[here_N], return_inverse=True)[1], right_N[here_N])
            for here_N in (~is_out_N, is_out_N)
        )
        if not len(out[0]) or not len(learnt[0]):
            continue
        weight_X, bias = conditional_logit(*learnt)
        total += _likelihood(out[0] @ weight_X + bias, *out[1:])[0]
    return total


PARTS = 5  # of the questions to learn from, that are left out in turn
RIDGE = 1.0  # of the weights of features brought to equal spread


def conditional_logit(x_NX: Floats, question_N: Ints, right_N: Flags) -> tuple[Floats, float]:
    """weight_X and a bias, so that the odds of an option against "none of these" are
    exp(x · weight + bias), and the options of a question with "none of these" have sum 1.

    What is most likely under a ridge of `RIDGE`. Options N of questions that are numbered from 0,
    in order; of several right options it is one of them, of none it is "none of these". Source:
    McFadden 1974, "Conditional logit analysis of qualitative choice behavior".
    """
    from scipy.optimize import minimize

    mean_X, spread_X = x_NX.mean(axis=0), x_NX.std(axis=0)
    spread_X = np.where(spread_X < 1e-12, 1.0, spread_X)
    equal_NX = (x_NX - mean_X) / spread_X

    def loss(theta: Floats) -> tuple[float, Floats]:
        likelihood, slope_N = _likelihood(equal_NX @ theta[:-1] + theta[-1], question_N, right_N)
        slope = np.append(RIDGE * theta[:-1] - equal_NX.T @ slope_N, -slope_N.sum())
        return float(RIDGE / 2 * theta[:-1] @ theta[:-1] - likelihood), slope

    start = np.zeros(x_NX.shape[1] + 1)
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    weight_X: Floats = theta[:-1] / spread_X
    return weight_X, float(theta[-1] - weight_X @ mean_X)


def _likelihood(logit_N: Floats, question_N: Ints, right_N: Flags) -> tuple[float, Floats]:
    """The log-likelihood of what is right, and its slope in each option's log-odds."""
    starts_Q = np.flatnonzero(np.diff(question_N, prepend=-1))
    has_right_Q = np.logical_or.reduceat(right_N, starts_Q)
    highest_Q = np.maximum(np.maximum.reduceat(logit_N, starts_Q), 0)  # and "none" has 0
    weight_N = np.exp(logit_N - highest_Q[question_N])
    none_Q = np.exp(-highest_Q)
    all_Q = np.add.reduceat(weight_N, starts_Q) + none_Q
    right_Q = np.where(has_right_Q, np.add.reduceat(weight_N * right_N, starts_Q), none_Q)
    tiny = np.finfo(np.float64).tiny
    likelihood = np.log(np.maximum(right_Q, tiny)).sum() - np.log(all_Q).sum()
    wanted_N = weight_N * right_N / np.maximum(right_Q, tiny)[question_N]
    return float(likelihood), wanted_N - weight_N / all_Q[question_N]


# ---------------------------------------------------------------------------- choosing


def choose(method: str, slate: Slate, member_BC: Flags, judge: Judge) -> Ints:
    """The place of the candidate that a method takes of each subset, [B].

    best_system: the first candidate of the system with the best track record. majority: the first
    candidate with the final answer that most give. best_score: the candidate with the highest
    score. weighted_vote: each votes with its probability of being right by its score. mix: the
    final answer with the highest log-odds, from track records, agreement and, where they tell
    something (see `learn`), scores; mix_without_scores: without these. Where scores are taken, it
    is the candidate of the chosen answer that has the highest. Of equals it is always the one that
    stands first.
    """
    if method == "best_system":
        return _first_best(judge.rate_S[slate.system_C], member_BC)
    if method == "best_score":
        assert slate.score_C is not None
        return _first_best(slate.score_C, member_BC)
    votes_BF = member_BC @ slate.gives_CF
    weight_BF = votes_BF
    if method == "weighted_vote":
        assert slate.score_C is not None
        weight_BF = (member_BC * judge.probability(slate.score_C)) @ slate.gives_CF
    elif method != "majority":
        weight_BF = judge.mixes[method].log_odds(slate, member_BC)
    final_B = np.where(votes_BF > 0, weight_BF, -np.inf).argmax(axis=1)
    gave_BC = member_BC & (slate.final_C == final_B[:, None])
    takes_scores = method in WITH_SCORES and (method != "mix" or judge.mixes[method].with_scores)
    scored = slate.score_C if takes_scores else None
    return _first_best(np.zeros(len(slate.final_C)) if scored is None else scored, gave_BC)


def _first_best(value_C: Floats, member_BC: Flags) -> Ints:
    return np.where(member_BC, value_C, -np.inf).argmax(axis=1)


def majority_by_lot(slate: Slate) -> float:
    """How probably the majority's answer is right if ties are decided by drawing lots."""
    votes_F = slate.gives_CF.sum(axis=0)
    tied_F = votes_F == votes_F.max()
    first_F = slate.gives_CF.argmax(axis=0)
    return float(slate.known_C[first_F[tied_F]].mean())


def final_odds(slate: Slate, judge: Judge) -> Floats:
    """The odds of each final answer by the mix, [F], where "none of these" has 1: divided by their
    sum and 1 they are probabilities."""
    mix = judge.mixes["mix" if slate.score_C is not None else "mix_without_scores"]
    return np.exp(np.clip(mix.log_odds(slate, slate.whole_1C)[0], -50, 50))


# ---------------------------------------------------------------------------- best of N


def sizes(most: int) -> list[int]:
    """The N that a curve up to `most` shows: all up to 16, then about a fifth more each time."""
    found = list(range(1, min(most, 16) + 1))
    while found[-1] < most:
        found.append(min(most, -(-found[-1] * 6 // 5)))
    return found


def is_exact(candidates: int, size: int, most: int) -> bool:
    """Whether `subsets` gives all there are."""
    return comb(candidates, size) <= most


def subsets(candidates: int, size: int, most: int, rng: np.random.Generator) -> Flags:
    """Subsets of so many candidates, [B, C]: all if they are at most `most`, else drawn ones."""
    size = min(size, candidates)
    if is_exact(candidates, size, most):
        chosen = np.array(list(combinations(range(candidates), size)))
    else:
        chosen = rng.random((most, candidates)).argsort(axis=1)[:, :size]
    member_BC = np.zeros((len(chosen), candidates), np.bool_)
    np.put_along_axis(member_BC, chosen, True, axis=1)
    return member_BC


def best_of(
    size: int, slate: Slate, judge: Judge, methods: Sequence[str], most: int, seed: Sequence[int]
) -> dict[str, float]:
    """How probably each method is right with `size` candidates of the question drawn at random.

    With fewer candidates it has all of them. `any_right` is the bound: whether any is right.
    """
    right_C = slate.known_C
    member_BC = subsets(len(right_C), size, most, np.random.default_rng(seed))
    found = {
        method: float(right_C[choose(method, slate, member_BC, judge)].mean()) for method in methods
    }
    return {**found, "any_right": float((member_BC & right_C).any(axis=1).mean())}


def methods_of(with_scores: bool) -> tuple[str, ...]:
    """The methods that there are."""
    return METHODS if with_scores else WITHOUT_SCORES


def as_words(method: str) -> str:
    """A method's name as people read it."""
    return method.replace("_", " ")

"""A gate: how hard is this question for the fast model, told from its own answers alone?

It is fitted with scikit-learn (`pip install "clipstem[route]"`), kept as plain numbers in a JSON
file, and applied by NumPy. Q questions, F features, T thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem import facts
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.statistics import losses_at_most

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Words = Mapping[str, Sequence[str]]

FORMAT_VERSION = 1
MAX_BYTES = 64 * 2**20  # of a gate's file

NUMBERS = (
    *("log_odds", "confidence", "margin", "entropy"),
    *("num_options", "question_words", "truncated_tokens"),
)
AGREEMENT = ("samples_that_agree", "samples_confidence")
WORDS = ("kind", "subject", "grade", "skill")
"""The features, all known before the answer is. A word counts as the share of hard questions among
those of the fitting questions that have it."""

LEAST_ODDS = 1e-9  # a probability of 0 or 1 is taken for one that far off it

MOST_POINTS = 200  # of a curve
NEVER = 2.0  # a threshold that no score reaches


@dataclass(frozen=True)
class Curve:
    """What it comes to if every question with a score of at least the threshold is deferred.

    Attributes:
        threshold_T: from `NEVER` downwards.
        calls_T: share of the questions that are deferred.
        accuracy_T: of the answers then.
        loss_T: what accuracy that may lose against deferring all: upper end of a 95 % interval.
        tool_usage_T: tool-usage accuracy.
    """

    threshold_T: tuple[float, ...]
    calls_T: tuple[float, ...]
    accuracy_T: tuple[float, ...]
    loss_T: tuple[float, ...]
    tool_usage_T: tuple[float, ...]

    def within(self, calls: float) -> int:
        """The point of best accuracy with at most this share of calls; of equals the cheapest."""
        allowed = [t for t, share in enumerate(self.calls_T) if share <= calls + 1e-12]
        return max(allowed, key=lambda t: (self.accuracy_T[t], -t))

    def losing_at_most(self, loss: float) -> int:
        """The cheapest point that surely loses no more accuracy than this, else to defer all."""
        for t, most in enumerate(self.loss_T):
            if most <= loss:
                return t
        return len(self.loss_T) - 1

    def best_usage(self) -> int:
        """The point of best tool-usage accuracy; of equals the cheapest."""
        return max(range(len(self.calls_T)), key=lambda t: (self.tool_usage_T[t], -t))


def curve(score_Q: Floats, fast_right_Q: Flags, tool_right_Q: Flags, hard_Q: Flags) -> Curve:
    """The curve over all distinct scores, or `MOST_POINTS` of them evenly spread over the calls."""
    order_Q = np.argsort(-score_Q, kind="stable")
    sorted_Q = score_Q[order_Q]
    last_T = np.flatnonzero(np.append(sorted_Q[1:] < sorted_Q[:-1], True))
    if len(last_T) > MOST_POINTS:
        wanted = np.linspace(0, len(score_Q) - 1, MOST_POINTS)
        last_T = last_T[np.unique(np.searchsorted(last_T, wanted))]

    def told(value_Q: NDArray[Any]) -> Floats:
        """The sum over the deferred questions at each point."""
        return np.append(0.0, np.cumsum(value_Q[order_Q].astype(np.float64))[last_T])

    gain_Q = tool_right_Q.astype(np.float64) - fast_right_Q
    questions, hard = len(score_Q), int(hard_Q.sum())
    lost_T, won_T = (
        which_Q.sum() - told(which_Q)  # among those that are not deferred
        for which_Q in (tool_right_Q & ~fast_right_Q, fast_right_Q & ~tool_right_Q)
    )
    easy_kept_T = 1 - told(~hard_Q) / max(questions - hard, 1)
    hard_deferred_T = told(hard_Q) / max(hard, 1)
    return Curve(
        threshold_T=(NEVER, *sorted_Q[last_T].tolist()),
        calls_T=tuple((told(np.ones(questions)) / questions).tolist()),
        accuracy_T=tuple((fast_right_Q.mean() + told(gain_Q) / questions).tolist()),
        loss_T=tuple(losses_at_most(lost_T, won_T, questions).tolist()),
        tool_usage_T=tuple(((easy_kept_T + hard_deferred_T) / 2).tolist()),
    )


@dataclass(frozen=True)
class Tree:
    """A node's children come behind it; a leaf has none (-1), and a value."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def values(self, x_QF: NDArray[np.float32]) -> Floats:
        """The value of the leaf that each question comes to."""
        feature, threshold = np.asarray(self.feature), np.asarray(self.threshold)
        left, right = np.asarray(self.left), np.asarray(self.right)
        node_Q = np.zeros(len(x_QF), np.int64)
        row_Q = np.arange(len(x_QF))
        while (inside_Q := left[node_Q] >= 0).any():  # ends, because children come behind
            feature_Q = np.where(inside_Q, feature[node_Q], 0)  # a leaf's may be any number
            goes_left_Q = x_QF[row_Q, feature_Q] <= threshold[node_Q]
            node_Q = np.where(inside_Q, np.where(goes_left_Q, left[node_Q], right[node_Q]), node_Q)
        return np.asarray(self.value)[node_Q]

    def check(self, features: int) -> None:
        """Refuse what would not end, or look where nothing is.

        Raises:
            ClipstemError: with the reason.
        """
        nodes = len(self.feature)
        lists = (self.threshold, self.left, self.right, self.value)
        if not nodes or any(len(values) != nodes for values in lists):
            raise ClipstemError("a tree's lists are empty or of different lengths")
        for node, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            is_leaf = left == right == -1
            if not (is_leaf or (node < left < nodes and node < right < nodes)):
                raise ClipstemError(f"a tree's node {node} has the children {left} and {right}")
            if not is_leaf and not 0 <= self.feature[node] < features:
                raise ClipstemError(f"a tree's node {node} looks at feature {self.feature[node]}")


@dataclass(frozen=True)
class Scorer:
    """What is learnt: bias + Σ weights · features + Σ trees, larger for harder questions.

    Attributes:
        features: their names, in the order of the weights.
        encodings: of each word of `WORDS`, the share of hard questions.
        unseen: what stands for a word that no fitting question has: their share of hard ones.
        weights, bias: of a logistic regression; weights of 0 beside trees, and of what a gate by
            the confidence alone does not look at.
        trees: none beside a logistic regression.
    """

    features: tuple[str, ...]
    encodings: dict[str, dict[str, float]]
    unseen: float
    weights: tuple[float, ...]
    bias: float
    trees: tuple[Tree, ...]

    def score_Q(self, words: Words, numbers_QF: Floats) -> Floats:
        x_QF = self.columns(words, numbers_QF)
        score_Q = self.bias + x_QF @ np.asarray(self.weights)
        narrow_QF = x_QF.astype(np.float32)  # what the trees were grown on
        for tree in self.trees:
            score_Q = score_Q + tree.values(narrow_QF)
        return score_Q

    def columns(self, words: Words, numbers_QF: Floats) -> Floats:
        """All features: numbers, then words as shares."""
        shares = [
            [self.encodings[name].get(word, self.unseen) for word in words[name]] for name in WORDS
        ]
        return np.column_stack([numbers_QF, *(np.array(column) for column in shares)])

    def check(self) -> None:
        """Refuse values that nothing could be scored with.

        Raises:
            ClipstemError: with the reason.
        """
        if self.features not in (feature_names(False), feature_names(True)):
            raise ClipstemError(
                f"features are {', '.join(self.features)[:200]}; expected "
                f"{', '.join(feature_names(True))}, or those without {', '.join(AGREEMENT)}"
            )
        if set(self.encodings) != set(WORDS):
            raise ClipstemError(f"encodings are not of {', '.join(WORDS)}")
        if len(self.weights) != len(self.features):
            raise ClipstemError(
                f"has {len(self.weights)} weights; expected {len(self.features)}, one a feature"
            )
        for tree in self.trees:
            tree.check(len(self.features))


@dataclass(frozen=True)
class Gate:
    """A fitted gate: `gate.json`.

    1 / (1 + exp(−slope · score − offset)) is the probability that a question is hard.

    Attributes:
        method: `confidence`, `logistic` or `boosting`.
        fast_weights_sha256: of the fast model that it was fitted on, if known.
        samples: what each sample was, if it sees how they agree.
        easy_at: what share of right answers made a question easy.
        scorer: gives the score.
        curve: on the fitting questions, each scored by a gate that was fitted without it.
        confidence_curve: that of the fast model's confidence alone.
        log_loss: of each method, nats, on questions that it was not fitted on.
        questions: how many it was fitted on.
        environment: versions and command.
    """

    format_version: int
    clipstem_version: str
    method: str
    fast_weights_sha256: str | None
    samples: tuple[str, ...]
    easy_at: float
    scorer: Scorer
    slope: float
    offset: float
    curve: Curve
    confidence_curve: Curve
    log_loss: dict[str, float]
    questions: int
    environment: dict[str, Any]

    def hard_prob_Q(self, fast: Predictions, samples: Sequence[Predictions]) -> Floats:
        """The probability that each question is hard for the fast model."""
        words, numbers_QF = features(fast, samples if self.samples else ())
        return logistic(self.slope * self.scorer.score_Q(words, numbers_QF) + self.offset)

    def unseen_words(self, fast: Predictions) -> dict[str, int]:
        """How many questions have a word that no fitting question had, by the word's name."""
        counts = {
            name: sum(word not in self.scorer.encodings[name] for word in values)
            for name, values in words_of(fast).items()
        }
        return {name: count for name, count in counts.items() if count}

    def check(self) -> None:
        """Refuse values that nothing could be scored with.

        Raises:
            ClipstemError: with the reason.
        """
        self.scorer.check()
        if self.scorer.features != feature_names(bool(self.samples)):
            raise ClipstemError(
                f"has {len(self.samples)} samples, which does not go with the features"
            )
        for name in ("curve", "confidence_curve"):
            lengths = {len(values) for values in vars(getattr(self, name)).values()}
            if len(lengths) != 1 or lengths == {0}:
                raise ClipstemError(f"{name} has lists of different lengths, or empty ones")

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Gate:
    """A gate that was written before.

    Raises:
        ClipstemError: if it is missing, too large, or not as expected.
    """
    advice = "expected a gate.json that python -m clipstem.route has written"
    return facts.read(Gate, path, MAX_BYTES, advice, Gate.check, FORMAT_VERSION)


# ---------------------------------------------------------------------------- features


def feature_names(agreement: bool) -> tuple[str, ...]:
    return (*NUMBERS, *(AGREEMENT if agreement else ()), *WORDS)


def features(fast: Predictions, samples: Sequence[Predictions]) -> tuple[Words, Floats]:
    """Words, and numbers [Q, F], of the fast model's answers; of the samples, how they agree.

    Nothing here looks at the right answer, nor at the tool.
    """
    probs_QK = fast.probs_QK
    row_Q = np.arange(len(fast))
    confidence_Q = confidence(fast)
    second_Q = np.zeros(len(fast))
    if probs_QK.shape[1] > 1:
        second_Q = np.partition(probs_QK, -2, axis=1)[:, -2]
    clipped_Q = np.clip(confidence_Q, LEAST_ODDS, 1 - LEAST_ODDS)
    positive_QK = np.where(probs_QK > 0, probs_QK, 1.0)  # 0 · log 0 is 0
    values = {
        "log_odds": np.log(clipped_Q / (1 - clipped_Q)),
        "confidence": confidence_Q,
        "margin": confidence_Q - second_Q,
        "entropy": -(probs_QK * np.log(positive_QK)).sum(axis=1),  # nats
        **{
            name: np.asarray(fast.columns[name], np.float64)
            for name in ("num_options", "question_words", "truncated_tokens")
        },
    }
    if samples:
        agree_SQ = [it.choice_Q == fast.choice_Q for it in samples]
        chosen_SQ = [it.probs_QK[row_Q, fast.choice_Q] for it in samples]
        values["samples_that_agree"] = np.mean(agree_SQ, axis=0)
        values["samples_confidence"] = np.mean(chosen_SQ, axis=0)
    names = (*NUMBERS, *(AGREEMENT if samples else ()))
    return words_of(fast), np.stack([values[name] for name in names], axis=1)


def confidence(fast: Predictions) -> Floats:
    """The probability of each question's choice."""
    return fast.probs_QK.max(axis=1)


def words_of(fast: Predictions) -> Words:
    """Each question's words; two subjects may use one skill's name."""
    columns = fast.columns
    skills = zip(columns["subject"], columns["skill"], strict=True)
    return {
        **{name: list(columns[name]) for name in WORDS[:-1]},
        "skill": [f"{subject}/{skill}" for subject, skill in skills],
    }


def logistic(x_Q: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x_Q, -500, 500)))

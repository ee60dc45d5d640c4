"""How a gate is fitted: with scikit-learn, chosen and calibrated on questions that were left out.

Q questions, P of them in a fit, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import clipstem
from clipstem.config import Method
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.route.gate import (
    FORMAT_VERSION,
    NUMBERS,
    WORDS,
    Flags,
    Floats,
    Gate,
    Scorer,
    Tree,
    Words,
    confidence,
    curve,
    feature_names,
    features,
    logistic,
)

TREES: dict[str, Any] = {
    **{"n_estimators": 100, "learning_rate": 0.05, "max_depth": 2},
    **{"min_samples_leaf": 20},
}
TREE_SHARE, TREE_MOST = 0.5, 10_000  # of the questions, for each tree

WEAK = 1e6  # inverse strength of a regularisation that does nothing


@dataclass(frozen=True)
class Fitting:
    """Questions to fit a gate on.

    Attributes:
        fast, samples: the fast model's answers.
        hard_Q: whether a question is hard for it.
        tool_right_Q: whether the tool answers it rightly; only thresholds depend on it.
        sample_names: what each sample is.
        easy_at: what made a question easy.
    """

    fast: Predictions
    samples: Sequence[Predictions]
    hard_Q: Flags
    tool_right_Q: Flags
    sample_names: tuple[str, ...]
    easy_at: float


def fits(folds: int, method: Method) -> int:
    """How many fits `fit` makes, for a progress bar."""
    return folds * len(_methods(method)) + 1


def _methods(method: Method) -> tuple[Method, ...]:
    """Simple ones first: of equals, the first is taken."""
    every = (Method.confidence, Method.logistic, Method.boosting)
    return every if method is Method.best else (method,)


def fit(
    given: Fitting,
    method: Method,
    folds: int,
    seed: int,
    environment: dict[str, Any],
    progress: Callable[[int], None],
) -> Gate:
    """Fit a gate, choose the method, calibrate, and draw the curve that thresholds are chosen on.

    Every choice is made on scores of questions that were left out of the fit behind them (one of
    `folds` parts at a time). The calibration is Platt's (1999, "Probabilistic outputs for support
    vector machines"), on those scores. What the trees and the logistic regression learn is whether
    a question is hard, as in Tool Usage Adaptation (Lyu et al. 2024, arXiv 2411.00412).

    Raises:
        ClipstemError: without scikit-learn, or with too few easy or hard questions.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
        from sklearn.model_selection import StratifiedKFold
    except ImportError as error:
        raise ClipstemError(
            'fitting a gate needs scikit-learn; pip install "clipstem[route]"'
        ) from error
    hard_Q = given.hard_Q
    _refuse_one_class(hard_Q, folds)
    words, numbers_QF = features(given.fast, given.samples)
    learn = partial(_learn, words, numbers_QF, hard_Q, folds=folds, seed=seed)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(numbers_QF, hard_Q))
    scored: dict[Method, Floats] = {}
    platt: dict[Method, Any] = {}
    losses: dict[str, float] = {}
    for one in _methods(method):
        scored[one] = np.zeros(len(hard_Q))
        for fit_on_P, left_out_P in parts:
            scorer = learn(one, fit_on_P)
            there = {name: _taken(column, left_out_P) for name, column in words.items()}
            scored[one][left_out_P] = scorer.score_Q(there, numbers_QF[left_out_P])
            progress(1)
        platt[one] = LogisticRegression(C=WEAK).fit(scored[one][:, None], hard_Q)
        told_Q = platt[one].predict_proba(scored[one][:, None])[:, 1]
        losses[one.value] = float(log_loss(hard_Q, told_Q))
    best = min(scored, key=lambda it: losses[it.value])
    scorer = learn(best, np.arange(len(hard_Q)))
    progress(1)
    slope, offset = float(platt[best].coef_[0, 0]), float(platt[best].intercept_[0])
    if slope <= 0:  # nothing was learnt: then all questions are equal
        slope, offset = 0.0, math.log(hard_Q.mean() / (1 - hard_Q.mean()))
    outcomes = (given.fast.choice_Q == given.fast.answer_Q, given.tool_right_Q, hard_Q)
    return Gate(
        format_version=FORMAT_VERSION,
        clipstem_version=clipstem.__version__,
        method=best.value,
        fast_weights_sha256=given.fast.provenance.get("weights_sha256"),
        samples=given.sample_names if given.samples else (),
        easy_at=given.easy_at,
        scorer=scorer,
        slope=slope,
        offset=offset,
        curve=curve(logistic(slope * scored[best] + offset), *outcomes),
        confidence_curve=curve(1 - confidence(given.fast), *outcomes),
        log_loss=losses,
        questions=len(hard_Q),
        environment=environment,
    )


def _taken(values: Sequence[str], places: NDArray[np.int64]) -> list[str]:
    return [values[place] for place in places.tolist()]


def _refuse_one_class(hard_Q: Flags, folds: int) -> None:
    hard = int(hard_Q.sum())
    easy = len(hard_Q) - hard
    if min(hard, easy) < 2 * folds:
        raise ClipstemError(
            f"of {len(hard_Q):,} fitting questions {easy:,} are easy and {hard:,} hard for the "
            f"fast model; expected at least {2 * folds} of each for folds={folds}: fit on more "
            "questions, or change easy_at"
        )


def _learn(
    words: Words,
    numbers_QF: Floats,
    hard_Q: Flags,
    method: Method,
    places: NDArray[np.int64],
    folds: int,
    seed: int,
) -> Scorer:
    """A scorer fitted on the questions at these places."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler, TargetEncoder

    hard_P, numbers_PF = hard_Q[places], numbers_QF[places]
    words_PW = np.array([_taken(words[name], places) for name in WORDS], object).T
    # A question's own label stays out of its words' shares, or they would say too much.
    folds_within = StratifiedKFold(folds, shuffle=True, random_state=seed)
    encoder = TargetEncoder(target_type="binary", cv=folds_within)
    x_PF = np.column_stack([numbers_PF, encoder.fit_transform(words_PW, hard_P)])
    encodings = {
        name: dict(zip(found.tolist(), shares.tolist(), strict=True))
        for name, found, shares in zip(WORDS, encoder.categories_, encoder.encodings_, strict=True)
    }
    names = feature_names(numbers_QF.shape[1] > len(NUMBERS))
    blank = Scorer(names, encodings, float(encoder.target_mean_), (0.0,) * len(names), 0.0, ())
    if method is Method.boosting:
        share = min(TREE_SHARE, TREE_MOST / len(hard_P))
        boosting = GradientBoostingClassifier(**TREES, subsample=share, random_state=seed)
        grown = boosting.fit(x_PF, hard_P)
        trees = tuple(plain(it.tree_, grown.learning_rate) for it in grown.estimators_[:, 0])
        hard = float(hard_P.mean())  # where boosting begins
        return replace(blank, bias=math.log(hard / (1 - hard)), trees=trees)
    seen = 1 if method is Method.confidence else len(names)  # the log odds come first
    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scaler, fitted = line.fit(x_PF[:, :seen], hard_P)
    weights = fitted.coef_[0] / scaler.scale_
    bias = fitted.intercept_[0] - weights @ scaler.mean_
    padded = (*weights.tolist(), *[0.0] * (len(names) - seen))
    return replace(blank, weights=padded, bias=float(bias))


def plain(grown: Any, rate: float) -> Tree:
    """One of scikit-learn's trees, whose children also come behind their parents."""
    return Tree(
        feature=tuple(grown.feature.tolist()),
        threshold=tuple(grown.threshold.tolist()),
        left=tuple(grown.children_left.tolist()),
        right=tuple(grown.children_right.tolist()),
        value=tuple((rate * grown.value[:, 0, 0]).tolist()),
    )

"""How good option probabilities are: pure functions of arrays, no torch.

Q questions, K most options. Accuracies and chance are fractions from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.question import ClipstemError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

COLDEST, HOTTEST = 0.01, 100.0  # between these a temperature is searched


def probabilities(
    logits_QK: Floats, num_options_Q: Ints, temperature: float = 1.0
) -> NDArray[np.float64]:
    """softmax(logits / temperature) over each question's own options; float64, rows sum to 1."""
    logits_QK = logits_QK.astype(np.float64) / temperature
    options_QK = np.arange(logits_QK.shape[1]) < num_options_Q[:, None]
    logits_QK = np.where(options_QK, logits_QK, -np.inf)
    weights_QK = np.exp(logits_QK - logits_QK.max(axis=1, keepdims=True))
    return weights_QK / weights_QK.sum(axis=1, keepdims=True)


def fit_temperature(logits_QK: Floats, answer_Q: Ints) -> float:
    """The most probable temperature t, between `COLDEST` and `HOTTEST`.

    That of greatest likelihood (Guo et al. 2017, "On Calibration of Modern Neural Networks") under
    a prior: 1/t has a gamma distribution of shape 2 and rate 1, so that 1 is most probable, which
    cross-entropy aims at in training. It counts little beside a hundred questions, where t is far
    from 1 beside a thousand; without it a model that is right in all of a few would be taken to be
    sure of everything. What is maximised is concave in 1/t, so its slope has one zero, found by
    bisection of log(1/t). A right option that got no logit, as `problem_picture=reference` leaves
    some, says nothing about the temperature.

    Raises:
        ClipstemError: without a question whose answer is known.
    """
    lowest = np.finfo(np.float32).min
    known_Q = (answer_Q >= 0) & (logits_QK[np.arange(len(answer_Q)), answer_Q] > lowest)
    if not known_Q.any():
        raise ClipstemError("no question has a known answer: a temperature cannot be fitted")
    logits_QK, answer_Q = logits_QK[known_Q].astype(np.float64), answer_Q[known_Q]
    right_Q = logits_QK[np.arange(len(answer_Q)), answer_Q]
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        expected_Q = _expected_logit(logits_QK, np.exp(middle))
        slope = (right_Q - expected_Q).sum() + np.exp(-middle) - 1
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _expected_logit(logits_QK: Floats, inverse_temperature: float) -> Floats:
    scaled_QK = logits_QK * inverse_temperature
    weights_QK = np.exp(scaled_QK - scaled_QK.max(axis=1, keepdims=True))
    # An empty cell has weight 0 and the lowest logit; 0 times that is 0.
    return (weights_QK * logits_QK).sum(axis=1) / weights_QK.sum(axis=1)


@dataclass(frozen=True)
class Summary:
    """The headline of a set of predictions, over the questions whose answer is known.

    Attributes:
        questions: how many they are.
        micro: share of right choices over all questions.
        macro: unweighted mean of the subjects' accuracies (the paper's "Average").
        chance_micro, chance_macro: the same for a guess among each question's own options.
        nll: mean negative log-likelihood of the right option, nats.
        subjects: accuracy, chance and number of questions of each subject.
    """

    questions: int
    micro: float
    macro: float
    chance_micro: float
    chance_macro: float
    nll: float
    subjects: dict[str, tuple[float, float, int]]


def summarize(
    probs_QK: Floats, answer_Q: Ints, num_options_Q: Ints, subject_Q: Sequence[str]
) -> Summary:
    """Accuracy, chance and likelihood of option probabilities.

    Raises:
        ClipstemError: without a question whose answer is known.
    """
    known_Q = _known(answer_Q)
    probs_QK, answer_Q = probs_QK[known_Q], answer_Q[known_Q]
    right_Q = probs_QK.argmax(axis=1) == answer_Q
    chance_Q = 1 / num_options_Q[known_Q]
    name_Q = np.asarray(subject_Q, dtype=object)[known_Q]
    subjects = {
        str(name): _of_subject(right_Q[name_Q == name], chance_Q[name_Q == name])
        for name in sorted(set(name_Q))
    }
    with np.errstate(divide="ignore"):
        nll = -np.log(probs_QK[np.arange(len(answer_Q)), answer_Q]).mean()
    return Summary(
        questions=len(answer_Q),
        micro=float(right_Q.mean()),
        macro=float(np.mean([accuracy for accuracy, _, _ in subjects.values()])),
        chance_micro=float(chance_Q.mean()),
        chance_macro=float(np.mean([chance for _, chance, _ in subjects.values()])),
        nll=float(nll),
        subjects=subjects,
    )


def _of_subject(right_Q: NDArray[np.bool_], chance_Q: Floats) -> tuple[float, float, int]:
    return float(right_Q.mean()), float(chance_Q.mean()), len(right_Q)


def brier(probs_QK: Floats, answer_Q: Ints) -> float:
    """Mean squared distance between the probabilities and the right answer, summed over options.

    From 0 (sure and right) to 2 (sure and wrong). Source: Brier 1950, "Verification of forecasts
    expressed in terms of probability".

    Raises:
        ClipstemError: without a question whose answer is known.
    """
    known_Q = _known(answer_Q)
    probs_QK, answer_Q = probs_QK[known_Q], answer_Q[known_Q]
    right_QK = np.arange(probs_QK.shape[1]) == answer_Q[:, None]
    return float(((probs_QK - right_QK) ** 2).sum(axis=1).mean())


@dataclass(frozen=True)
class Reliability:
    """How often choices are right, by how probable they were held; bins without any are left out.

    Attributes:
        centre_B: middle of each bin.
        confidence_B: mean probability of its choices.
        accuracy_B: share of them that is right.
        count_B: how many they are.
    """

    centre_B: NDArray[np.float64]
    confidence_B: NDArray[np.float64]
    accuracy_B: NDArray[np.float64]
    count_B: Ints


def reliability(probs_QK: Floats, answer_Q: Ints, bins: int = 10) -> Reliability:
    """Bins of equal width of the chosen option's probability; a bin holds its lower edge.

    Raises:
        ClipstemError: without a question whose answer is known.
    """
    known_Q = _known(answer_Q)
    probs_QK, answer_Q = probs_QK[known_Q], answer_Q[known_Q]
    confidence_Q = probs_QK.max(axis=1)
    right_Q = probs_QK.argmax(axis=1) == answer_Q
    edges = np.arange(1, bins) / bins
    bin_Q = np.searchsorted(edges, confidence_Q, side="right")
    count_B = np.bincount(bin_Q, minlength=bins)
    filled_B = count_B > 0
    sums = [np.bincount(bin_Q, value_Q, bins)[filled_B] for value_Q in (confidence_Q, right_Q)]
    return Reliability(
        centre_B=(np.flatnonzero(filled_B) + 0.5) / bins,
        confidence_B=sums[0] / count_B[filled_B],
        accuracy_B=sums[1] / count_B[filled_B],
        count_B=count_B[filled_B],
    )


def ece(probs_QK: Floats, answer_Q: Ints, bins: int = 10) -> float:
    """Expected calibration error: the bins' mean distance of confidence and accuracy.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    found = reliability(probs_QK, answer_Q, bins)
    gap_B = np.abs(found.accuracy_B - found.confidence_B)
    return float((gap_B * found.count_B).sum() / found.count_B.sum())


def _known(answer_Q: Ints) -> NDArray[np.bool_]:
    """True where the answer is known."""
    known_Q = answer_Q >= 0
    if not known_Q.any():
        raise ClipstemError("no question has a known answer: there is nothing to measure")
    return known_Q

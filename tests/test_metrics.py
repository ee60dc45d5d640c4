"""Metrics, against torch, torchmetrics, scikit-learn and grids that are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from clipstem.metrics import (
    COLDEST,
    HOTTEST,
    brier,
    ece,
    fit_temperature,
    probabilities,
    reliability,
    summarize,
)
from clipstem.pairs import LOWEST_LOGIT
from clipstem.question import ClipstemError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

seeds = st.integers(0, 999)


def drawn(seed: int, questions: int = 40, spread: float = 3.0) -> tuple[Floats, Ints, Ints]:
    """logits_QK, num_options_Q and answer_Q; answers follow the logits' own probabilities."""
    rng = np.random.default_rng(seed)
    num_options_Q = rng.integers(2, 6, questions)
    logits_QK = rng.normal(size=(questions, 5)).astype(np.float32) * np.float32(spread)
    logits_QK[np.arange(5) >= num_options_Q[:, None]] = LOWEST_LOGIT
    probs_QK = probabilities(logits_QK, num_options_Q)
    answer_Q = np.array([rng.choice(5, p=probs_K) for probs_K in probs_QK])
    return logits_QK, num_options_Q, answer_Q


# ---------------------------------------------------------------------------- probabilities


@given(temperature=st.sampled_from([0.01, 0.3, 1.0, 7.0, 100.0]), seed=seeds)
def test_probabilities_are_torchs_softmax_of_the_own_options(temperature: float, seed: int) -> None:
    logits_QK, num_options_Q, _ = drawn(seed, spread=30.0)
    probs_QK = probabilities(logits_QK, num_options_Q, temperature)
    assert probs_QK.dtype == np.float64
    np.testing.assert_allclose(probs_QK.sum(axis=1), 1, rtol=1e-12)
    for probs_K, logits_K, options in zip(probs_QK, logits_QK, num_options_Q, strict=True):
        own = torch.from_numpy(logits_K[:options]).double() / temperature
        np.testing.assert_allclose(probs_K[:options], own.softmax(dim=0).numpy(), atol=1e-12)
        assert (probs_K[options:] == 0).all()


def test_temperatures_sharpen_and_flatten() -> None:
    logits_QK, num_options_Q = np.array([[2.0, 1.0, 9.9]]), np.array([2])
    np.testing.assert_allclose(probabilities(logits_QK, num_options_Q, 1e-3), [[1, 0, 0]])
    np.testing.assert_allclose(probabilities(logits_QK, num_options_Q, 1e6), [[0.5, 0.5, 0]], 1e-6)


def test_cells_beyond_the_options_do_not_matter_whatever_they_hold() -> None:
    rubbish = np.array([[1.0, 2.0, 1e30], [1.0, 2.0, np.nan]])
    probs_QK = probabilities(rubbish, np.array([2, 2]))
    assert (probs_QK[:, 2] == 0).all()
    np.testing.assert_allclose(probs_QK.sum(axis=1), 1)


def test_equal_logits_are_exactly_equally_probable() -> None:
    probs_QK = probabilities(np.array([[5.0, 7.0, 7.0]], np.float32), np.array([3]), 0.37)
    assert probs_QK[0, 1] == probs_QK[0, 2]
    assert probs_QK.argmax(axis=1).tolist() == [1]


# ---------------------------------------------------------------------------- temperature


def mean_nll(logits_QK: Floats, answer_Q: Ints, temperature: float) -> float:
    scaled_QK = torch.from_numpy(logits_QK).double() / temperature
    return float(F.cross_entropy(scaled_QK, torch.from_numpy(answer_Q)))


def loss_with_prior(logits_QK: Floats, answer_Q: Ints, temperature: float) -> float:
    prior = scipy.stats.gamma.logpdf(1 / temperature, a=2) / len(answer_Q)
    return mean_nll(logits_QK, answer_Q, temperature) - float(prior)


@given(seed=seeds, spread=st.sampled_from([0.1, 1.0, 20.0]))
def test_no_temperature_of_a_dense_grid_is_better(seed: int, spread: float) -> None:
    logits_QK, _, answer_Q = drawn(seed, questions=20, spread=spread)
    found = loss_with_prior(logits_QK, answer_Q, fit_temperature(logits_QK, answer_Q))
    grid = np.geomspace(COLDEST, HOTTEST, 200)
    assert found <= min(loss_with_prior(logits_QK, answer_Q, t) for t in grid) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_the_one_that_lbfgs_finds(seed: int) -> None:
    logits_QK, _, answer_Q = drawn(seed, questions=300)
    # The lowest logit times anything would overflow; this is low enough for a weight of 0.
    logits = torch.from_numpy(logits_QK).double().clamp(min=-1e5)
    log_inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [log_inverse],
        max_iter=100,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = F.cross_entropy(logits * log_inverse.exp(), torch.from_numpy(answer_Q))
        loss = loss - (log_inverse - log_inverse.exp()) / len(answer_Q)  # the prior
        torch.autograd.backward(loss)
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    lbfgs = float(torch.exp(-log_inverse.detach()))
    assert fit_temperature(logits_QK, answer_Q) == pytest.approx(lbfgs, rel=1e-5)


@pytest.mark.parametrize("planted", [0.2, 1.0, 5.0])
def test_a_planted_temperature_is_found_again(planted: float) -> None:
    logits_QK, _, answer_Q = drawn(0, questions=20_000)
    heated_QK = (logits_QK.astype(np.float64) * planted).clip(LOWEST_LOGIT)
    assert fit_temperature(heated_QK, answer_Q) == pytest.approx(planted, rel=0.03)


@pytest.mark.parametrize("questions", [10, 100, 1000])
def test_who_is_right_in_all_of_a_few_questions_is_not_sure_of_everything(questions: int) -> None:
    logits_QK = np.repeat([[5.0, 0.0, 0.0, 0.0]], questions, axis=0)
    right = fit_temperature(logits_QK, np.zeros(questions, np.int64))
    doubt = np.expm1(mean_nll(logits_QK, np.zeros(questions, np.int64), right))
    assert 0.01 / questions < doubt < 1 / questions
    assert fit_temperature(logits_QK, np.ones(questions, np.int64)) > min(questions, 99)


def test_a_temperature_stays_between_its_bounds() -> None:
    for scale, expected in ((1e-2, COLDEST), (1e6, HOTTEST)):
        logits_QK = scale * np.eye(4)[np.arange(4000) % 4]
        answer_Q = np.where(np.arange(4000) % 10, np.arange(4000) % 4, 0)
        assert fit_temperature(logits_QK, answer_Q) == pytest.approx(expected)


def test_only_questions_with_a_known_and_scored_answer_set_the_temperature() -> None:
    logits_QK, _, answer_Q = drawn(1)
    more_QK = np.vstack([logits_QK, [[9, 8, 7, 6, 5]], [[1, *[LOWEST_LOGIT] * 4]]])
    found = fit_temperature(more_QK, np.append(answer_Q, [-1, 3]))
    assert found == fit_temperature(logits_QK, answer_Q)


@pytest.mark.parametrize("answer", [[-1, -1], []])
def test_without_a_known_answer_there_is_no_temperature(answer: list[int]) -> None:
    with pytest.raises(ClipstemError, match="no question has a known answer: a temperature cannot"):
        fit_temperature(np.zeros((len(answer), 2)), np.array(answer, np.int64))


# ---------------------------------------------------------------------------- summary


def subjects(seed: int, questions: int) -> list[str]:
    return [("math", "science", "art")[i] for i in np.random.default_rng(seed).choice(3, questions)]


@given(seed=seeds)
def test_a_summary_agrees_with_torchmetrics_and_scikit_learn(seed: int) -> None:
    logits_QK, num_options_Q, answer_Q = drawn(seed)
    name_Q = subjects(seed, len(answer_Q))
    probs_QK = probabilities(logits_QK, num_options_Q)
    summary = summarize(probs_QK, answer_Q, num_options_Q, name_Q)

    choice, answer = torch.from_numpy(probs_QK.argmax(axis=1)), torch.from_numpy(answer_Q)
    micro = multiclass_accuracy(choice, answer, num_classes=5, average="micro")
    assert summary.micro == pytest.approx(float(micro))
    assert summary.nll == pytest.approx(log_loss(answer_Q, probs_QK, labels=range(5)))
    assert summary.questions == len(answer_Q)
    for name, (accuracy, chance, questions) in summary.subjects.items():
        of_name = np.array(name_Q) == name
        assert accuracy == accuracy_score(answer_Q[of_name], choice.numpy()[of_name])
        assert chance == pytest.approx((1 / num_options_Q[of_name]).mean())
        assert questions == of_name.sum()
    assert list(summary.subjects) == sorted(set(name_Q))


def test_macro_is_the_unweighted_mean_of_the_subjects() -> None:
    probs_QK = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.25, 0.75]])
    summary = summarize(
        probs_QK, np.array([0, 0, 1, 0]), np.array([2, 2, 2, 4]), ["math"] * 3 + ["science"]
    )
    assert summary.subjects == {"math": (pytest.approx(2 / 3), 0.5, 3), "science": (0.0, 0.25, 1)}
    assert summary.micro == 0.5
    assert summary.macro == pytest.approx(1 / 3)
    assert summary.chance_micro == pytest.approx((0.5 * 3 + 0.25) / 4)
    assert summary.chance_macro == pytest.approx((0.5 + 0.25) / 2)
    assert summary.nll == pytest.approx(-np.log([0.9, 0.8, 0.3, 0.25]).mean())


@pytest.mark.parametrize(
    ("accuracies", "average"),
    [
        ((38.6, 25.0, 44.9, 39.1), 36.9),  # random
        ((50.8, 34.6, 55.1, 43.2), 45.9),  # UNITER
        ((50.1, 26.3, 74.6, 45.0), 49.0),  # GPT-3.5-Turbo
        ((48.3, 63.7, 59.5, 42.8), 53.6),  # CLIP ViT-B/32
        ((50.3, 68.7, 55.1, 43.6), 54.4),  # CLIP ViT-L/14@336
        ((87.0, 71.9, 67.7, 78.4), 76.3),  # the same, fine-tuned
    ],
)
def test_the_published_averages_come_out_of_predictions_with_the_published_accuracies(
    accuracies: tuple[float, ...], average: float
) -> None:
    right_Q = np.concatenate([np.arange(1000) < round(10 * share) for share in accuracies])
    probs_QK = np.where(right_Q[:, None], [0.9, 0.1], [0.2, 0.8])
    names = np.repeat(["science", "technology", "engineering", "math"], 1000).tolist()
    found = summarize(probs_QK, np.zeros(4000, np.int64), np.full(4000, 2), names)
    assert 100 * found.macro == pytest.approx(average, abs=0.051)  # both are rounded


def test_guessing_reaches_chance() -> None:
    rng = np.random.default_rng(0)
    num_options_Q = rng.integers(2, 6, 20_000)
    answer_Q = rng.integers(0, num_options_Q)
    probs_QK = np.where(np.arange(5) < num_options_Q[:, None], rng.random((20_000, 5)), 0)
    summary = summarize(probs_QK, answer_Q, num_options_Q, ["math"] * 20_000)
    assert summary.micro == pytest.approx(summary.chance_micro, abs=0.015)


def test_unknown_answers_are_left_out() -> None:
    logits_QK, num_options_Q, answer_Q = drawn(3)
    probs_QK, name_Q = probabilities(logits_QK, num_options_Q), subjects(3, len(answer_Q))
    known = np.arange(len(answer_Q)) % 3 > 0
    some: Any = summarize(probs_QK, np.where(known, answer_Q, -1), num_options_Q, name_Q)
    names = [name for name, is_known in zip(name_Q, known, strict=True) if is_known]
    assert some == summarize(probs_QK[known], answer_Q[known], num_options_Q[known], names)


def test_a_right_option_held_impossible_costs_infinitely_much() -> None:
    summary = summarize(np.array([[1.0, 0.0]]), np.array([1]), np.array([2]), ["math"])
    assert (summary.micro, summary.nll) == (0.0, np.inf)


def test_without_a_known_answer_there_is_nothing_to_measure() -> None:
    with pytest.raises(ClipstemError, match="no question has a known answer: there is nothing to"):
        summarize(np.ones((1, 1)), np.array([-1]), np.array([1]), ["math"])


# ---------------------------------------------------------------------------- calibration


@given(seed=seeds, bins=st.sampled_from([5, 10, 15]))
def test_brier_and_calibration_agree_with_scikit_learn_and_torchmetrics(
    seed: int, bins: int
) -> None:
    logits_QK, num_options_Q, answer_Q = drawn(seed, questions=200)
    probs_QK = probabilities(logits_QK, num_options_Q)
    expected = brier_score_loss(answer_Q, probs_QK, labels=range(5), scale_by_half=False)
    assert brier(probs_QK, answer_Q) == pytest.approx(expected)
    error = multiclass_calibration_error(
        torch.from_numpy(probs_QK), torch.from_numpy(answer_Q), num_classes=5, n_bins=bins
    )
    assert ece(probs_QK, answer_Q, bins) == pytest.approx(float(error), abs=1e-6)

    found = reliability(probs_QK, answer_Q, bins)
    right_Q, confidence_Q = probs_QK.argmax(axis=1) == answer_Q, probs_QK.max(axis=1)
    accuracy_B, confidence_B = calibration_curve(right_Q, confidence_Q, n_bins=bins)
    np.testing.assert_allclose(found.accuracy_B, accuracy_B)
    np.testing.assert_allclose(found.confidence_B, confidence_B)
    assert found.count_B.sum() == 200
    assert (np.abs(found.confidence_B - found.centre_B) <= 0.5 / bins + 1e-12).all()


def test_a_bin_holds_its_lower_edge_and_the_last_one_certainty() -> None:
    probs_QK = np.array([[0.5, 0.5], [1.0, 0.0], [0.3, 0.7], [0.31, 0.69]])
    found = reliability(probs_QK, np.array([0, 0, 1, 0]))
    np.testing.assert_allclose(found.centre_B, [0.55, 0.65, 0.75, 0.95])
    assert found.accuracy_B.tolist() == [1, 0, 1, 1]
    assert found.count_B.tolist() == [1, 1, 1, 1]


def test_the_published_reliability_points_come_out_of_predictions_that_have_them() -> None:
    # stem.md, read off a figure: zero-shot and fine-tuned, bins centred 25, 35 … 95 %.
    for points in (
        (23.8, 27.2, 37.8, 47.2, 47.6, 50.0, 55.7, 75.8),
        (26.1, 33.7, 47.7, 54.1, 62.2, 72.0, 80.0, 98.9),
    ):
        centre_Q = np.repeat(np.arange(0.25, 1.0, 0.1), 1000)
        right_Q = np.concatenate([np.arange(1000) < round(10 * point) for point in points])
        probs_QK = np.full((8000, 9), ((1 - centre_Q) / 8)[:, None])
        probs_QK[:, 0] = centre_Q
        answer_Q = np.where(right_Q, 0, 1)
        found = reliability(probs_QK, answer_Q)
        np.testing.assert_allclose(100 * found.centre_B, np.arange(25, 100, 10))
        np.testing.assert_allclose(100 * found.accuracy_B, points)


def test_sure_and_right_costs_nothing_and_sure_and_wrong_all() -> None:
    sure_QK = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert (brier(sure_QK, np.array([0, 0])), ece(sure_QK, np.array([0, 0]))) == (0, 0)
    assert (brier(sure_QK, np.array([1, 1])), ece(sure_QK, np.array([1, 1]))) == (2, 1)


@pytest.mark.parametrize("measure", [brier, ece, reliability])
def test_calibration_is_measured_where_answers_are_known(measure: Any) -> None:
    logits_QK, num_options_Q, answer_Q = drawn(4)
    probs_QK = probabilities(logits_QK, num_options_Q)
    known = np.arange(len(answer_Q)) % 3 > 0
    some, alone = (
        measure(probs_QK, np.where(known, answer_Q, -1)),
        measure(probs_QK[known], answer_Q[known]),
    )
    assert str(some) == str(alone)
    with pytest.raises(ClipstemError, match="no question has a known answer: there is nothing to"):
        measure(probs_QK, np.full(len(answer_Q), -1))

"""Suspected labels, against one question at a time and cleanlab."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipstem.curate import labels


@st.composite
def predictions(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    num_options_N = rng.integers(1, 6, count)
    probs_NK = rng.random((count, 5)) ** rng.integers(1, 6)
    probs_NK[np.arange(5) >= num_options_N[:, None]] = 0
    probs_NK = np.round(probs_NK / probs_NK.sum(axis=1, keepdims=True), 2)
    answer_N = np.where(rng.random(count) < 0.1, -1, rng.integers(0, num_options_N))
    return {
        "probs_NK": probs_NK,
        "answer_N": answer_N,
        "num_options_N": num_options_N,
        "skill_N": np.asarray([f"s{it}" for it in rng.integers(3, size=count)], dtype=object),
        "answered_N": rng.random(count) < 0.9,
    }


def slowly(probs_NK: Any, answer_N: Any, num_options_N: Any, skill_N: Any, answered_N: Any) -> Any:
    """Confident learning, one question at a time."""
    known = [n for n in range(len(answer_N)) if answered_N[n] and answer_N[n] >= 0]
    other = [-1] * len(answer_N)
    judged = {}
    for skill in sorted(set(skill_N)):
        here = [n for n in known if skill_N[n] == skill]
        if not here:
            continue
        pool = here if len(here) >= labels.FEW else known
        threshold = np.mean([probs_NK[n, answer_N[n]] for n in pool])
        agree = chance = 0.0
        right = wrong = 0
        others = {}
        for n in here:
            rest = [k for k in range(num_options_N[n]) if k != answer_N[n]]
            chance += 1 / num_options_N[n] / len(here)
            best = max(rest, key=lambda k: (probs_NK[n, k], -k), default=None)
            best_prob = 0.0 if best is None else probs_NK[n, best]
            agree += (probs_NK[n, answer_N[n]] > best_prob) / len(here)
            margin = probs_NK[n, answer_N[n]] - best_prob
            if best is not None and margin < 0:
                others[n] = margin, best
            wrong += margin < 0 and best_prob >= threshold
            right += margin >= 0 and probs_NK[n, answer_N[n]] >= threshold
        judged[skill] = chance < 1 and agree >= chance + labels.BLIND * (1 - chance)
        most = round(len(here) * wrong / max(right + wrong, 1))
        margins = {n: others[n][0] if n in others else 1.0 for n in here}
        doubtful = sorted(here, key=lambda n: probs_NK[n, answer_N[n]])[:most]
        disputed = sorted(here, key=margins.__getitem__)[:most]
        for n in set(doubtful) & set(disputed) & set(others):
            if judged[skill]:
                other[n] = others[n][1]
    return other, judged


@given(predictions())
@settings(max_examples=150)
def test_labels_are_judged_as_one_by_one(given: dict[str, Any]) -> None:
    found = labels.judge(**given)
    other, judged = slowly(**given)
    near_bound = any(
        abs(skill.agreement - skill.chance - labels.BLIND * (1 - skill.chance)) < 1e-9
        or abs(skill.threshold * 100 - round(skill.threshold * 100)) < 1e-9
        for skill in found.skills
    )
    if not near_bound:  # where rounding decides
        assert found.other_N.tolist() == other
        assert {skill.name: skill.is_judged for skill in found.skills} == judged


@pytest.mark.parametrize("options", [2, 3, 4])
def test_equal_numbers_of_options_are_cleanlabs_on_all_rotations(options: int) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    rank = pytest.importorskip("cleanlab.rank")
    rng = np.random.default_rng(options)
    count = 300
    true_N = rng.integers(options, size=count)
    logits_NK = rng.normal(size=(count, options)) + 3 * (np.arange(options) == true_N[:, None])
    probs_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(axis=1, keepdims=True)
    answer_N = np.where(rng.random(count) < 0.15, rng.integers(options, size=count), true_N)
    # Rotated, every option stands once in every place, so that all places have one threshold.
    rotated_RNK = [np.roll(probs_NK, turn, axis=1) for turn in range(options)]
    rotated_RN = [(answer_N + turn) % options for turn in range(options)]
    theirs_RN = filters.find_label_issues(
        np.concatenate(rotated_RN),
        np.concatenate(rotated_RNK),
        filter_by="both",
        n_jobs=1,
    ).reshape(options, count)
    everybody, skill_N = np.ones(count, np.bool_), np.full(count, "s", dtype=object)
    ours = labels.judge(probs_NK, answer_N, np.full(count, options), skill_N, everybody)
    # Theirs counts for each pair of places on its own, so that rounding moves a few.
    differ_RN = (ours.other_N >= 0) != theirs_RN
    assert differ_RN.sum(axis=1).max() <= (0 if options == 2 else 3)
    assert 10 < (ours.other_N >= 0).sum() < 80
    for name, scores in {
        "self_confidence": ours.confidence_N,
        "normalized_margin": (ours.margin_N + 1) / 2,
    }.items():
        theirs = rank.get_label_quality_scores(answer_N, probs_NK, method=name)
        np.testing.assert_allclose(scores, theirs, atol=1e-12)


def test_a_skill_that_models_do_not_know_is_not_judged() -> None:
    rng = np.random.default_rng(0)
    answer_N = rng.integers(4, size=400)
    sure = np.where(np.arange(4) == answer_N[:, None], 0.91, 0.03)
    blind = rng.dirichlet(np.ones(4), 400)
    skill_N = np.asarray(["known"] * 200 + ["blind"] * 200, dtype=object)
    probs_NK = np.where((skill_N == "known")[:, None], sure, blind)
    everybody = np.ones(400, np.bool_)
    found = labels.judge(probs_NK, answer_N, np.full(400, 4), skill_N, everybody)
    assert {skill.name: skill.is_judged for skill in found.skills} == {
        "known": True,
        "blind": False,
    }
    assert (found.other_N == -1).all()


def test_easy_comes_before_hard_and_suspected_labels_last() -> None:
    confidence_N = np.array([0.2, 0.9, np.nan, 0.9, 0.95])
    spread_N = np.array([0.0, 0.2, 0.0, 0.1, 0.0])
    suspected_N = np.array([False, False, False, False, True])
    assert labels.easiest_first(confidence_N, spread_N, suspected_N).tolist() == [2, 1, -1, 0, 3]

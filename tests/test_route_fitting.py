"""Fitting a gate: its trees are scikit-learn's, and it learns what is hard."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import MADE, SKILLS, answered, each_changed, of_school, run_route
from sklearn.ensemble import GradientBoostingClassifier

from clipstem.config import Method
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.route.decisions import route
from clipstem.route.fitting import plain


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_plain_trees_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_QF, hard_Q = rng.normal(size=(200, 4)), rng.random(200) < 0.3
    grown = GradientBoostingClassifier(n_estimators=10, random_state=seed).fit(x_QF, hard_Q)
    trees = [plain(it.tree_, grown.learning_rate) for it in grown.estimators_[:, 0]]
    share = hard_Q.mean()
    found_Q = np.log(share / (1 - share)) + sum(t.values(x_QF.astype(np.float32)) for t in trees)
    assert np.allclose(found_Q, grown.decision_function(x_QF), atol=1e-9)


@pytest.mark.parametrize("method", [Method.logistic, Method.boosting])
def test_a_gate_learns_which_skills_are_hard_and_says_how_probably(
    method: Method, tmp_path: Path
) -> None:
    routed, made = run_route(of_school(tmp_path, samples=False, method=method))
    assert made.scored is not None and made.method == method.value
    assert made.scored.hard_auroc is not None and made.scored.confidence_auroc is not None
    assert made.scored.hard_auroc > made.scored.confidence_auroc + 0.15
    hard_Q = routed.asked.hard_Q(0.5)
    for skills in (SKILLS[:2], SKILLS[2:]):
        here_Q = np.isin(routed.asked.fast.columns["skill"], skills)
        said = routed.decisions.hard_prob_Q[here_Q].mean()
        assert said == pytest.approx(hard_Q[here_Q].mean(), abs=0.12)


def test_the_best_method_is_that_of_less_loss_on_questions_left_out(tmp_path: Path) -> None:
    _, made = run_route(of_school(tmp_path, method=Method.best))
    assert set(made.log_loss) == {"confidence", "logistic", "boosting"}
    assert made.log_loss[made.method] == min(made.log_loss.values())


def told(found: Predictions) -> Predictions:
    """The same choices, with a confidence that tells right ones from wrong ones, mostly."""
    rng = np.random.default_rng(0)
    right_Q = found.choice_Q == found.answer_Q
    confidence_Q = np.clip(0.5 + 0.3 * right_Q + rng.normal(0, 0.1, len(found)), 0.3, 0.99)
    return replace(found, probs_QK=answered(right_Q, confidence_Q).probs_QK)


def test_a_gate_by_confidence_alone_ranks_as_the_confidence_does(tmp_path: Path) -> None:
    settings = of_school(tmp_path, samples=False, method=Method.confidence)
    routed, made = run_route(settings)
    hard = 1 - (routed.asked.fast_right_Q).mean()
    assert routed.gate.slope == 0 and len(set(routed.decisions.hard_prob_Q.tolist())) == 1
    assert routed.decisions.hard_prob_Q[0] == pytest.approx(hard, abs=0.1)
    each_changed([settings.fast, str(settings.fit_fast)], told)
    routed, made = run_route(settings)
    sure_Q = routed.asked.fast.probs_QK.max(axis=1)
    order_Q = np.argsort(-sure_Q, kind="stable")
    assert (np.diff(routed.decisions.hard_prob_Q[order_Q]) >= -1e-12).all()
    assert routed.gate.scorer.weights[0] < 0 and not any(routed.gate.scorer.weights[1:])
    assert made.scored is not None and made.scored.below_confidence == 0
    assert made.scored.hard_auroc == pytest.approx(made.scored.confidence_auroc)


def test_fitting_says_which_library_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of_school(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ClipstemError, match=r'pip install "clipstem\[route\]"'):
        route(settings, MADE)

"""Decisions: they know nothing that must not be known, and leave out no question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from routing import MADE, changed, config, each_changed, of_school, run_route, school, with_columns

from clipstem import prediction
from clipstem.config import RouteConfig
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.route.__main__ import write
from clipstem.route.decisions import decide, route


def test_decisions_know_neither_the_answers_nor_the_tool(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    before = route(settings, MADE).decisions
    files = [settings.fast, *settings.samples, str(settings.tool)]
    each_changed(files, with_columns(answer=[-1] * 240))
    changed(Path(str(settings.tool)), lambda it: replace(it, probs_QK=it.probs_QK[:, ::-1]))
    after = route(settings, MADE).decisions
    for name, values in vars(before).items():
        assert np.array_equal(values, getattr(after, name)), name


def test_no_part_is_routed_by_a_gate_that_has_seen_it(tmp_path: Path) -> None:
    """What the tool answers to a part changes its thresholds only elsewhere."""
    files = school(tmp_path, "valid")
    settings = config(tmp_path / "out", fast=files["fast"], tool=files["tool"])
    before = route(settings, MADE)
    here_Q = before.fold_Q == 1

    def worse(found: Predictions) -> Predictions:
        probs_QK = found.probs_QK.copy()
        probs_QK[here_Q] = np.roll(probs_QK[here_Q], 1, axis=1)
        return replace(found, probs_QK=probs_QK)

    changed(files["tool"], worse)
    after = route(settings, MADE)
    assert np.array_equal(
        before.decisions.threshold_NQ[:, here_Q], after.decisions.threshold_NQ[:, here_Q]
    )
    assert not np.array_equal(before.decisions.threshold_NQ, after.decisions.threshold_NQ)
    assert sorted(np.bincount(before.fold_Q)) == [80, 80, 80]
    assert after.gate.questions == 240


def test_what_no_gate_is_fitted_on_is_routed_too_by_the_gate_that_is_kept(tmp_path: Path) -> None:
    files = school(tmp_path, "valid")
    rest = tmp_path / "rest"
    rest.mkdir()
    fast, tool = (prediction.read(files[key]) for key in ("fast", "tool"))
    usable_P = np.setdiff1d(np.arange(240), [0, 7, 100])
    for key, found in (("fast", fast), ("tool", tool)):
        found.at(usable_P).write(rest / f"{key}.parquet")
    without = config(tmp_path / "o", fast=rest / "fast.parquet", tool=rest / "tool.parquet")
    expected = route(without, MADE)
    answer = [-1 if row == 0 else found for row, found in enumerate(fast.answer_Q.tolist())]
    each_changed([str(files["fast"])], with_columns(answer=answer))
    changed(files["tool"], lambda it: it.at(np.setdiff1d(np.arange(240), [7, 100])))
    settings = config(tmp_path / "out", fast=files["fast"], tool=files["tool"])
    routed, made = run_route(settings)
    assert routed.gate == expected.gate
    assert np.array_equal(routed.fold_Q[usable_P], expected.fold_Q)
    assert np.array_equal(routed.decisions.deferred_NQ[:, usable_P], expected.decisions.deferred_NQ)
    others_P = np.array([0, 7, 100])
    kept = decide(routed.gate, routed.asked.at(others_P), settings)
    assert routed.fold_Q[others_P].tolist() == [-1, -1, -1]
    assert np.array_equal(routed.decisions.hard_prob_Q[others_P], kept.hard_prob_Q)
    assert np.array_equal(routed.decisions.deferred_NQ[:, others_P], kept.deferred_NQ)
    why = "3 questions without a known answer or one of the tool's"
    assert {f"{why}: no gate is fitted on them", f"{why}: routed, not scored"} < set(made.notes)
    assert made.questions == 240 and made.scored is not None and made.scored.questions == 237
    write(routed, made, Path(settings.out))
    for name in ("predictions", "decisions"):
        assert pq.read_table(tmp_path / f"out/{name}.parquet").num_rows == 240


def test_a_gate_is_applied_to_the_samples_that_it_was_fitted_on(
    fitted: tuple[RouteConfig, Path], tmp_path: Path
) -> None:
    settings, out = fitted
    given: dict[str, Any] = {"fast": settings.fast, "tool": settings.tool}
    given |= {"gate": out / "gate.json"}
    with pytest.raises(ClipstemError, match=r"sees the samples noise 1, noise 2.*are none"):
        route(config(tmp_path, **given), MADE)
    given |= {"samples": settings.samples, "fast_cost": 0.1, "budget": 0.2}
    with pytest.raises(ClipstemError, match=r"is not between 0.3"):
        route(config(tmp_path, **given), MADE)

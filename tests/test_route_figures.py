"""The figures of a routing: budgets that are kept, and notes of what is odd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from routing import changed, of_school, run_route, with_columns

from clipstem import prediction
from clipstem.route.decisions import rules


def test_a_budget_is_kept_on_the_fitting_questions_and_told_on_the_others(tmp_path: Path) -> None:
    settings = of_school(tmp_path, fast_cost=0.1, tool_cost=2.0, budget=0.7, cost_unit="cents")
    _, made = run_route(settings)
    assert made.scored is not None
    first = made.scored.points[0]
    assert [rule.name for rule in rules(settings)] == [it.rule for it in made.scored.points]
    assert first.rule == "0.7 cents a question" == made.rule
    assert 0.1 * 3 + 2 * first.promised_calls <= 0.7 + 1e-9
    assert first.gate.cost == pytest.approx(0.3 + 2 * first.gate.calls) == made.cost
    assert first.confidence.cost == pytest.approx(0.1 + 2 * first.confidence.calls)
    steps = made.scored.steps
    assert (steps[0].cost, steps[-1].cost) == pytest.approx((0.1, 2.3))
    assert steps[0].gate is None and steps[-1].gate is not None
    assert steps[-1].gate.calls == 1
    assert steps[-1].random == pytest.approx(made.scored.tool_accuracy)
    assert steps[0].random == pytest.approx(made.scored.fast_accuracy) == steps[0].oracle
    for step in steps:
        assert step.oracle is not None and step.confidence is not None
        assert step.oracle >= step.confidence.accuracy - 1e-12


def test_samples_may_say_what_is_hard_on_the_fitting_questions_alone(tmp_path: Path) -> None:
    settings = replace(of_school(tmp_path, agreement=False), samples=[])
    _, made = run_route(settings)
    assert made.fast_passes == 1 and made.scored is not None
    assert "what is hard is told by 3 answers on the fitting questions, by 1 here" in made.notes


def test_a_skill_that_no_fitting_question_has_is_counted(tmp_path: Path) -> None:
    settings = of_school(tmp_path, samples=False)
    new = ["new", *prediction.read(Path(settings.fast)).columns["skill"][1:]]
    for path in (settings.fast, str(settings.tool)):
        changed(Path(path), with_columns(skill=new))
    assert "1 questions of a skill that no fitting question has" in run_route(settings)[1].notes

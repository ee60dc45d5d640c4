"""The verb route, from files to what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from routing import NAN, config, of_school, one_by_one, run_route

from clipstem import prediction
from clipstem.config import ExamConfig, RouteConfig
from clipstem.exam import sit
from clipstem.question import ClipstemError
from clipstem.report import route as report_route
from clipstem.report.page import Chart, Table
from clipstem.route.__main__ import main, write


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["route", *arguments])
    main()


def arguments_of(settings: RouteConfig) -> list[str]:
    given = {name: value for name, value in vars(settings).items() if value not in (None, [])}
    listed = {
        name: f"[{','.join(value)}]" if isinstance(value, list) else getattr(value, "value", value)
        for name, value in given.items()
    }
    return [f"{name}={value}" for name, value in listed.items()]


def test_what_a_routing_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = of_school(tmp_path)
    run_main(monkeypatch, *arguments_of(settings))
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "always the tool",
        "tool usage",
        "at most 1 point below the tool",
        "240 questions go",
    ):
        assert part in printed
    out = Path(settings.out)
    assert {path.name for path in out.iterdir()} == {
        *("route.json", "gate.json", "curve.svg", "predictions.parquet", "decisions.parquet")
    }
    made = json.loads((out / "route.json").read_text())
    point = made["scored"]["points"][0]
    decisions = pq.read_table(out / "decisions.parquet").to_pydict()
    deferred_Q = np.array(decisions["deferred"])
    assert deferred_Q.sum() == made["deferred"] > 0
    assert (np.array(decisions["hard_probability"]) >= decisions["threshold"]).tolist() == (
        decisions["deferred"]
    )
    routed = prediction.read(out / "predictions.parquet")
    fast, tool = (prediction.read(Path(str(it))) for it in (settings.fast, settings.tool))
    expected_QK = np.where(deferred_Q[:, None], tool.probs_QK, fast.probs_QK)
    assert np.array_equal(routed.probs_QK, expected_QK)
    assert (routed.choice_Q == routed.answer_Q).mean() == pytest.approx(point["gate"]["accuracy"])
    assert routed.provenance["routed"]["deferred"] == made["deferred"]
    assert routed.provenance["split"] == "valid"
    assert len(sit(routed, ExamConfig(predictions="p", repeats=5)).units) == 4
    # The paper's measure once more, from the files alone.
    calls, accuracy, usage, _ = one_by_one(
        decisions["deferred"],
        fast.choice_Q == fast.answer_Q,
        tool.choice_Q == tool.answer_Q,
        np.array(decisions["hard"]),
    )
    found = [point["gate"][name] for name in ("calls", "accuracy", "tool_usage")]
    assert found == pytest.approx([calls, accuracy, usage])
    section = report_route.section(report_route.read(out / "route.json"))
    assert [type(part) for part in section.parts[:5]] == [str, Table, Chart, Table, Table]
    assert (out / "curve.svg").read_text() == next(
        part.svg for part in section.parts if isinstance(part, Chart)
    )
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *arguments_of(settings))
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_without_a_tool_it_says_whom_to_ask_and_takes_only_those_answers(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    asked = replace(settings, tool=None, out=str(tmp_path / "asked"))
    routed, made = run_route(asked)
    write(routed, made, Path(asked.out))
    assert made.scored is None and not (tmp_path / "asked/predictions.parquet").exists()
    deferred_Q = routed.decisions.deferred_NQ[0]
    assert "no tool was given: these are the questions to ask it" in made.notes
    tool = prediction.read(Path(str(settings.tool)))
    tool.at(np.flatnonzero(deferred_Q)[1:]).write(Path(str(settings.tool)), replace=True)
    routed, made = run_route(settings)
    assert made.scored is None and made.deferred == deferred_Q.sum()
    assert any(
        it.startswith("1 deferred questions have no answer of the tool's") for it in made.notes
    )
    write(routed, made, Path(settings.out))
    found = prediction.read(tmp_path / "out/predictions.parquet")
    fast = prediction.read(Path(settings.fast))
    kept_Q = ~deferred_Q
    kept_Q[np.flatnonzero(deferred_Q)[0]] = True
    assert np.array_equal(found.probs_QK[kept_Q], fast.probs_QK[kept_Q])
    assert np.array_equal(found.probs_QK[~kept_Q], tool.probs_QK[~kept_Q])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tool_cost": NAN}, "conf key 'tool_cost': nan is not a finite number"),
        ({"fast_cost": float("inf")}, "conf key 'fast_cost': inf is not a finite number"),
        ({"tool_cost": 0.0}, "conf key 'tool_cost': 0.0 is not above 0"),
        ({"points_below_tool": NAN}, "conf key 'points_below_tool': nan is not a finite number"),
        ({"easy_at": NAN}, "conf key 'easy_at': nan is not above 0 and at most 1"),
        ({"easy_at": 0.0}, "conf key 'easy_at': 0.0 is not above 0 and at most 1"),
        ({"folds": 2}, "conf key 'folds': 2 is below 3"),
        (
            {"budget": 1.5},
            "conf key 'budget': 1.5 tool calls a question is not between 0, which the fast model "
            "costs by itself, and 1, with the tool asked always",
        ),
        (
            {"budget": 0.2, "fast_cost": 0.1, "samples": ["s", "t"]},
            "conf key 'budget': 0.2 tool calls a question is not between 0.3",
        ),
        ({"budget": NAN}, "conf key 'budget': nan tool calls a question is not between 0"),
        ({"tool": None}, "conf key 'tool' is missing; it can be left out with gate=<file>"),
        ({"fit_fast": "a"}, "conf key 'fit_tool' is missing; give the tool's answers"),
        ({"fit_samples": ["a"]}, "'fit_tool', 'fit_samples': need fit_fast=<file> beside them"),
        ({"gate": "g", "fit_fast": "a", "fit_tool": "b"}, "'gate', 'fit_fast': give one of them"),
        ({"samples": ["f"]}, "conf key 'samples': f is given twice; expected different files"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError) as error:
        config(**{"fast": "f", "tool": "t", **given})
    assert message in str(error.value)

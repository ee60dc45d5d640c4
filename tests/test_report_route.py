"""A routing in the report, which believes no stranger's figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from routing import NAN

from clipstem.config import RouteConfig
from clipstem.question import ClipstemError
from clipstem.report import page
from clipstem.report import route as report_route
from clipstem.report.page import Chart, Table

FIGURES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no questions", lambda it: it.pop("questions"), "lacks questions"),
    ("a text for a number", lambda it: it.update(cost="1"), "cost is '1'"),
    (
        "a cost beyond all",
        lambda it: it.update(cost=1e200),
        "expected a number below 1e15",
    ),
    ("a count beyond all", lambda it: it.update(questions=10**400), "whole number below 2"),
    ("no points", lambda it: it["scored"].update(points=[]), "has no points or no steps"),
    ("a NaN", lambda it: it["scored"].update(hard=NAN), "scored.hard is nan"),
]


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in FIGURES], ids=[it[0] for it in FIGURES]
)
def test_the_report_believes_no_strangers_figures(
    change: Callable[[dict[str, Any]], object],
    message: str,
    fitted: tuple[RouteConfig, Path],
    tmp_path: Path,
) -> None:
    values = json.loads((fitted[1] / "route.json").read_text())
    change(values)
    (tmp_path / "route.json").write_text(json.dumps(values))
    with pytest.raises(ClipstemError, match=message):
        report_route.read(tmp_path / "route.json")
    with pytest.raises(ClipstemError, match="there is no such file"):
        report_route.read(tmp_path)


def test_the_reports_section_says_what_the_figures_say(fitted: tuple[RouteConfig, Path]) -> None:
    found = report_route.read(fitted[1] / "route.json")
    assert found.scored is not None
    said, table, chart, gains, skills = report_route.section(found).parts[:5]
    assert isinstance(said, str) and f"{found.deferred} of 240 questions go to the tool" in said
    assert isinstance(table, Table) and isinstance(gains, Table) and isinstance(skills, Table)
    assert isinstance(chart, Chart) and "random" in chart.svg
    first = found.scored.points[0].gate
    assert table.rows[2][3] == f"{100 * first.accuracy:.1f}"
    assert [int(cell) for cell in table.rows[2][5:]] == [
        *(first.easy_direct, first.easy_tool, first.hard_direct, first.hard_tool)
    ]
    assert len(gains.rows) == 4 * len(found.scored.points) and len(skills.rows) == 4
    assert {len(row) for part in (table, gains, skills) for row in part.rows} == {
        *(len(part.columns) for part in (table, gains, skills))
    }


def test_what_a_stranger_wrote_is_text_in_the_report(
    fitted: tuple[RouteConfig, Path], tmp_path: Path
) -> None:
    script = "<script>alert(1)</script>"
    values = json.loads((fitted[1] / "route.json").read_text())
    values |= {"cost_unit": script, "fast": script, "rule": script, "notes": [script]}
    values["scored"]["points"][0]["rule"] = values["scored"]["skills"][0]["skill"] = script
    (tmp_path / "route.json").write_text(json.dumps(values))
    section = report_route.section(report_route.read(tmp_path / "route.json"))
    shown = page.html(page.Report("title", (), (page.Chapter("chapter", (section,)),)))
    assert "&lt;script&gt;alert(1)" in shown and script not in shown

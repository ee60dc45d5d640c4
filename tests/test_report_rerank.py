"""Figures of reranking in the report: all are shown, and those of strangers are checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from reranking import reranked, with_scores

from clipstem.config import Scores
from clipstem.question import ClipstemError
from clipstem.report import page
from clipstem.report import rerank as shown


def content(tmp_path: Path) -> dict[str, Any]:
    found = reranked(with_scores(tmp_path / "c.jsonl", 30), scores=Scores.given)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(found.figures)))
    return plain


def test_the_report_shows_every_figure(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content(tmp_path)))
    found = shown.read(tmp_path / "r.json")
    made = page.Report("t", (), (page.Chapter("c", (shown.section(found),)),))
    text = page.markdown(made)
    for one in (*found.methods.values(),):
        assert page.percent(one.right.value) in text
    for name in (*found.systems, "any right (the bound)", "best system", "charts/best-of-n.svg"):
        assert name in text
    assert "<svg" in page.html(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.pop("methods"), "lacks methods"),
        (lambda it: it.update(asked="many"), "asked is 'many'; expected a whole number"),
        (lambda it: it.update(any_right={"value": float("nan"), "interval": None}), "is nan"),
        (lambda it: it.update(any_right={"value": 3.0, "interval": None}), "is 3; expected 0 to 1"),
        (lambda it: it["methods"].pop("majority"), "expected majority, and others"),
        (lambda it: it["methods"].update(x=it["methods"]["mix"]), "methods are"),
        (lambda it: it["best_of"]["exact"].pop(), "are not equally long"),
        (lambda it: it["best_of"].update(sizes=[]), "best_of has no sizes"),
        (lambda it: it["best_of"]["sizes"].reverse(), "sizes do not rise"),
        (lambda it: it["best_of"]["sizes"].__setitem__(0, 0), "sizes do not rise from 1"),
        (lambda it: it["best_of"]["sizes"].append(10**400), "expected a whole number below 2^63"),
        (
            lambda it: it["any_right"].update(interval={"low": -1e200, "high": 1.0}),
            "any_right.interval.low is -1e+200; expected a number below 1e15",
        ),
        (lambda it: it.update(notes=[1]), "notes[0] is 1; expected a text"),
        (lambda it: it.update(systems=[]), "systems is []; expected an object"),
    ],
)
def test_figures_of_strangers_are_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    made = content(tmp_path)
    change(made)
    (tmp_path / "r.json").write_text(json.dumps(made))
    with pytest.raises(ClipstemError) as refused:
        shown.read(tmp_path / "r.json")
    assert message in str(refused.value) and "expected the rerank.json of" in str(refused.value)


def test_other_files_are_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, message in (("[" * 100_000, "is not JSON"), ("[]", "expected an object")):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ClipstemError, match=message):
            shown.read(tmp_path / "r.json")
    with pytest.raises(ClipstemError, match="there is no such file"):
        shown.read(Path("/dev/zero"))
    monkeypatch.setattr(shown, "MAX_BYTES", 1)
    with pytest.raises(ClipstemError, match="has more than 1 bytes"):
        shown.read(tmp_path / "r.json")


def test_figures_come_back_as_they_were_written(tmp_path: Path) -> None:
    made = content(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(made))
    assert json.loads(json.dumps(asdict(shown.read(tmp_path / "r.json")))) == made

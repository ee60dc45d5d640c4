"""The report as HTML and as Markdown: the same tables, nothing fetched, readable for everyone."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from reporting import (
    GOLDEN,
    MADE,
    Cells,
    config,
    markdown_cells,
    outside,
)

from clipstem.report import page
from clipstem.report.__main__ import build, write_report
from clipstem.report.page import Report, Section, Table


def test_html_and_markdown_hold_the_same_tables(report_of_two: Report) -> None:
    in_html = [
        [" ".join(cell.split()) for cell in row] for row in Cells(page.html(report_of_two)).rows
    ]
    in_markdown = markdown_cells(page.markdown(report_of_two))
    assert in_html == in_markdown
    parts = [p for c in report_of_two.chapters for s in c.sections for p in s.parts]
    tables = [part for part in parts if isinstance(part, Table)]
    assert len(in_html) == sum(len(one.rows) + 1 for one in tables) > 150


def test_the_markdown_is_the_golden_one(report_of_two: Report, tmp_path: Path) -> None:
    """Without the last chapter, which has hashes of files that other versions write otherwise."""
    found = page.markdown(replace(report_of_two, chapters=report_of_two.chapters[:-1]))
    (tmp_path / "found.md").write_text(found)
    assert found == GOLDEN.read_text(), f"differs from {GOLDEN}: see {tmp_path / 'found.md'}"


def test_a_report_repeats_itself_exactly(report_of_two: Report, two_models: list[Path]) -> None:
    again = build(config(two_models, bins=7), MADE)
    assert page.html(again) == page.html(report_of_two)
    assert page.markdown(again) == page.markdown(report_of_two)
    assert page.files(again) == page.files(report_of_two)


def test_the_markdown_refers_to_files_that_are_there(two_models: list[Path]) -> None:
    write_report(config(two_models))
    text = Path("report/report.md").read_text()
    linked = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    there = {str(p.relative_to("report")) for p in Path("report").rglob("*") if p.is_file()}
    assert linked == there - {"report.html", "report.md"}
    assert len(linked) > 8


def test_the_page_needs_no_network(report_of_two: Report) -> None:
    html = page.html(report_of_two)
    assert outside(html) == []
    assert set(re.findall(r"https?://[^\s\"'<]*", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_the_page_is_accessible(report_of_two: Report) -> None:
    html = page.html(report_of_two)
    assert html.count("<table") == html.count("<caption>")
    assert html.count("<svg ") == html.count('<svg role="img" aria-label=')
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([a-z][a-z-]*)"', html)) <= set(ids)


@pytest.mark.parametrize(
    ("name", "written"),
    [("# x", r"\# x"), ("- x", r"\- x"), ("+ x", r"\+ x"), ("1. x", r"1\. x"), ("+1.5", "+1.5")],
)
def test_a_line_that_begins_with_a_name_stays_a_line(name: str, written: str) -> None:
    made = Report("t", [name], [page.Chapter("c", [Section("s", [name])])])
    assert page.markdown(made).splitlines().count(written) == 2


def test_a_bracket_does_not_end_an_image() -> None:
    made = Report("t", [], [page.Chapter("c", [Section("s", [page.Chart("n", "c", "a] [b", "")])])])
    assert "\n![a\\] \\[b](charts/n.svg)\n" in page.markdown(made)


@pytest.mark.parametrize("columns", [10, 11])
def test_a_table_of_many_columns_is_printed_across(report_of_two: Report, columns: int) -> None:
    names = [f"column {number}" for number in range(columns)]
    (chapter, *_) = report_of_two.chapters
    section = Section("A table", [Table("of columns", names, [names])])
    html = page.html(replace(report_of_two, chapters=[replace(chapter, sections=[section])]))
    assert ('many-columns" tabindex' in html) == (columns == 11)


def test_titles_in_any_script_have_links_of_their_own() -> None:
    assert page.slug("Routing to a tool: 実験_1") == "routing-to-a-tool-実験-1"
    assert page.slug("Größe, (Ä)") == "größe-ä"

"""Charts: well-formed SVG that names its colours, repeats itself exactly and escapes texts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipstem import charts
from clipstem.charts import THEME, Estimate

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>1</script> & $\\frac{$ 技 font-family: "D'


def a_line(name: str = "a") -> str:
    return charts.line([1.0, 2.0], {name: [3.0, math.nan]}, name, name, name, diagonal=True)


def a_scatter(name: str = "a") -> str:
    return charts.scatter({name: ([1e6, 2e9], [1.0, 2.0])}, name, name, name, True, {name: [name]})


def some_rows(name: str = "a") -> str:
    estimates = [Estimate(50, 40, 60), Estimate(math.nan, math.nan, math.nan)]
    return charts.rows([name, "b"], {name: estimates}, name, name, (name, [25.0, 50.0]))


DRAWN = (a_line, a_scatter, some_rows)


@pytest.mark.parametrize("draw", DRAWN)
def test_a_chart_is_well_formed_and_says_what_it_shows(draw: Callable[[], str]) -> None:
    root = ElementTree.fromstring(draw())
    assert root.tag == f"{SVG}svg"
    assert (root.get("role"), root.get("aria-label")) == ("img", "a")


@pytest.mark.parametrize("draw", DRAWN)
def test_a_chart_repeats_itself_exactly(draw: Callable[[], str]) -> None:
    assert draw() == draw()


@pytest.mark.parametrize("draw", DRAWN)
def test_every_colour_is_one_of_the_theme(draw: Callable[[], str]) -> None:
    svg = draw().replace(charts.STYLE, "")
    assert not re.findall(r"#[0-9a-f]{6}\b", svg.replace("url(#", ""))
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"ink", "muted", "series0"} <= used <= set(THEME)


@pytest.mark.parametrize("draw", DRAWN)
def test_texts_stay_texts_whatever_they_are(draw: Callable[[str], str]) -> None:
    root = ElementTree.fromstring(draw(HOSTILE))
    assert HOSTILE in {text.text for text in root.iter(f"{SVG}text")}
    assert not list(root.iter(f"{SVG}script"))


@pytest.mark.parametrize("draw", DRAWN)
def test_letters_that_xml_has_none_of_are_replaced(draw: Callable[[str], str]) -> None:
    texts = {it.text for it in ElementTree.fromstring(draw("a\x1bb\x00")).iter(f"{SVG}text")}
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}" in texts


@pytest.mark.parametrize("draw", [a_line, some_rows])
def test_a_name_that_begins_with_an_underscore_is_in_the_legend(draw: Callable[[str], str]) -> None:
    assert ">\u200b_model</text>" in draw("_model")


@pytest.mark.parametrize("draw", DRAWN)
def test_a_chart_refers_to_nothing_outside_itself(draw: Callable[[], str]) -> None:
    svg = draw()
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"#([mp][0-9a-f]{10})", svg)) <= set(ids)


def test_charts_of_different_names_share_no_ids() -> None:
    one, other = (set(re.findall(r' id="([^"]*)"', a_scatter(name))) for name in "ab")
    assert one and not one & other


def test_a_value_that_is_not_there_is_not_drawn() -> None:
    one = charts.rows(["a"], {"s": [Estimate(50, 40, 60)]}, "x", "alt")
    two = some_rows()
    marks = [len(re.findall(r"<use [^>]*fill: var\(--series0\)", svg)) for svg in (one, two)]
    assert marks == [2, 2]  # in the legend and in the chart


def test_long_names_are_cut_and_leave_room() -> None:
    name = " ".join(["long"] * 60)
    estimate = [Estimate(50, 40, 60)]
    drawn = [
        charts.rows([name], {name: estimate}, "x", "alt"),
        charts.scatter({name: ([1.0], [2.0])}, "x", "y", "alt", point_labels={name: [name]}),
    ]
    for svg in drawn:
        assert len(re.findall(r">long [^<]{44}…</text>", svg)) == 2


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("role", [role for role in THEME if role not in ("paper", "grid")])
def test_every_colour_is_readable_on_its_paper(role: str, theme: int) -> None:
    low, high = sorted(luminance(THEME[name][theme]) for name in (role, "paper"))
    assert (high + 0.05) / (low + 0.05) >= 4.5


@settings(max_examples=10)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_any_number_of_series_is_drawn(values: list[float]) -> None:
    series = {f"series {number}": [value] for number, value in enumerate(values)}
    svg = charts.line([1.0], series, "x", "y", "alt")
    assert all(f">series {number}<" in svg for number in range(len(values)))


def test_a_value_a_hair_outside_its_interval_is_drawn() -> None:
    above, below = 100.0, 0.0
    beside = [charts.Estimate(above, 98.0, 99.99999999999999), charts.Estimate(below, 1e-15, 2.0)]
    assert charts.rows(["a", "b"], {"model": beside}, "accuracy, %", "alt").startswith("<svg")

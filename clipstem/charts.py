"""Charts as SVG: readable in light and dark, deterministic, with text that stays text.

A chart is drawn by matplotlib with one made-up colour for each role; the roles then become CSS
variables, whose values for both themes stand in the SVG's own `STYLE`. So a chart can be put into
a page as it is, or be a file of its own.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

WIDTH_INCHES = 6.6
ROW_INCHES = 0.19  # of a chart of rows, for each line in it
NAME_LETTERS = 50  # of a row or a series; longer names are cut
LEGEND_LETTERS = 84  # in a line of the legend, marks included
MARKERS = "os^DvPX*"
MEASURED_WITH = "DejaVu Sans"  # matplotlib's own font, wider than those that readers have

_SERIES = (
    ("#0b62a4", "#6cb4ee"),
    ("#b85000", "#f2a65a"),
    ("#00755a", "#55c9a2"),
    ("#a03a78", "#e992c4"),
    ("#6a51a3", "#b5a3e8"),
    ("#7a6200", "#d9c04a"),
)
"""Colours of the series in the light and in the dark theme; at least 4.5:1 on their paper."""

THEME = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1c2024", "#e6e8ea"),
    "muted": ("#5c636a", "#a3abb3"),
    "grid": ("#dfe3e6", "#343a40"),
    **{f"series{number}": pair for number, pair in enumerate(_SERIES)},
}
"""Every colour of charts and reports: its value in light and in dark."""


def _variables(theme: int) -> str:
    return "".join(f"--{role}:{pair[theme]};" for role, pair in THEME.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(0)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
)
"""The theme as CSS; paper is always printed light."""

_STAND_IN = {role: f"#fe00{number:02x}" for number, role in enumerate(THEME)}

_RC: Any = {  # matplotlib names every key in its type, another set in each version
    "svg.fonttype": "none",
    "font.family": MEASURED_WITH,
    "font.size": 9,
    "text.parse_math": False,  # a name with a dollar sign is a name
    "text.color": _STAND_IN["ink"],
    "axes.labelcolor": _STAND_IN["ink"],
    "axes.edgecolor": _STAND_IN["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _STAND_IN["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": _STAND_IN["muted"],
    "ytick.color": _STAND_IN["muted"],
    "xtick.labelcolor": _STAND_IN["ink"],
    "ytick.labelcolor": _STAND_IN["ink"],
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the unit of its axis."""

    value: float
    low: float
    high: float


@matplotlib.rc_context(_RC)
def line(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    alt: str,
    diagonal: bool = False,
) -> str:
    """Lines over common x; NaN leaves a gap. `diagonal` draws y = x, where the two should agree."""
    figure, axes = _figure(3.2)
    if diagonal:
        ends = (min(x), max(x))
        axes.plot(ends, ends, color=_STAND_IN["muted"], linewidth=1, linestyle=(0, (4, 3)))
    for (name, y), style in zip(series.items(), _styles(), strict=False):
        axes.plot(x, y, label=_shown(name), **style)
    return _svg(figure, axes, x_label, y_label, alt)


@matplotlib.rc_context(_RC)
def scatter(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    alt: str,
    log_x: bool = False,
    point_labels: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Points of each series; `point_labels` names the points of a series beside them."""
    figure, axes = _figure(3.6)
    if log_x:
        axes.set_xscale("log", subs=())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep="\u202f"))
    for (name, (x, y)), style in zip(series.items(), _styles(), strict=False):
        axes.plot(x, y, label=_shown(name), **{**style, "linestyle": "none"}, alpha=0.75)
        for where in zip(x, y, (point_labels or {}).get(name, ()), strict=False):
            axes.annotate(
                _short(where[2]),
                where[:2],
                (4, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=_STAND_IN["muted"],
            )
    return _svg(figure, axes, x_label, y_label, alt)


@matplotlib.rc_context(_RC)
def rows(
    names: Sequence[str],
    series: Mapping[str, Sequence[Estimate]],
    x_label: str,
    alt: str,
    reference: tuple[str, Sequence[float]] | None = None,
) -> str:
    """For each name a line with every series' value and interval; NaN leaves one out.

    `reference` is a named value for each row, drawn as a tick: what a guess would reach.
    """
    lines = max(2, len(series)) + 1
    figure, axes = _figure(0.75 + ROW_INCHES * lines * len(names) * 0.8)
    places = range(len(names))
    for number, ((name, estimates), style) in enumerate(
        zip(series.items(), _styles(), strict=False)
    ):
        shift = (number - (len(series) - 1) / 2) / lines
        shown = [(place, e) for place, e in enumerate(estimates) if math.isfinite(e.value)]
        axes.errorbar(
            [e.value for _, e in shown],
            [place + shift for place, _ in shown],
            # Rounding may put a value a hair outside its interval.
            xerr=[
                [max(0.0, e.value - e.low) for _, e in shown],
                [max(0.0, e.high - e.value) for _, e in shown],
            ],
            label=_shown(name),
            **{**style, "linestyle": "none"},
            elinewidth=1.4,
        )
    if reference is not None:
        label, values = reference
        axes.plot(
            values,
            places,
            marker="|",
            linestyle="none",
            markersize=9,
            markeredgewidth=1.6,
            color=_STAND_IN["muted"],
            label=_shown(label),
        )
    axes.set_yticks(places, [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return _svg(figure, axes, x_label, "", alt)


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH_INCHES, height_inches), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.add_subplot(facecolor="none")


def _short(name: str) -> str:
    """A name that leaves room for the chart; the tables have all of it."""
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"


def _shown(name: str) -> str:
    """A name for the legend, from which matplotlib leaves out those that begin with "_"."""
    return f"\u200b{name}" if name.startswith("_") else name


_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def _styles() -> Any:
    """Colour and marker of one series after another: either alone tells them apart."""
    colours = [role for role in THEME if role.startswith("series")]
    return (
        {"color": _STAND_IN[colour], "marker": marker}
        for colour, marker in zip(cycle(colours), cycle(MARKERS), strict=False)
    )


def _svg(figure: Figure, axes: Axes, x_label: str, y_label: str, alt: str) -> str:
    """The drawn chart as SVG text, in CSS variables, without dates and without file headers."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own font has it
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            # matplotlib puts plain lines first: the reference comes behind the series
            order = sorted(range(len(labels)), key=lambda i: not isinstance(handles[i], Container))
            labels = [_short(label) for label in labels]
            shown = [handles[i] for i in order], [labels[i] for i in order]
            columns = max(1, LEGEND_LETTERS // (max(map(len, labels)) + 6))
            figure.legend(*shown, loc="outside upper left", ncols=min(len(labels), columns))
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata={"Date": None, "Creator": None}
        )
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue())
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids of groups are the same in every chart
    text = text.replace(f"'{MEASURED_WITH}'", "system-ui, sans-serif")
    text = text.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    for role, colour in _STAND_IN.items():
        text = text.replace(colour, f"var(--{role})")
    alt = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", alt)
    head = f'<svg role="img" aria-label={quoteattr(alt)}'
    text = text.replace("<svg", head, 1)
    return text.replace(">", f"><style>{STYLE}</style>", 1)

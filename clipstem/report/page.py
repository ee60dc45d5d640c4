"""What a report is made of, and how it becomes HTML and Markdown.

Both templates render the same parts, whose numbers are already text: nothing is said twice, and
no number can differ between the two.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipstem import charts
from clipstem.statistics import Interval


@dataclass(frozen=True)
class Table:
    """Cells are text; the first `words` columns hold words and are left-aligned, others numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    notes: Sequence[str] = ()
    sortable: bool = False


@dataclass(frozen=True)
class Chart:
    """`svg` is a drawing of `clipstem.charts`; `alt` says in words what it shows."""

    name: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Option:
    """An option of a shown question; a picture is WebP."""

    text: str
    picture: bytes | None
    probability: str
    is_answer: bool
    is_choice: bool


@dataclass(frozen=True)
class Mistake:
    """A question that was answered wrongly, with everything that the model saw."""

    name: str
    title: str
    problem: str
    picture: bytes | None
    options: Sequence[Option]


@dataclass(frozen=True)
class Gallery:
    """Mistakes, one after the other."""

    caption: str
    mistakes: Sequence[Mistake]


@dataclass(frozen=True)
class Command:
    """A line to type."""

    line: str


Part = str | Table | Chart | Gallery | Command
"""Of a section; a string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Chapter:
    """A heading of the first order."""

    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Report:
    """The whole."""

    title: str
    summary: Sequence[str]
    chapters: Sequence[Chapter]


# ---------------------------------------------------------------------------- numbers as text

NOTHING = "–"


def percent(fraction: float) -> str:
    """A fraction in per cent, one decimal."""
    return NOTHING if math.isnan(fraction) else f"{100 * fraction:.1f}".replace("-", "−")


def signed_percent(fraction: float) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * fraction:+.1f}".replace("-", "−")


def between(interval: Interval | None) -> str:
    """An interval of fractions, in per cent."""
    if interval is None:
        return NOTHING
    return f"[{percent(interval.low)}, {percent(interval.high)}]"


def decimals(interval: Interval | None) -> str:
    """An interval of numbers."""
    if interval is None:
        return NOTHING
    return f"[{decimal(interval.low)}, {decimal(interval.high)}]"


def count(number: int) -> str:
    return f"{number:,}"


def decimal(number: float, places: int = 3) -> str:
    return NOTHING if math.isnan(number) else f"{number:.{places}f}".replace("-", "−")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------- templates

_TEMPLATES = FileSystemLoader(Path(__file__).parent / "templates")


def html(report: Report) -> str:
    """One self-contained page: pictures inside, no network, everything foreign escaped."""
    return _render("report.html", _environment(autoescape=True), report)


def markdown(report: Report) -> str:
    """The same as Markdown, whose charts and pictures are files: see `files`."""
    environment = _environment(autoescape=False)
    environment.finalize = _escape_markdown
    return _render("report.md", environment, report)


def files(report: Report) -> dict[str, bytes]:
    """The files that the Markdown refers to, by their path in the report's folder."""
    parts = [
        p for chapter in report.chapters for section in chapter.sections for p in section.parts
    ]
    found = {chart_path(part): part.svg.encode() for part in parts if isinstance(part, Chart)}
    for part in parts:
        for mistake in part.mistakes if isinstance(part, Gallery) else ():
            found |= dict(pictures(mistake))
    return found


def chart_path(chart: Chart) -> str:
    return f"charts/{chart.name}.svg"


def pictures(mistake: Mistake) -> list[tuple[str, bytes]]:
    """The path and the bytes of each of its pictures, the problem's first."""
    shown = [("problem", mistake.picture)]
    shown += [(f"option{place}", option.picture) for place, option in enumerate(mistake.options)]
    return [(picture_path(mistake, which), data) for which, data in shown if data is not None]


def picture_path(mistake: Mistake, which: str) -> str:
    return f"pictures/{mistake.name}-{which}.webp"


def slug(title: str) -> str:
    """A title as a link's target: letters of any script, digits and hyphens."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-")


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=_TEMPLATES,
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for kind in (Table, Chart, Gallery, Command):
        environment.tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
    environment.filters |= {"slug": slug, "data_uri": _data_uri, "svg": _svg}
    environment.filters |= {"as_typed": _as_typed, "alt": _alt}
    environment.globals |= {
        "theme": Markup(charts.STYLE),
        "chart_path": chart_path,
        "picture_path": picture_path,
    }
    return environment


def _render(template: str, environment: Environment, report: Report) -> str:
    return environment.get_template(template).render(report=report)


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _svg(chart: Chart) -> Markup:
    return Markup(chart.svg)  # drawn by `charts`, where matplotlib escapes every text


def _as_typed(command: Command) -> Markup:
    """Unescaped, for a fenced block of Markdown, which one line cannot leave."""
    return Markup(" ".join(command.line.split()))


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _escape_markdown(value: object) -> object:
    """Text as it reads: nothing in it is Markdown or HTML, and it stays on its line.

    A bracket alone is no link: only what would make it one is escaped, so that intervals stay
    readable. What would make a heading or a list of a line that begins with the text is escaped.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    plain = re.sub(r"[&<>]", lambda found: _ENTITIES[found[0]], " ".join(value.split()))
    inline = re.sub(r"[\\`*_|~$]|(?<=\])\(", r"\\\g<0>", plain)
    return re.sub(r"^(\d*)(#|[+.)-](?= ))", r"\1\\\2", inline)


def _alt(text: str) -> Markup:
    """What an image of Markdown shows, which a bracket would end."""
    return Markup(re.sub(r"[\[\]]", r"\\\g<0>", str(_escape_markdown(text))))

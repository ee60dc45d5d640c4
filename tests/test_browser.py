"""The report in a real browser: both themes, sorting, printing. Run by `make browser`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from clipstem.report import page
from clipstem.report.page import Chapter, Chart, Report, Section, Table

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import screenshot
from test_charts import a_line

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(screenshot.browser() is None, reason="no chromium is installed"),
]

ROWS = [("c", "1,000"), ("a", "−2.5"), ("b", "–"), ("d", "< 0.001")]


@pytest.fixture
def html() -> str:
    table = Table("caption", ("skill", "points"), ROWS, sortable=True)
    parts = (table, Chart("chart", "caption", "a", a_line()))
    return page.html(Report("title", ["lead"], [Chapter("chapter", [Section("section", parts)])]))


def first_cells(html: str, folder: Path, clicks: int, column: int) -> str:
    """The first column after clicks on a column's head."""
    script = f"document.querySelectorAll('th button')[{column}].click();" * clicks
    file = folder / "page.html"
    file.write_text(html.replace("</body>", f"<script>{script}</script></body>"))
    dom = screenshot.chromium("--dump-dom", file.as_uri())
    return "".join(re.findall(r'<th scope="row"[^>]*>(\w)</th>', dom))


@pytest.mark.parametrize(
    ("clicks", "column", "order"),
    [(0, 0, "cabd"), (1, 0, "dcba"), (2, 0, "abcd"), (1, 1, "cdab"), (2, 1, "badc")],
)
def test_a_click_sorts_by_words_or_numbers(
    html: str, tmp_path: Path, clicks: int, column: int, order: str
) -> None:
    assert first_cells(html, tmp_path, clicks, column) == order


def test_light_and_dark_differ_and_are_the_themes(html: str) -> None:
    corners = [screenshot.screenshot(html, dark).getpixel((0, 0)) for dark in (False, True)]
    assert corners == [(0xFF, 0xFF, 0xFF), (0x15, 0x18, 0x1C)]


def test_it_prints(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    pdf = tmp_path / "page.pdf"
    screenshot.chromium(f"--print-to-pdf={pdf}", (tmp_path / "page.html").as_uri())
    assert pdf.read_bytes()[:5] == b"%PDF-"


def test_the_readmes_picture_is_small(html: str, tmp_path: Path) -> None:
    file = tmp_path / "report.png"
    screenshot.side_by_side(html).quantize(screenshot.COLOURS).save(file, optimize=True)
    assert file.stat().st_size < 300_000

"""The report and the exam page in a real browser: themes, sorting, printing, keys, clicks.

Run by `make browser`.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import server

import clipstem
from clipstem.config import Rule
from clipstem.exam import next_scores
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
    screenshot.of_report(html).quantize(screenshot.COLOURS).save(file, optimize=True)
    assert file.stat().st_size < 300_000


# ---------------------------------------------------------------------------- the exam page


@pytest.fixture(scope="module")
def address(tiny_bundle: Path) -> Iterator[str]:
    with server(tiny_bundle, "questions_per_skill=4") as (_, address):
        yield address


@pytest.fixture
def driver() -> Iterator[Any]:
    if shutil.which("chromedriver") is None:
        pytest.skip("no chromedriver is installed")
    with screenshot.driver() as driver:
        yield driver


def wait(driver: Any, until: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 30).until(lambda _: until())


def begin(driver: Any, address: str) -> None:
    """Begin an exam in weather, whose options are pictures."""
    from selenium.webdriver.support.ui import Select

    driver.get(address)
    wait(driver, lambda: driver.find_elements("css selector", "#skill option"))
    for name, choice in (("subject", "science"), ("grade", "pre-k"), ("skill", "weather")):
        Select(driver.find_element("id", name)).select_by_value(choice)
    driver.find_element("css selector", "#choose button").click()


def ids_of(driver: Any, name: str) -> str:
    return str(driver.find_element("id", name).text)


def has_text(driver: Any, name: str, text: str) -> bool:
    return ids_of(driver, name) == text


def shown(driver: Any) -> tuple[bytes | None, str, list[Any]]:
    """The picture, the text and the options of the question on the page."""

    def data(image: Any) -> bytes:
        return base64.b64decode(image.get_attribute("src").partition(",")[2])

    picture = driver.find_element("id", "picture")
    pictures = [data(it) for it in driver.find_elements("css selector", "#options img")]
    texts = [it.text for it in driver.find_elements("css selector", "#options span")]
    first = data(picture) if picture.is_displayed() else None
    return first, ids_of(driver, "asked"), pictures or texts


@pytest.mark.parametrize("way", ["keyboard", "mouse"])
def test_a_whole_exam_is_taken(driver: Any, address: str, tiny_bundle: Path, way: str) -> None:
    begin(driver, address)
    after = next_scores(Rule.regular)
    score = model_score = 0
    for number in range(4):
        place = f"Question {number + 1} of at most 4"
        wait(driver, partial(has_text, driver, "place", place))
        wait(driver, lambda: driver.find_elements("css selector", "#options li"))
        assert "%" not in ids_of(driver, "options")  # nothing of the model before the answer
        options = driver.find_elements("css selector", "#options button")
        asked = shown(driver)
        if way == "keyboard":
            driver.switch_to.active_element.send_keys("1" if number % 2 else "a")
        else:
            options[0].click()
        wait(driver, lambda: driver.find_element("id", "next").is_displayed())
        # What is shown is what the Python API says of the pictures that are shown.
        expected_K = clipstem.load(tiny_bundle).score(*asked)
        said = [it.text for it in driver.find_elements("css selector", "#options .said")]
        percent = [float(it.rpartition("· ")[2].removesuffix(" %")) for it in said]
        assert percent == pytest.approx(list(100 * expected_K), abs=0.06)  # one decimal is shown
        right = next(place for place, text in enumerate(said) if text.startswith("right"))
        assert "your choice" in said[0] and "the model's" in said[int(expected_K.argmax())]
        score = int(after[int(right == 0), score])
        model_score = int(after[int(right == int(expected_K.argmax())), model_score])
        assert (ids_of(driver, "score"), ids_of(driver, "model-score")) == (
            str(score),
            str(model_score),
        )
        go_on = driver.find_element("id", "next")
        assert driver.switch_to.active_element == go_on
        go_on.send_keys("\ue007") if way == "keyboard" else go_on.click()  # Enter
    wait(driver, lambda: driver.find_element("id", "end").is_displayed())
    assert (ids_of(driver, "end-score"), ids_of(driver, "end-model-score")) == (
        str(score),
        str(model_score),
    )
    assert driver.find_element("id", "json").get_attribute("download").startswith("exam-weather-")
    assert [it for it in driver.get_log("browser") if it["level"] == "SEVERE"] == []


def test_a_server_that_is_gone_is_said_on_the_page(driver: Any, tiny_bundle: Path) -> None:
    with server(tiny_bundle) as (_, address):
        begin(driver, address)
        wait(driver, lambda: driver.find_elements("css selector", "#options li"))
    driver.find_element("css selector", "#options button").click()
    wait(driver, lambda: driver.find_element("id", "problem").is_displayed())


def test_the_exam_page_has_both_themes_and_names_for_readers(driver: Any, address: str) -> None:
    driver.get(address)
    wait(driver, lambda: driver.find_elements("css selector", "#skill option"))
    for name in ("subject", "grade", "skill"):
        assert driver.find_element("id", name).accessible_name.lower() == name
    papers = []
    for theme in ("light", "dark"):
        screenshot.set_theme(driver, theme)
        begin(driver, address)
        wait(driver, lambda: driver.find_elements("css selector", "#options li"))
        body = driver.find_element("tag name", "body")
        papers.append(body.value_of_css_property("background-color"))
    assert papers == ["rgba(255, 255, 255, 1)", "rgba(21, 24, 28, 1)"]
    for image in driver.find_elements("css selector", "img"):
        assert image.get_attribute("alt")
    assert driver.find_element("id", "verdict").get_attribute("role") == "status"

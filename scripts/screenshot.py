"""Take the README's pictures: of a report, or of the exam page of a server that runs.

    python scripts/screenshot.py runs/quickstart/report/report.html docs/report.png
    python scripts/screenshot.py http://127.0.0.1:8000 docs/exam.png

Light on the left, dark on the right. Needs chromium, or another browser of its family; for the
exam page chromedriver too.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 960, 1500  # of each half, px
GAP = 24  # between the halves, px
SECTIONS = ("by-subject", "does-it-look-at-the-picture", "mistakes")  # in the dark half
EXAMS = {
    "light": {"subject": "technology", "grade": "grade-1", "skill": "find-the-battery"},
    "dark": {"subject": "math", "grade": "kindergarten", "skill": "name-the-shape"},
}
COLOURS = 256  # few enough for a small file


def browser() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def chromium(*arguments: str) -> str:
    """Run it without a window; returns what it prints. Ends the program where there is none."""
    found = browser()
    if found is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    # Its helpers may still write to the profile when it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command = [found, *options, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def screenshot(html: str, dark: bool) -> Image.Image:
    """What a reader sees first of a page."""
    with tempfile.TemporaryDirectory() as folder:
        page, file = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html)
        chromium(
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={file}",
            page.as_uri(),
        )
        with Image.open(file) as image:
            return image.convert("RGB")


def only(html: str, sections: Sequence[str]) -> str:
    """The page without what stands outside these sections."""
    shown = ",".join(f'section[aria-labelledby="{name}"]' for name in sections)
    style = f"<style>header,nav,h2,section{{display:none}}{shown}{{display:block}}</style>"
    return html.replace("</head>", f"{style}</head>")


def side_by_side(light: Image.Image, dark: Image.Image) -> Image.Image:
    """Both themes in one picture."""
    whole = Image.new("RGB", (light.width + GAP + dark.width, light.height), "white")
    whole.paste(light, (0, 0))
    whole.paste(dark, (light.width + GAP, 0))
    return whole


def of_report(html: str) -> Image.Image:
    return side_by_side(screenshot(html, dark=False), screenshot(only(html, SECTIONS), dark=True))


# ------------------------------------------------------------------------------ the exam page


@contextmanager
def driver(width: int = 760, height: int = 1000) -> Iterator[Any]:
    """A browser without a window that clicks and types."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(browser())
    for name in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{name}")
    options.add_argument(f"--window-size={width},{height}")
    made = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield made
    finally:
        made.quit()


def set_theme(browser: Any, theme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def of_exam(address: str) -> Image.Image:
    """A question with pictures and one with texts, each just answered."""
    from selenium.webdriver.support.ui import Select, WebDriverWait

    shots = []
    with driver() as page:

        def wait(css: str) -> None:
            WebDriverWait(page, 30).until(lambda _: page.find_elements("css selector", css))

        for theme, choices in EXAMS.items():
            set_theme(page, theme)
            page.get(address)
            wait("#skill option")
            for name, choice in choices.items():
                Select(page.find_element("id", name)).select_by_value(choice)
            page.find_element("css selector", "#choose button").click()
            wait("#options button")
            page.switch_to.active_element.send_keys("1")
            wait("#options .said")
            page.execute_script("scrollTo(0, 0)")
            shots.append(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB"))
    return side_by_side(*shots)


if __name__ == "__main__":
    page, out = sys.argv[1], Path(sys.argv[2])
    shot = of_exam(page) if page.startswith("http") else of_report(Path(page).read_text())
    shot.quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")

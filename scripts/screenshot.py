"""Take the README's picture of a report: its top in light, later sections in dark.

    python scripts/screenshot.py runs/quickstart/report/report.html docs/report.png

Needs chromium, or another browser of its family.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 960, 1500  # of each half, px
GAP = 24  # between the halves, px
SECTIONS = ("by-subject", "does-it-look-at-the-picture", "mistakes")  # in the dark half
COLOURS = 256  # few enough for a small file


def browser() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def chromium(*arguments: str) -> str:
    """Run it without a window; returns what it prints. Ends the program where there is none."""
    found = browser()
    if found is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as profile:
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


def side_by_side(html: str) -> Image.Image:
    """Both themes in one picture."""
    whole = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), "white")
    whole.paste(screenshot(html, dark=False), (0, 0))
    whole.paste(screenshot(only(html, SECTIONS), dark=True), (WIDTH + GAP, 0))
    return whole


if __name__ == "__main__":
    page, out = map(Path, sys.argv[1:])
    side_by_side(page.read_text()).quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")

"""The verb report, from files to a page."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from reporting import (
    MADE,
)

from clipstem.report import page
from clipstem.report.page import Report


def test_a_report_needs_neither_torch_nor_webdataset(two_models: list[Path]) -> None:
    code = (
        "import sys; from clipstem.report.__main__ import main; main()\n"
        "assert not {'torch', 'webdataset', 'lightning'} & set(sys.modules)"
    )
    arguments = ["predictions=[zero-shot.parquet,tuned.parquet]", "out=made", "exam.repeats=20"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "made/report.html"
    assert Path("made/report.html").stat().st_size > 50_000


def test_how_it_was_made_is_all_there(report_of_two: Report) -> None:
    text = page.markdown(replace(report_of_two, chapters=report_of_two.chapters[-1:]))
    assert f"```bash\n{MADE['command']}\n```" in text
    for line in ("| bins | 7 |", "| exam.rule | regular |", "| numpy | 2 |", "| seed | 0 |"):
        assert line in text
    assert len(re.findall(r"\| \S+\.parquet \| [0-9a-f]{64} \|", text)) == 4

"""The verb report, from files to a page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from reporting import MADE, config

from clipstem.config import CurateConfig
from clipstem.curate.__main__ import curate
from clipstem.question import ClipstemError
from clipstem.report import page
from clipstem.report.__main__ import build
from clipstem.report.page import Report
from clipstem.storage import file_sha256


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


def test_what_curation_found_stands_beside_the_answers(
    two_models: list[Path], drawn_data: Path
) -> None:
    curate(CurateConfig(data=str(drawn_data), out="curated", workers=1))
    shutil.copytree("curated", "again/curated")
    shutil.copytree("curated", "other")
    results = ["curated", "again/curated", "other"]
    report = build(config(two_models, results=results), MADE)
    (chapter,) = (it for it in report.chapters if it.title == "Beside the exam")
    assert [section.title for section in chapter.sections] == [
        f"What curation found: {name}" for name in results
    ]
    text = page.markdown(report)
    assert "What curation found" in text
    for name in results:
        assert f"| {name}/curate.json | {file_sha256(Path(name) / 'curate.json')} |" in text


def test_a_folder_without_results_is_named(two_models: list[Path]) -> None:
    message = r"'results': elsewhere holds 0 of rerank\.json, route\.json, curate\.json; expected"
    with pytest.raises(ClipstemError, match=message):
        build(config(two_models, results=["elsewhere"]), MADE)

"""The verb curate: faults that were planted are found, and what people see."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from curating import curated, data, table_of, with_folds
from preparing import row

from clipstem import weights
from clipstem.bank.stem import SCHEMA
from clipstem.config import BankConfig, CurateConfig, PrepareConfig, Source
from clipstem.curate.__main__ import main
from clipstem.curate.fingerprints import normalised
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.report import curate as report
from clipstem.report.page import Table
from clipstem.shards import Dataset, open_dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import plant

# ---------------------------------------------------------------------------- planted faults


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    """A drawn bank with planted faults, prepared, and what was planted."""
    folder = tmp_path_factory.mktemp("faulty")
    skills = ["weather", "find-the-solid", "mixing-screen-lights", "count-objects"]
    counts = {"train": 60, "valid": 20, "test": 0}
    from clipstem.bank.__main__ import write_bank

    write_bank(
        BankConfig(
            out=str(folder / "bank"), skills=skills, questions_per_skill=counts, workers=1, seed=3
        )
    )
    shares = {"wrong": 0.1, "duplicates": 0.05, "leaks": 0.05}
    truth = plant.plant(folder / "bank", folder / "planted", shares, seed=1)
    prepare(
        PrepareConfig(
            source=Source.stem,
            path=str(folder / "planted"),
            out=str(folder / "data"),
            tune_fraction=0,
            workers=1,
        )
    )
    return open_dataset(str(folder / "data")), truth


def test_planted_duplicates_and_leaks_are_found_and_no_others(
    faulty: tuple[Dataset, dict[str, Any]], tmp_path: Path
) -> None:
    dataset, truth = faulty
    curated(dataset, tmp_path / "curated")
    table = table_of(tmp_path / "curated")
    found = {
        kind: {id for id, it in table.items() if kind in it["findings"]}
        for kind in ("duplicate", "leak")
    }
    assert found["duplicate"] == {id for pair in truth["duplicates"] for id in pair}
    assert found["leak"] == {train for train, _ in truth["leaks"]}
    assert len(truth["duplicates"]) == len(truth["leaks"]) == 12


def test_planting_makes_what_it_says(faulty: tuple[Dataset, dict[str, Any]]) -> None:
    dataset, truth = faulty
    folder = Path(dataset.location).parent
    before, after = (
        plant.rows_of(folder / "bank", "train"),
        plant.rows_of(folder / "planted", "train"),
    )
    assert len(after) == len(before) + 24
    wrong = [
        f"train-{place}"
        for place, (one, other) in enumerate(zip(before, after, strict=False))
        if one["answer_idx"] != other["answer_idx"]
    ]
    assert wrong == [id for id in truth["wrong"] if int(id.split("-")[1]) < len(before)]
    assert len(wrong) == round(0.1 * len(before))
    for copy, original in truth["duplicates"]:
        one, other = (after[int(id.split("-")[1])] for id in (copy, original))
        assert one["answer_idx"] == other["answer_idx"] and one["skill"] == other["skill"]
        assert normalised(one["problem"]) == normalised(other["problem"])
        assert one["problem_pic"] is None or one["problem_pic"] != other["problem_pic"]
    assert SCHEMA.names == pq.read_schema(next((folder / "planted/data").iterdir())).names


# ---------------------------------------------------------------------------- what people see


def test_the_command_prints_what_it_found_and_writes_it(
    faulty: tuple[Dataset, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, _ = faulty
    out = tmp_path / "curated"
    given = [f"data={dataset.location}", f"out={out}", "workers=1"]
    monkeypatch.setattr("sys.argv", ["curate", *given])
    main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "24 of" not in printed and "12 of 264 questions have the weight 0" in printed
    assert "labels were not judged" in printed and "sheet.html" in printed
    assert {path.name for path in out.iterdir()} == {
        "curate.json",
        "review.jsonl",
        "sheet.html",
        "weights.parquet",
    }
    folds = tmp_path / "folds"
    arguments = ["curate", f"data={dataset.location}", f"out={folds}", "folds=2", "workers=1"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert f"{folds}/fold-2.parquet: train with weights=" in capsys.readouterr().out


def test_copies_are_in_one_fold(faulty: tuple[Dataset, dict[str, Any]], tmp_path: Path) -> None:
    dataset, truth = faulty
    left_out = [
        {id for id, weight in weights.read(path).items() if weight == 0}
        for path in with_folds(dataset, tmp_path, folds=4)
    ]
    fold_of = {id: fold for fold, ids in enumerate(left_out) for id in ids}
    assert all(fold_of[one] == fold_of[other] for one, other in truth["duplicates"])
    assert sorted(map(len, left_out))[0] >= 0.8 * len(fold_of) / 4


def test_the_sheet_shows_questions_beside_their_twins_and_asks_nobody(
    faulty: tuple[Dataset, dict[str, Any]], tmp_path: Path
) -> None:
    dataset, _ = faulty
    made = curated(dataset, tmp_path / "curated", shown=2)
    page = (tmp_path / "curated/sheet.html").read_text()
    assert "default-src 'none'" in page and "prefers-color-scheme:dark" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/webp;base64") >= 4 and page.count('class="mistake"') == 8
    assert "the same question again" in page
    shown = report.section(report.read(tmp_path / "curated/curate.json"))
    assert shown == report.section(made)
    assert [part.caption for part in shown.parts if isinstance(part, Table)] == [
        "Findings",
        "Options that give the answer away",
        "Balance over skills and grades",
    ]
    none = curated(dataset, tmp_path / "none", shown=0)
    assert none.findings == made.findings
    assert 'class="mistake"' not in (tmp_path / "none/sheet.html").read_text()


def test_what_questions_say_is_text_on_the_sheet(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    rows = [row(n, problem=script, skill=script, options=[script, "b"], answer=0) for n in range(2)]
    curated(data(tmp_path, rows), tmp_path / "curated")
    page = (tmp_path / "curated/sheet.html").read_text()
    assert script not in page and "&lt;script&gt;alert(1)" in page


def test_data_without_train_is_refused(tmp_path: Path) -> None:
    dataset = data(tmp_path, [row(0, split="valid")])
    with pytest.raises(ClipstemError, match=r"has no split 'train' \(it has valid\)"):
        curated(dataset, tmp_path / "curated")


def test_an_existing_folder_stays_as_it_is(lots: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(ClipstemError, match="never overwritten"):
        curated(lots, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "conf key 'folds': 1 is below 2"),
        ({"balance": 1.5}, "conf key 'balance': 1.5 is not from 0 to 1"),
        ({"folds": 3, "predictions": ["p"]}, "give one of them"),
        ({"unseen": True}, "needs predictions="),
        ({"predictions": ["p", "q", "p"]}, "conf key 'predictions': p is given twice"),
        ({"shown": -1}, "'shown': -1 is below 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        CurateConfig(data="d", out="o", **changes)


def test_curation_runs_where_torch_is_not_installed(lots: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom clipstem.curate.__main__ import main; main()"
    )
    arguments = [f"data={lots.location}", f"out={tmp_path / 'out'}", "workers=1"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    assert (tmp_path / "out/weights.parquet").is_file()

"""The bank as parquet files in STEM's schema: prepared, they are the same questions as drawn."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipstem.bank import SKILLS, draw
from clipstem.bank.__main__ import write_bank
from clipstem.bank.stem import FIRST_INDEX, SCHEMA, bank_splits, stem_row
from clipstem.config import BankConfig, PrepareConfig, Source
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Kind, Question
from clipstem.shards import open_dataset

COUNTS = {"train": 2, "valid": 1, "test": 1}


def questions_of(folder: Path) -> dict[tuple[str, int], Question]:
    """Every question without its id, by split and row."""
    dataset = open_dataset(str(folder))
    return {
        (split, question.row): replace(question, id="")
        for split in dataset.manifest.questions
        for question in dataset.read(split, range(dataset.size(split)))
    }


def test_the_written_bank_is_the_drawn_one(tmp_path: Path) -> None:
    """All skills, both ways: every text, picture, answer and row is the same."""
    bank, stem, drawn = tmp_path / "bank", tmp_path / "stem", tmp_path / "drawn"
    count = write_bank(BankConfig(out=str(bank), questions_per_skill=COUNTS, rows_per_file=100))
    common = {"tune_fraction": 0.0, "max_skipped_fraction": 0.0, "workers": 1}
    prepare(PrepareConfig(out=str(stem), source=Source.stem, path=str(bank), **common))  # type: ignore[arg-type]
    prepare(PrepareConfig(out=str(drawn), questions_per_skill=COUNTS, **common))  # type: ignore[arg-type]
    questions = questions_of(stem)
    assert len(questions) == count == 4 * len(SKILLS)
    assert questions == questions_of(drawn)


def test_the_files_are_as_stem_has_them(tmp_path: Path) -> None:
    out, skills = tmp_path / "bank", sorted(SKILLS)[:3]
    config = BankConfig(
        out=str(out), skills=skills, questions_per_skill={"train": 5, "test": 1}, rows_per_file=6
    )
    assert write_bank(config) == 18
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    trains = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert files == ["data/test-00000-of-00001.parquet", *trains]
    tables = [pq.read_table(out / name) for name in trains]
    assert [table.num_rows for table in tables] == [6, 6, 3]
    assert all(table.schema.equals(SCHEMA) for table in tables)
    assert tables[0]["skill"].to_pylist() == skills * 2
    with pytest.raises(ClipstemError, match="bank exists and is never overwritten"):
        write_bank(config)


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    names = sorted(SKILLS)[:4]
    for workers in (1, 2):
        write_bank(
            BankConfig(
                out=str(tmp_path / str(workers)),
                skills=names,
                questions_per_skill={"train": 4, "valid": 4},
                rows_per_file=5,
                workers=workers,
            )
        )
    files = sorted((tmp_path / "1" / "data").iterdir())
    assert len(files) == 8
    for file in files:
        assert file.read_bytes() == (tmp_path / "2" / "data" / file.name).read_bytes()


def test_splits_never_draw_the_same_number() -> None:
    name = next(iter(SKILLS))
    train, valid, test = bank_splits([name], dict.fromkeys(FIRST_INDEX, 9), 0)
    for split in (valid, test):
        assert split.question(0) != train.question(0)
    assert train.question(8) == replace(draw(SKILLS[name], 0, 8), row=8)
    assert valid.question(8) == replace(draw(SKILLS[name], 0, 10**9 + 8), row=8)


def test_every_kind_has_its_columns() -> None:
    (split,) = bank_splits([], {"train": 1}, 0)
    drawn = [split.question(number) for number in range(len(split))]
    kinds = {question.kind: stem_row(question) for question in drawn}
    assert {(kind, row["pic_choice"], row["pic_prob"]) for kind, row in kinds.items()} >= {
        (Kind.TEXT_OPTIONS, False, True),
        (Kind.PICTURE_OPTIONS, True, False),
        (Kind.PICTURE_OPTIONS_ON_PICTURE, True, True),
    }
    for row in kinds.values():
        assert (row["problem_pic"] is not None, row["choices_pic"] is not None) == (
            row["pic_prob"],
            row["pic_choice"],
        )
        assert (row["choices"] is None) == row["pic_choice"]


def test_unknown_skills_and_no_questions_are_refused(tmp_path: Path) -> None:
    name = next(iter(SKILLS))
    with pytest.raises(ClipstemError, match=rf"has no '{name}s'; did you mean '{name}'\?"):
        write_bank(BankConfig(out=str(tmp_path / "bank"), skills=[f"{name}s"]))
    with pytest.raises(ClipstemError, match="asks for no question"):
        write_bank(BankConfig(out=str(tmp_path / "bank"), questions_per_skill={}))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipstem.bank", f"out={tmp_path}/bank", "workers=1"]
    counts = "questions_per_skill={train: 1, valid: 0, test: 0}"
    run = subprocess.run([*command, counts], capture_output=True, text=True, check=True)
    assert run.stdout == (
        f"{len(SKILLS)} questions in {tmp_path}/bank; next: "
        f"python -m clipstem.prepare source=stem path={tmp_path}/bank out=…\n"
    )

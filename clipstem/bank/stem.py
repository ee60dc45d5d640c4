"""The bank as splits of numbered rows, and those rows as parquet files in STEM's schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipstem.bank import SKILLS, draw
from clipstem.question import ClipstemError, Kind, Picture, Question

SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("grade", pa.string()),
        ("skill", pa.string()),
        ("pic_choice", pa.bool_()),
        ("pic_prob", pa.bool_()),
        ("problem", pa.string()),
        ("problem_pic", pa.binary()),
        ("choices", pa.list_(pa.string())),
        ("choices_pic", pa.list_(pa.binary())),
        ("answer_idx", pa.int64()),
    ]
)
"""STEM's ten columns."""

FIRST_INDEX = {"train": 0, "valid": 10**9, "test": 2 * 10**9}
"""A skill's questions of different splits have different numbers, whatever their counts."""

ROW_GROUP = 256  # questions held in memory while a file is written


@dataclass(frozen=True)
class BankSplit:
    """`questions_per_skill` questions of each skill, row by row in turn."""

    split: str
    skills: tuple[str, ...]
    questions_per_skill: int
    seed: int

    def __len__(self) -> int:
        return len(self.skills) * self.questions_per_skill

    def question(self, row: int) -> Question:
        """Question number `row` of the split, drawn anew."""
        index, place = divmod(row, len(self.skills))
        skill = SKILLS[self.skills[place]]
        return replace(draw(skill, self.seed, FIRST_INDEX[self.split] + index), row=row)


def bank_splits(
    skills: Sequence[str], questions_per_skill: dict[str, int], seed: int
) -> list[BankSplit]:
    """The splits with at least one question; no `skills` means all of them.

    Raises:
        ClipstemError: for a skill the bank does not have, naming the nearest.
    """
    for name in skills:
        if name not in SKILLS:
            near = difflib.get_close_matches(name, SKILLS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(SKILLS)}"
            raise ClipstemError(f"conf key 'skills': the bank has no '{name}'{hint}")
    names = tuple(dict.fromkeys(skills)) or tuple(SKILLS)
    splits = [split for split in FIRST_INDEX if questions_per_skill.get(split)]
    return [BankSplit(split, names, questions_per_skill[split], seed) for split in splits]


@dataclass(frozen=True)
class BankFile:
    """One parquet file of a split: rows `first` up to `stop`."""

    split: BankSplit
    name: str
    first: int
    stop: int


def bank_files(splits: Sequence[BankSplit], rows_per_file: int) -> list[BankFile]:
    """The files that hold the splits, named as STEM's are."""
    files = []
    for split in splits:
        firsts = range(0, len(split), rows_per_file)
        for number, first in enumerate(firsts):
            name = f"{split.split}-{number:05d}-of-{len(firsts):05d}.parquet"
            files.append(BankFile(split, name, first, min(first + rows_per_file, len(split))))
    return files


def write_bank_file(folder: Path, file: BankFile) -> int:
    """Draw and write a file's questions; returns how many."""
    with pq.ParquetWriter(folder / file.name, SCHEMA, compression="zstd") as writer:
        for first in range(file.first, file.stop, ROW_GROUP):
            rows = range(first, min(first + ROW_GROUP, file.stop))
            stem_rows = [stem_row(file.split.question(row)) for row in rows]
            writer.write_table(pa.Table.from_pylist(stem_rows, SCHEMA))
    return file.stop - file.first


def stem_row(question: Question) -> dict[str, Any]:
    """A question as a row of STEM's schema, which has no id."""
    pictures = question.kind in (Kind.PICTURE_OPTIONS, Kind.PICTURE_OPTIONS_ON_PICTURE)
    return {
        "subject": question.subject,
        "grade": question.grade,
        "skill": question.skill,
        "pic_choice": pictures,
        "pic_prob": question.picture is not None,
        "problem": question.problem,
        "problem_pic": None if question.picture is None else question.picture.data,
        "choices": None if pictures else list(question.options),
        "choices_pic": list(_data(question.options)) if pictures else None,
        "answer_idx": question.answer,
    }


def _data(options: tuple[str, ...] | tuple[Picture, ...]) -> Iterator[bytes]:
    return (option.data for option in options if isinstance(option, Picture))

"""Predictions files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipstem.prediction import METADATA_KEY
from hostile.pictures import OTHER
from hostile.stem import column
from hostile.table import Accepted, Make, Refused, kinds, replaced, rewrite

PREDICTIONS = "p.parquet"


def clean_predictions(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    count = 8
    table = pa.table(
        {
            "id": [f"q{i}" for i in range(count)],
            "subject": ["math", "science"] * 4,
            "grade": ["grade-1"] * count,
            "skill": ["s", "t"] * 4,
            "answer": [i % 2 for i in range(count)],
            "probs": [[0.75, 0.25]] * count,
        }
    )
    pq.write_table(table, folder / PREDICTIONS)


def predictions(change: Callable[[pa.Table], pa.Table], **options: Any) -> Make:
    def make(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / PREDICTIONS)), folder / PREDICTIONS, **options)

    return make


def values(name: str, *others: Any) -> Make:
    """A maker: the first rows have other values."""

    def change(table: pa.Table) -> pa.Table:
        return column(name, pa.array([*others, *table[name].to_pylist()[len(others) :]]))(table)

    return predictions(change)


def metadata(text: bytes) -> Make:
    return predictions(lambda table: table.replace_schema_metadata({METADATA_KEY: text}))


def repeated_skill(folder: Path) -> None:
    """100,000 rows, and in each the one skill of 10 MB that the file has."""
    count = 100_000
    long = pa.array(["x" * 10 * 2**20])
    skill = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), long)
    same = {"subject": ["a"] * count, "grade": ["g"] * count, "skill": skill}
    rows = {"id": [f"q{i}" for i in range(count)], "answer": [0] * count, "probs": [[1.0]] * count}
    options = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({**same, **rows}), folder / PREDICTIONS, **options)


def probability_bomb(folder: Path) -> None:
    """One row with 16,777,216 probabilities, in a few kilobytes."""
    halves = pa.array([0.0] * 2**20)
    flat_ = pa.concat_arrays([halves] * 16)
    probs = pa.ListArray.from_arrays(pa.array([0, len(flat_)], pa.int32()), flat_)
    same = {"id": ["q"], "subject": ["a"], "grade": ["g"], "skill": ["s"], "answer": [0]}
    pq.write_table(pa.table({**same, "probs": probs}), folder / PREDICTIONS, compression="zstd")


def wide_row(folder: Path) -> None:
    """One row with 100,000 options among 5,000 with one: a table of 500,000,000 cells."""
    count = 5000
    probs = [[1.0]] * (count - 1) + [[1e-5] * 100_000]
    same = {"subject": ["a"] * count, "grade": ["g"] * count, "skill": ["s"] * count}
    ids = [f"q{i}" for i in range(count)]
    pq.write_table(
        pa.table({"id": ids, **same, "answer": [0] * count, "probs": probs}), folder / PREDICTIONS
    )


NO_FILE = Refused("is not a predictions file")
SCRIPT = "<script>alert(1)</script>"

kinds(
    "predictions",
    ("no parquet", rewrite(PREDICTIONS, lambda _: b"0\n1\n"), NO_FILE),
    ("file that is cut off", rewrite(PREDICTIONS, lambda data: data[:-200]), NO_FILE),
    ("named pipe", replaced(PREDICTIONS, os.mkfifo), Refused("no such predictions file")),
    (
        "column is missing",
        predictions(lambda t: t.drop_columns(["probs"])),
        Refused("lacks the columns probs"),
    ),
    ("column stands there twice", predictions(lambda t: t.append_column("id", t["id"])), NO_FILE),
    ("no rows", predictions(lambda t: t.slice(0, 0)), Refused("none of the 0 questions")),
    (
        "ids that are no UTF-8",
        predictions(column("id", pa.array([b"\xff%d" % i for i in range(8)]).view(pa.string()))),
        NO_FILE,
    ),
    ("ids that come twice", values("id", "q1"), Refused("stands in 2 rows")),
    (
        "answers that are texts",
        predictions(column("answer", pa.array(["a"] * 8))),
        Refused("column 'answer' is string"),
    ),
    (
        "answer that is not among the options",
        values("answer", 9),
        Refused("is not among the 2 options"),
    ),
    (
        "probabilities that are NaN",
        values("probs", [float("nan"), 1.0]),
        Refused("expected numbers from 0 to 1"),
    ),
    ("probabilities that do not sum to 1", values("probs", [3.0, 2.0]), Refused("sum to 5")),
    (
        "probabilities below 0",
        values("probs", [-1.0, 2.0]),
        Refused("expected numbers from 0 to 1"),
    ),
    ("no probabilities in a row", values("probs", []), Refused("is not among the 0 options")),
    ("null probabilities", values("probs", None), Refused("column 'probs' is")),
    (
        "other lengths than num_options says",
        predictions(lambda t: t.append_column("num_options", pa.array([3] * 8))),
        Refused("has 2 values for 3 options"),
    ),
    ("no metadata", predictions(lambda t: t.replace_schema_metadata(None)), Accepted()),
    ("metadata that are no JSON", metadata(b"{"), Refused("are not a JSON object")),
    ("metadata that nest 100,000 deep", metadata(b"[" * 100_000), Refused("are not a JSON object")),
    (
        "metadata with a temperature that is a text",
        metadata(b'{"temperature": "warm"}'),
        Refused("temperature in the metadata is 'warm'"),
    ),
    (
        "metadata with training questions that are a list",
        metadata(b'{"train_questions_of_skill": [1]}'),
        Refused("train_questions_of_skill in the metadata is"),
    ),
    (
        "metadata with training questions that are texts",
        metadata(b'{"train_questions_of_skill": {"s": "9"}}'),
        Refused("expected a number of questions"),
    ),
    (
        "metadata with a run that is a number",
        metadata(b'{"run": 7}'),
        Refused("run in the metadata is 7"),
    ),
    (
        "metadata with HTML",
        metadata(json.dumps({"model": SCRIPT, "run": SCRIPT, SCRIPT: SCRIPT}).encode()),
        OTHER,
    ),
    (
        "texts with HTML",
        values("skill", SCRIPT, SCRIPT, "</style><img src=x onerror=alert(1)>"),
        OTHER,
    ),
    (
        "texts with formulas for the charts",
        values("subject", "$\\frac{", "$x^{$", "a_b^c\\"),
        OTHER,
    ),
    ("skill of 10 MB that stands in every row", repeated_skill, Refused("expands from")),
    ("16,777,216 probabilities in a row", probability_bomb, Refused("expands from")),
    ("one row with 100,000 options", wide_row, Refused("expected at most 1,000 options")),
)

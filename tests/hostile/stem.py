"""Parquet files in STEM's schema."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from preparing import encoded, png_header, stem

from clipstem.bank.stem import SCHEMA
from hostile.table import EVIL, Accepted, Make, Refused, Skipped, endless, kinds, replaced, rewrite

STEM_FILE = "train-00000.parquet"
GOOD_ROWS = 3


def clean_stem(folder: Path) -> None:
    write_stem(folder, [stem(i) for i in range(GOOD_ROWS)])


def write_stem(
    folder: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA, **kw: Any
) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / STEM_FILE, **kw)


def stem_row(**changes: Any) -> Make:
    """A maker: one more row, which is bad."""
    rows = [stem(i) for i in range(GOOD_ROWS)]
    return lambda folder: write_stem(folder, [*rows, stem(GOOD_ROWS, **changes)])


def stem_table(
    change: Callable[[pa.Table], pa.Table], rows: int = GOOD_ROWS + 1, **kw: Any
) -> Make:
    def make(folder: Path) -> None:
        table = pa.Table.from_pylist([stem(i) for i in range(rows)], SCHEMA)
        pq.write_table(change(table), folder / STEM_FILE, **kw)

    return make


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def not_utf8(table: pa.Table) -> pa.Table:
    problems = [f"What, {i}?".encode() for i in range(GOOD_ROWS)] + [b"\xff\xfe"]
    return column("problem", pa.array(problems).view(pa.string()))(table)


def picture_bomb(folder: Path) -> None:
    """A value of 40 MB that stands in the file once and in 32 rows: 1.3 GB."""
    table = pa.Table.from_pylist([stem(i) for i in range(32)], SCHEMA)
    large = encoded(0) + bytes(40 * 2**20)
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 32, pa.int32()), pa.array([large]))
    table = column("problem_pic", same)(table)
    options = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(table, folder / STEM_FILE, **options)


def null_rows(folder: Path) -> None:
    """Four million rows of nothing, in a few kilobytes."""
    table = pa.table({field.name: pa.nulls(1_000_000, field.type) for field in SCHEMA})
    with pq.ParquetWriter(folder / STEM_FILE, SCHEMA, compression="zstd") as writer:
        for _ in range(4):
            writer.write_table(table)


def expanding_text(folder: Path) -> None:
    """A text of 256 MB of which the file needs thirty kilobytes."""
    text = pa.array([" " * 2**28], pa.large_string())
    table = column("problem", text)(pa.Table.from_pylist([stem(0)], SCHEMA))
    pq.write_table(
        table, folder / STEM_FILE, compression="zstd", use_dictionary=False, write_statistics=False
    )


def extension_type(folder: Path) -> None:
    """A column that an old pyarrow unpickles (CVE-2023-47248)."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": EVIL}
    field = pa.field("problem", pa.string(), metadata=metadata)
    clean_stem(folder)
    table = pq.read_table(folder / STEM_FILE)
    schema = SCHEMA.set(SCHEMA.get_field_index("problem"), field)
    pq.write_table(table.cast(schema), folder / STEM_FILE)


def deep_type(folder: Path) -> None:
    kind: pa.DataType = pa.string()
    for _ in range(90):
        kind = pa.list_(kind)
    table = pa.Table.from_pylist([stem(i) for i in range(GOOD_ROWS)], SCHEMA)
    pq.write_table(column("choices", pa.nulls(GOOD_ROWS, kind))(table), folder / STEM_FILE)


kinds(
    "stem",
    (
        "folder without parquet",
        lambda folder: (folder / STEM_FILE).unlink(),
        Refused("no parquet file is under"),
    ),
    (
        "file that is no parquet",
        rewrite(STEM_FILE, lambda _: b"PAR1 no PAR1"),
        Refused("is no parquet file"),
    ),
    ("file that is empty", rewrite(STEM_FILE, lambda _: b""), Refused("is no parquet file")),
    (
        "file that is cut off",
        rewrite(STEM_FILE, lambda data: data[: len(data) // 2]),
        Refused("is no parquet file"),
    ),
    (
        "name of a column that is no UTF-8",
        rewrite(STEM_FILE, lambda data: data.replace(b"grade", b"gr\xdfde")),
        Refused("is no parquet file"),
    ),
    (
        "file with overwritten pages",
        rewrite(STEM_FILE, lambda data: data[:4] + bytes(400) + data[404:]),
        Refused("is damaged|is no parquet file"),
    ),
    ("file that is a named pipe", replaced(STEM_FILE, os.mkfifo), Refused("is no parquet file")),
    ("file that is an endless device", replaced(STEM_FILE, endless), Refused("is no parquet file")),
    (
        "file of no split",
        lambda folder: (folder / STEM_FILE).rename(folder / "dev.parquet"),
        Refused("must start with its split"),
    ),
    (
        "column is missing",
        stem_table(lambda t: t.drop_columns(["skill"])),
        Refused("lacks the columns skill"),
    ),
    (
        "column stands there twice",
        stem_table(lambda t: t.append_column("skill", t["skill"])),
        Refused("two columns of one name"),
    ),
    (
        "column of another nested type",
        stem_table(column("choices", pa.array([[["a"]]] * (GOOD_ROWS + 1)))),
        Refused("column choices is list<"),
    ),
    ("column nested 90 deep", deep_type, Refused("column choices is|is no parquet file")),
    ("column that pyarrow once unpickled", extension_type, Accepted()),
    (
        "no rows at all",
        stem_table(lambda t: t.slice(0, 0)),
        Refused("source is empty|no question in it"),
    ),
    ("4,000,000 rows of nothing", null_rows, Refused("rows in .* bytes")),
    ("text of 256 MB in 30 KB", expanding_text, Refused("expands from")),
    (
        "picture of 40 MB that stands in every row",
        picture_bomb,
        Refused("32 × picture: has … bytes"),
    ),
    ("null problem", stem_row(problem=None), Skipped("problem", "is null")),
    ("empty problem", stem_row(problem=" \n"), Skipped("problem", "is empty")),
    (
        "problem of 1 MB",
        stem_row(problem="word " * 200_000),
        Skipped("problem", "has 1,000,000 characters; expected at most 20,000"),
    ),
    (
        "problem of one word of 10,000 letters",
        stem_row(problem="x" * 10_000),
        Skipped("problem", "has a word that is too long"),
    ),
    (
        "problem that is no UTF-8",
        stem_table(not_utf8),
        Skipped("problem", "is b'\\xff\\xfe'; expected a text in UTF-8"),
    ),
    (
        "answer out of range",
        stem_row(answer_idx=7),
        Skipped("answer", "7 is not among the 2 options"),
    ),
    (
        "answer far below 0",
        stem_row(answer_idx=-(2**62)),
        Skipped("answer", "-4611686018427387904 is not among"),
    ),
    ("no options", stem_row(choices=None), Skipped("options", "there are none")),
    ("an option that is null", stem_row(choices=["a", None]), Skipped("options[1]", "is null")),
    (
        "100,000 options",
        stem_row(choices=["a"] * 100_000),
        Skipped("choices", "has 100,000 options; expected at most 1,000"),
    ),
    (
        "texts and pictures as options",
        stem_row(choices_pic=[encoded(0)]),
        Skipped("options", "2 texts are mixed with 1 pictures"),
    ),
    (
        "picture bytes that are none",
        stem_row(problem_pic=b"<html>404</html>"),
        Skipped("picture", "is not a picture"),
    ),
    (
        "picture bytes that are a pickle",
        stem_row(problem_pic=EVIL),
        Skipped("picture", "is not a picture"),
    ),
    (
        "picture with more pixels than any screen",
        stem_row(problem_pic=png_header(60_000, 60_000)),
        Skipped("picture", "has 3,600,000,000 pixels"),
    ),
)

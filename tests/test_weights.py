"""Files of weights: what is written is read, and what is wrong is named."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipstem import weights
from clipstem.question import ClipstemError


@given(st.dictionaries(st.text(min_size=1), st.floats(0, allow_infinity=False)))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, known: dict[str, float]
) -> None:
    known = {id: weight for id, weight in known.items() if id.isprintable()}
    path = tmp_path_factory.mktemp("weights") / "w.parquet"
    table = pa.table(
        {
            "id": pa.array(list(known), pa.string()),
            "reason": pa.array(["looked at"] * len(known), pa.string()),
            "weight": pa.array(list(known.values()), pa.float64()),
        }
    )
    weights.write(path, table)
    assert weights.read(path) == known


def test_whole_numbers_and_other_columns_of_anybody_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    pq.write_table(pa.table({"weight": [2, 0], "why": [None, "?"], "id": ["a", "b"]}), path)
    assert weights.read(path) == {"a": 2.0, "b": 0.0}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an id twice": ({"id": ["a", "b", "a"]}, r"the id 'a' stands in 2 rows; expected one row"),
    "below 0": ({"weight": [1.0, -0.5, 1.0]}, r"row 1: question 'b' has the weight -0\.5; expecte"),
    "NaN": ({"weight": [1.0, 1.0, math.nan]}, r"row 2: question 'c' has the weight nan; expected"),
    "infinite": ({"weight": [math.inf, 1.0, 1.0]}, r"row 0: question 'a' has the weight inf; expe"),
    "nulls": ({"weight": [1.0, None, 1.0]}, r"column 'weight' is double with 1 nulls; expected do"),
    "no id": ({"id": ["a", None, "c"]}, r"column 'id' is string with 1 nulls; expected string"),
    "texts": ({"weight": ["1", "1", "1"]}, r"column 'weight' is string with 0 nulls; expected dou"),
    "numbers as ids": ({"id": [1, 2, 3]}, r"column 'id' is int64 with 0 nulls; expected string"),
    "lists": ({"weight": [[1.0]] * 3}, r"column 'weight' is list<.*expected double"),
}


@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_and_neither_read_nor_written(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    table = pa.table({"id": ["a", "b", "c"], "weight": [1.0, 0.0, 2.5], **change})
    with pytest.raises(ClipstemError, match=match):
        weights.write(tmp_path / "new.parquet", table)
    assert not (tmp_path / "new.parquet").exists()
    pq.write_table(table, tmp_path / "w.parquet")
    with pytest.raises(ClipstemError, match=rf"w\.parquet: {match}|w\.parquet: .*{match}"):
        weights.read(tmp_path / "w.parquet")


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    with pytest.raises(ClipstemError, match=r"w\.parquet: there is no such file of weights"):
        weights.read(path)
    os.mkfifo(path)
    with pytest.raises(ClipstemError, match="there is no such file of weights"):
        weights.read(path)
    path.unlink()
    path.write_bytes(b"id,weight\na,1\n")
    with pytest.raises(ClipstemError, match="is not a file of weights"):
        weights.read(path)
    pq.write_table(pa.table({"id": ["a"], "loss": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(ClipstemError, match=r"it lacks the columns weight; expected id and weight"):
        weights.read(tmp_path / "other.parquet")


def test_a_file_that_expands_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    """100,000 rows, and in each the one id of 10 MB that the file has."""
    long = pa.array(["x" * 10 * 2**20])
    id = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), long)
    table = pa.table({"id": id, "weight": [1.0] * 100_000})
    options = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(table, tmp_path / "w.parquet", **options)
    with pytest.raises(ClipstemError, match="expands from"):
        weights.read(tmp_path / "w.parquet")


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "weight": [1.0]})
    weights.write(tmp_path / "w.parquet", table)
    with pytest.raises(ClipstemError, match="exists and is never overwritten"):
        weights.write(tmp_path / "w.parquet", table)

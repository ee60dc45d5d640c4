"""What the readers of each format refuse stands in the tables of `tests/hostile`."""

from __future__ import annotations

import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from clipstem import parquet


def test_a_file_in_memory_is_read_and_python_owns_no_part_of_it() -> None:
    written = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b", "b"], "row": [1, 2, 3]}), written)
    data = written.getvalue()
    references = sys.getrefcount(data)
    source = parquet.in_memory(data)
    assert sys.getrefcount(data) == references
    table, names = parquet.read(source, len(data), ["id", "more"])
    assert table.to_pydict() == {"id": ["a", "b", "b"]} and names == ["id", "row"]

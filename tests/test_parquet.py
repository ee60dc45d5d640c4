"""What the readers of each format refuse stands in the tables of `tests/hostile`."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipstem import parquet
from clipstem.question import ClipstemError


def test_a_file_in_memory_is_read_and_python_owns_no_part_of_it() -> None:
    written = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b", "b"], "row": [1, 2, 3]}), written)
    data = written.getvalue()
    references = sys.getrefcount(data)
    source = parquet.in_memory(data)
    assert sys.getrefcount(data) == references
    table, names = parquet.read(source, len(data), ["id", "more"])
    assert table.to_pydict() == {"id": ["a", "b", "b"]} and names == ["id", "row"]


FLIPPED = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from clipstem import parquet
from clipstem.question import ClipstemError

whole = open(sys.argv[1], "rb").read()
refused = 0
for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole) - 8):
    for bit in range(8):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        source = pa.BufferReader(bytes(changed))
        try:
            parquet.read(source, len(whole), ["texts", "numbers"])
        except ClipstemError:
            refused += 1
print(refused)
"""


def test_no_footer_ends_the_process(tmp_path: Path) -> None:
    """pyarrow 26 calls `std::terminate` where the metadata of a chunk contradict the schema."""
    made = pa.table({"texts": [["a", "b"], []] * 3, "numbers": range(6)})
    pq.write_table(made, tmp_path / "made.parquet", row_group_size=4)
    command = [sys.executable, "-c", FLIPPED, str(tmp_path / "made.parquet")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100


@given(
    st.lists(st.lists(st.text(max_size=3), max_size=3), min_size=1, max_size=20),
    st.integers(1, 7),
    st.sampled_from(["none", "zstd"]),
)
def test_row_groups_are_those_that_pyarrow_sees(
    texts: list[list[str]], rows: int, compression: str
) -> None:
    out = pa.BufferOutputStream()
    nested = [{"a": len(it), "b": [0.5]} for it in texts]
    table = pa.table({"texts": texts, "numbers": range(len(texts)), "nested": nested})
    pq.write_table(table, out, row_group_size=rows, compression=compression)
    meta = pq.ParquetFile(out.getvalue()).metadata
    found = parquet.row_groups(pa.BufferReader(out.getvalue()))
    assert len(found) == meta.num_row_groups
    for number, group in enumerate(found):
        theirs = meta.row_group(number)
        values: Counter[str] = Counter()
        expanded_bytes: Counter[str] = Counter()
        for column in range(meta.num_columns):
            chunk = theirs.column(column)
            name = chunk.path_in_schema.split(".")[0]
            values[name] += chunk.num_values
            expanded_bytes[name] += chunk.total_uncompressed_size
        assert group == parquet.RowGroup(theirs.num_rows, values, expanded_bytes)


ENDLESS = b"\x19\xf7" + b"\xff" * 8 + b"\x01"  # a list of doubles
NO_FOOTERS = [b"", b"\x49", b"\x49\x1c" + b"\x1c" * 5000, b"\x49\x15\x02", b"\x4b", ENDLESS]


@pytest.mark.parametrize("footer", NO_FOOTERS)
def test_a_footer_that_is_none_is_refused(footer: bytes) -> None:
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ClipstemError, match="has a footer that is none"):
        parquet.row_groups(pa.BufferReader(data))

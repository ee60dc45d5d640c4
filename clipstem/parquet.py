"""Parquet files of anybody, read whole: what a small file says that it expands to has a bound."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipstem.question import ClipstemError

SMALL_BYTES = 64 * 2**20  # so much any file may expand to,
MOST_TIMES = 100  # and a larger one to so many times its own size
ROWS_A_BYTE = 8  # rows that differ from each other need more room than that


def refuse_bomb(meta: pq.FileMetaData, file_bytes: int, columns: Collection[str]) -> None:
    """Refuse a file whose columns say they expand beyond the bound, before they are read.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    if meta.num_rows > ROWS_A_BYTE * file_bytes:
        raise ClipstemError(f"says it has {meta.num_rows:,} rows in {file_bytes:,} bytes")
    chunks = [
        meta.row_group(group).column(column)
        for group in range(meta.num_row_groups)
        for column in range(meta.num_columns)
    ]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
    # What is stored as a number of a dictionary, or as a length of a run, becomes a value.
    values = sum(8 * chunk.num_values for chunk in wanted)
    _refuse_expanded(
        max(values, sum(chunk.total_uncompressed_size for chunk in wanted)), file_bytes
    )


def read(source: Any, file_bytes: int, columns: Collection[str]) -> tuple[pa.Table, list[str]]:
    """Those of the columns that a file has, and the names of all its columns.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    try:
        with pq.ParquetFile(source) as file:
            schema, meta = file.schema_arrow, file.metadata
            found = [name for name in schema.names if name in columns]
            if len(set(found)) < len(found):
                raise ClipstemError("has two columns of one name")
            refuse_bomb(meta, file_bytes, found)
        texts = [name for name in found if _is_text(schema.field(name).type)]
        # Texts that stand in the file once are kept once, until it is known how large they become.
        with pq.ParquetFile(source, read_dictionary=texts) as file:
            table = file.read(found)
        _refuse_expanded(sum(map(_expanded_bytes, table.columns)), file_bytes)
        whole = pa.table([_plain(it) for it in table.columns], found, metadata=schema.metadata)
        whole.validate(full=True)  # parquet's readers do not look if texts are UTF-8
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise ClipstemError(" ".join(str(error).split())[:200]) from None
    return whole, schema.names


def in_memory(data: bytes) -> pa.BufferReader:
    """A file that Arrow owns.

    Of one that Python owns, Arrow's threads let go a moment after it was read; where Python exits
    just then, that thread ends the process with SIGABRT.
    """
    copy = pa.BufferOutputStream()
    copy.write(data)
    return pa.BufferReader(copy.getvalue())


def _refuse_expanded(size: int, file_bytes: int) -> None:
    if size > max(SMALL_BYTES, MOST_TIMES * file_bytes):
        raise ClipstemError(f"expands from {file_bytes:,} bytes to {size:,}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _expanded_bytes(column: pa.ChunkedArray) -> int:
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    return sum(
        pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
        for chunk in column.chunks
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

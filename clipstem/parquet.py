"""Parquet files of anybody, read whole: what a small file says that it expands to has a bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipstem.question import ClipstemError

BOOLEANS, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = (1, 2), 3, 4, 5, 6, 7, 8, 9, 12
Fields = dict[tuple[int, int], Any]

SMALL_BYTES = 64 * 2**20  # so much any file may expand to,
MOST_TIMES = 100  # and a larger one to so many times its own size
ROWS_A_BYTE = 8  # rows that differ from each other need more room than that


@dataclass(frozen=True)
class RowGroup:
    """A row group as a file's footer describes it: its rows, and of each column without its nested
    fields' names how many values and bytes its chunks say they expand to."""

    rows: int
    values: Mapping[str, int]
    expanded_bytes: Mapping[str, int]


def row_groups(source: Path | pa.NativeFile) -> list[RowGroup]:
    """The row groups of a file that pyarrow has opened.

    Not by `metadata.row_group(…).column(…)`: where a footer contradicts itself, pyarrow ends the
    whole process there.

    Raises:
        ClipstemError: for a footer that is none.
    """
    if isinstance(source, Path):
        with pa.OSFile(str(source)) as file:
            return row_groups(file)
    source.seek(source.size() - 8)
    length = int.from_bytes(source.read(4), "little")
    source.seek(source.size() - 8 - length)
    try:
        footer = _Thrift(source.read(length)).struct()
        # Fields by their numbers and kinds in parquet-format's `parquet.thrift`.
        return [_row_group(group) for group in footer.get((4, LIST), ())]
    except (IndexError, RecursionError, TypeError, AttributeError):
        raise ClipstemError("has a footer that is none") from None


def _row_group(group: Fields) -> RowGroup:
    values: Counter[str] = Counter()
    expanded_bytes: Counter[str] = Counter()
    for chunk in group.get((1, LIST), ()):
        about = chunk.get((3, STRUCT), {})
        name = b".".join(about.get((3, LIST), ())[:1]).decode(errors="replace")
        values[name] += about.get((5, I64), 0)
        expanded_bytes[name] += about.get((6, I64), 0)
    return RowGroup(group.get((3, I64), 0), values, expanded_bytes)


def refuse_bomb(groups: Sequence[RowGroup], file_bytes: int, columns: Collection[str]) -> None:
    """Refuse a file whose columns say they expand beyond the bound, before they are read.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    rows = sum(group.rows for group in groups)
    if rows > ROWS_A_BYTE * file_bytes:
        raise ClipstemError(f"says it has {rows:,} rows in {file_bytes:,} bytes")
    # What is stored as a number of a dictionary, or as a length of a run, becomes a value.
    values = sum(8 * group.values.get(name, 0) for group in groups for name in columns)
    said = sum(group.expanded_bytes.get(name, 0) for group in groups for name in columns)
    _refuse_expanded(max(values, said), file_bytes)


class _Thrift:
    """Values of Thrift's compact protocol; a struct is its fields by number and kind.

    Source: Apache Thrift, `thrift-compact-protocol.md`.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self) -> Fields:
        fields: Fields = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            if kind not in BOOLEANS:  # these are in the head alone
                fields[number, kind] = self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (*BOOLEANS, BYTE):
            return self._byte()
        if kind in (I16, I32, I64):
            return self._signed()
        if kind == DOUBLE:
            return self._bytes(8)
        if kind == BINARY:
            return self._bytes(self._unsigned())
        if kind == LIST:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 15) for _ in range(count)]
        if kind == STRUCT:
            return self.struct()
        raise TypeError  # a footer has no sets and no maps

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise IndexError
        return self.data[self.at - count : self.at]

    def _unsigned(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
        return number | byte << shift

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)


def read(
    source: Path | pa.NativeFile, file_bytes: int, columns: Collection[str]
) -> tuple[pa.Table, list[str]]:
    """Those of the columns that a file has, and the names of all its columns.

    Raises:
        ClipstemError: with the reason, without the file's name.
    """
    try:
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            found = [name for name in schema.names if name in columns]
            if len(set(found)) < len(found):
                raise ClipstemError("has two columns of one name")
            refuse_bomb(row_groups(source), file_bytes, found)
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

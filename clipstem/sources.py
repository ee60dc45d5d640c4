"""Where questions come from: drawn by code, or parquet files in STEM's schema.

A source divides itself into chunks, which workers read row by row. A row is what the source says,
numbered within its split, read but not judged; what cannot even be read is a `BadField`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipstem.bank.stem import SCHEMA, BankSplit
from clipstem.config import SOURCE_SPLITS
from clipstem.parquet import refuse_bomb, row_groups
from clipstem.question import MAX_OPTIONS, ClipstemError, Picture

MAX_CHUNKS = 256  # about: every parquet file makes at least one
MIN_CHUNK_ROWS = 256
BATCH_ROWS = 32  # rows of parquet held in memory at once,
BATCH_BYTES = 8 * 2**20  # or fewer that are larger


@dataclass(frozen=True, slots=True)
class Row:
    """What a source says a question is. Without a `split`, `prepare` chooses one.

    `captions` are those of its pictures, by field: "picture", "options[0]" and so on.
    """

    id: str
    split: str
    subject: str
    grade: str
    skill: str
    problem: str
    picture: bytes | None
    options: tuple[str | bytes, ...]
    answer: int
    captions: Mapping[str, str]


class BadField(Exception):
    """A row's field that makes it no question, with the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a source: `rows` rows from number `first_row` of the file's split.

    `key` is the first row's number in the whole source; `start` and `stop` are row groups of a
    parquet file or bytes of a file of lines.
    """

    file: str
    split: str
    key: int
    first_row: int
    rows: int
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class DrawnSource:
    """Questions drawn from `clipstem.bank`."""

    splits: tuple[BankSplit, ...]

    def chunks(self) -> list[Chunk]:
        step = chunk_rows(sum(map(len, self.splits)))
        chunks, key = [], 0
        for split in self.splits:
            for first in range(0, len(split), step):
                rows = min(step, len(split) - first)
                chunks.append(Chunk("bank", split.split, key + first, first, rows))
            key += len(split)
        return chunks

    def rows(self, chunk: Chunk) -> Iterator[tuple[int, Row | BadField]]:
        split = next(split for split in self.splits if split.split == chunk.split)
        for row in range(chunk.first_row, chunk.first_row + chunk.rows):
            question = split.question(row)
            yield (
                row,
                Row(
                    id=question.id,
                    split=chunk.split,
                    subject=question.subject,
                    grade=question.grade,
                    skill=question.skill,
                    problem=question.problem,
                    picture=question.picture.data if question.picture else None,
                    options=tuple(
                        option.data if isinstance(option, Picture) else option
                        for option in question.options
                    ),
                    answer=question.answer,
                    captions={},
                ),
            )


@dataclass(frozen=True)
class StemSource:
    """Parquet files in STEM's schema, anywhere under a folder; the file's name tells its split."""

    folder: Path

    def chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        next_row = dict.fromkeys(SOURCE_SPLITS, 0)
        found = [(file, self._split(file), self._rows(file)) for file in self._files()]
        step = chunk_rows(sum(sum(rows_G) for _, _, rows_G in found))
        for file, split, rows_G in found:
            for start, stop in _stretches(rows_G, step):
                rows = sum(rows_G[start:stop])
                key = sum(next_row.values())
                name = file.relative_to(self.folder).as_posix()
                chunks.append(Chunk(name, split, key, next_row[split], rows, start, stop))
                next_row[split] += rows
        return chunks

    def rows(self, chunk: Chunk) -> Iterator[tuple[int, Row | BadField]]:
        number = chunk.first_row
        for batch in self._batches(chunk):
            for values in _in_schema(batch):
                if isinstance(values, BadField):
                    yield number, values
                else:
                    yield number, or_bad(_stem_row, f"{chunk.split}-{number}", chunk.split, *values)
                number += 1

    def _batches(self, chunk: Chunk) -> Iterator[pa.Table]:
        # Streams the columns: STEM's row groups are hundreds of megabytes of pictures. Row by row,
        # because a large value that stands in the file once may stand in every row.
        path = self.folder / chunk.file
        try:
            with pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False) as file:
                batches: list[pa.RecordBatch] = []
                size = 0
                for row in file.iter_batches(
                    1, range(chunk.start, chunk.stop), SCHEMA.names, use_threads=False
                ):
                    batches.append(row)
                    size += row.nbytes
                    if len(batches) == BATCH_ROWS or size > BATCH_BYTES:
                        yield pa.Table.from_batches(batches).combine_chunks()
                        batches, size = [], 0
                if batches:
                    yield pa.Table.from_batches(batches).combine_chunks()
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ClipstemError(f"{path}: is damaged ({one_line(error)}); copy it again") from None

    def _files(self) -> list[Path]:
        files = sorted(self.folder.rglob("*.parquet"), key=lambda file: (file.name, str(file)))
        if not files:
            raise ClipstemError(
                f"conf key 'path': no parquet file is under '{self.folder}'; expected files named "
                "train-….parquet, valid-….parquet, test-….parquet"
            )
        return files

    def _split(self, file: Path) -> str:
        for split in SOURCE_SPLITS:
            if file.name.startswith(split):
                return split
        raise ClipstemError(f"{file}: its name must start with its split: train, valid or test")

    def _rows(self, path: Path) -> list[int]:
        """How many rows each row group of a file has that may be read."""
        try:
            if not path.is_file():
                raise OSError("it is no plain file")
            with pq.ParquetFile(path) as file:
                found = file.schema_arrow
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ClipstemError(f"{path}: is no parquet file ({one_line(error)})") from None
        if len(set(found.names)) < len(found.names):
            raise ClipstemError(f"{path}: has two columns of one name; expected STEM's")
        if missing := [name for name in SCHEMA.names if name not in found.names]:
            raise ClipstemError(
                f"{path}: lacks the columns {', '.join(missing)}; expected STEM's: "
                f"{', '.join(SCHEMA.names)}"
            )
        for field in SCHEMA:
            if not _castable(found.field(field.name).type, field.type):
                raise ClipstemError(
                    f"{path}: column {field.name} is {found.field(field.name).type}; "
                    f"expected {field.type}"
                )
        try:
            groups = row_groups(path)
            refuse_bomb(groups, path.stat().st_size, SCHEMA.names)
        except ClipstemError as error:
            raise ClipstemError(f"{path}: {error}; such a file is not read") from None
        return [group.rows for group in groups]


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether there are values of the one type that are values of the other."""
    if pa.types.is_list(wanted) and hasattr(found, "value_field"):
        return _castable(found.value_type, wanted.value_type)
    try:
        pa.nulls(1, found).cast(wanted)
    except pa.ArrowException:
        return False
    return True


def _stretches(rows_G: Sequence[int], step: int) -> Iterator[tuple[int, int]]:
    """Stretches of row groups with about `step` rows each."""
    start = rows = 0
    for group, count in enumerate(rows_G):
        rows += count
        if rows >= step or group == len(rows_G) - 1:
            yield start, group + 1
            start, rows = group + 1, 0


def _in_schema(batch: pa.Table) -> Iterator[tuple[Any, ...] | BadField]:
    """Each row's values in the types of `SCHEMA`, or the first that has no such value."""
    table = batch.select(SCHEMA.names)
    if _most_items(table) > MAX_OPTIONS:
        yield from _in_schema_one_by_one(table)
        return
    try:
        columns = table.cast(SCHEMA).to_pydict()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        yield from _in_schema_one_by_one(table)
    else:
        yield from zip(*columns.values(), strict=True)


def _most_items(table: pa.Table) -> int:
    """How many options the row with most of them has."""
    lists = [column for column in table.columns if pa.types.is_list(column.type)]
    return max((pc.max(pc.list_value_length(column)).as_py() or 0 for column in lists), default=0)


def _in_schema_one_by_one(table: pa.Table) -> Iterator[tuple[Any, ...] | BadField]:
    # take, not slice: the cast of a slice of lists casts the items of all the others too
    columns = [_plain(column.combine_chunks()) for column in table.columns]
    for row in range(table.num_rows):
        try:
            yield tuple(
                _cast(field.name, column.take([row]), field.type)
                for field, column in zip(SCHEMA, columns, strict=True)
            )
        except BadField as bad:
            yield bad


def _cast(field: str, one: pa.Array, wanted: pa.DataType) -> Any:
    """The value of an array of one, in the wanted type."""
    if pa.types.is_list(wanted) and (one.value_lengths()[0].as_py() or 0) > MAX_OPTIONS:
        count = one.value_lengths()[0].as_py()
        raise BadField(field, f"has {count:,} options; expected at most {MAX_OPTIONS:,}")
    try:
        return one.cast(wanted).to_pylist()[0]
    except (pa.ArrowInvalid, UnicodeDecodeError):
        if pa.types.is_list(wanted):
            items = _plain(one.flatten())
            for index in range(len(items)):
                _cast(f"{field}[{index}]", items.take([index]), wanted.value_type)
        raise BadField(field, f"is {_shown(one)}; expected {_EXPECTED[wanted.id]}") from None


def _plain(array: pa.Array) -> pa.Array:
    """An array without a dictionary, whose values would all be cast with each row's."""
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _shown(one: pa.Array) -> str:
    try:
        (value,) = one.to_pylist()
    except UnicodeDecodeError:
        if not pa.types.is_string(one.type) and not pa.types.is_large_string(one.type):
            return f"a damaged {one.type}"
        (value,) = one.cast(pa.large_binary()).to_pylist()
    if isinstance(value, bytes):
        return repr(value) if len(value) <= 20 else f"{value[:20]!r}..."
    return as_json(value if isinstance(value, str | int | float) else str(value))


_EXPECTED = {
    pa.string().id: "a text in UTF-8",
    pa.binary().id: "the bytes of a picture",
    pa.bool_().id: "true or false",
    pa.int64().id: "a whole number",
    pa.list_(pa.null()).id: "a list",
}


def _stem_row(
    id: str,
    split: str,
    subject: str | None,
    grade: str | None,
    skill: str | None,
    pic_choice: bool | None,
    pic_prob: bool | None,
    problem: str | None,
    problem_pic: bytes | None,
    choices: list[str | None] | None,
    choices_pic: list[bytes | None] | None,
    answer_idx: int | None,
) -> Row:
    if bool(pic_prob) != bool(problem_pic):
        found = f"{len(problem_pic)} bytes" if problem_pic else "empty"
        raise BadField("problem_pic", f"is {found}, but pic_prob is {as_json(pic_prob)}")
    filled = choices_pic if pic_choice else choices
    other = choices if pic_choice else choices_pic
    if other and not filled:
        name = "choices" if pic_choice else "choices_pic"
        raise BadField(name, f"has {len(other)} options, but pic_choice is {as_json(pic_choice)}")
    options = (*(choices or ()), *(choices_pic or ()))
    for index, option in enumerate(options):
        _not_null(f"options[{index}]", option)
    return Row(
        id=id,
        split=split,
        subject=_not_null("subject", subject),
        grade=_not_null("grade", grade),
        skill=_not_null("skill", skill),
        problem=_not_null("problem", problem),
        picture=problem_pic or None,
        options=options,
        answer=_not_null("answer_idx", answer_idx),
        captions={},
    )


def or_bad(read: Callable[..., Row], *values: Any) -> Row | BadField:
    try:
        return read(*values)
    except BadField as bad:
        return bad


def _not_null(field: str, value: Any) -> Any:
    if value is None:
        raise BadField(field, "is null; expected a value")
    return value


def as_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]


def chunk_rows(rows: int) -> int:
    return max(MIN_CHUNK_ROWS, -(-rows // MAX_CHUNKS))


def stem_source(path: str) -> StemSource:
    """A folder of parquet files or, if there is no such folder, the Hub's data set of that name.

    Raises:
        ClipstemError: if it is neither, or it cannot be fetched.
    """
    if Path(path).is_dir():
        return StemSource(Path(path))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
        raise ClipstemError(
            f"conf key 'path': there is no folder '{path}'; expected a folder of parquet files or "
            "a Hub data set owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ClipstemError(
            f"conf key 'path': there is no folder '{path}', and fetching it from the Hub needs "
            "huggingface_hub; pip install huggingface_hub"
        ) from None
    try:
        folder = snapshot_download(path, repo_type="dataset", allow_patterns="*.parquet")
    except Exception as error:  # the Hub's client raises many kinds, and they change
        raise ClipstemError(
            f"conf key 'path': there is no folder '{path}', and the Hub's data set "
            f"could not be fetched ({one_line(error)})"
        ) from None
    return StemSource(Path(folder))

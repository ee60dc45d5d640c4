"""The first pass of preparing: each row checked once, and its finished sample put on a spool.

A chunk of the source becomes one spool file of samples behind each other. In memory stay only, for
each question, its place and a few hashes. N questions, P pictures.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipstem.images import check_picture, shrink
from clipstem.jsonl import JsonlSource
from clipstem.question import SPLITS, ClipstemError, Picture, Question, invalid_field
from clipstem.shards import MAX_SAMPLE_BYTES, encode_sample
from clipstem.sources import BadField, Chunk, DrawnSource, Row, StemSource

HASH_BYTES = 16  # of a SHA-256: enough that two of 10^9 never meet by chance
MAX_OPEN_SPOOLS = 192  # in each process; a shell may allow no more than 256 files
NO_SPLIT = -1  # of a question whose split is chosen later

Ints = npt.NDArray[np.int64]
AnySource = DrawnSource | StemSource | JsonlSource


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no question: where it stands, and which field makes it none."""

    key: int
    row: int
    file: str
    field: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"row": self.row, "file": self.file, "field": self.field, "reason": self.reason}

    def __str__(self) -> str:
        return f"{self.file} row {self.row}: {self.field} {self.reason}"


@dataclass(frozen=True)
class Checks:
    """How rows are checked: pictures decoded or not, and scaled down to a side of px or not."""

    decode: bool
    max_image_side: int | None


@dataclass
class Spooled:
    """What is known of spooled questions; `picture_P` has each question's pictures in turn."""

    chunk_N: Ints
    start_N: Ints  # bytes from the start of the chunk's spool
    length_N: Ints
    split_N: Ints
    id_N: npt.NDArray[np.bytes_]
    content_N: npt.NDArray[np.bytes_]
    pictures_N: Ints
    picture_P: npt.NDArray[np.bytes_]

    @classmethod
    def joined(cls, parts: Sequence[Spooled]) -> Spooled:
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, keep_N: npt.NDArray[np.bool_]) -> Spooled:
        """Only the questions that are to be kept."""
        keep_P = np.repeat(keep_N, self.pictures_N)
        kept = {
            field.name: getattr(self, field.name)[keep_P if field.name == "picture_P" else keep_N]
            for field in fields(self)
        }
        return Spooled(**kept)

    @property
    def question_P(self) -> Ints:
        """The question of each picture."""
        return np.repeat(np.arange(len(self.chunk_N)), self.pictures_N)


def spool_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:04d}.spool"


def spool_chunk(
    source: AnySource, checks: Checks, folder: Path, task: tuple[int, Chunk]
) -> tuple[Spooled, list[BadRow]]:
    """Check the rows of one chunk and write the samples of the good ones to its spool file."""
    number, chunk = task
    places: list[_Place] = []
    pictures: list[bytes] = []
    bad: list[BadRow] = []
    with spool_path(folder, number).open("wb") as spool:
        for row_number, row in source.rows(chunk):
            key = chunk.key + row_number - chunk.first_row
            try:
                if isinstance(row, BadField):
                    raise row
                question, suffixes = _checked(row, row_number, checks)
            except BadField as error:
                bad.append(BadRow(key, row_number, chunk.file, error.field, error.reason))
                continue
            sample = encode_sample(key, question, suffixes)
            if len(sample) > MAX_SAMPLE_BYTES:
                reason = f"has {len(sample):,} bytes; expected at most {MAX_SAMPLE_BYTES:,}"
                bad.append(BadRow(key, row_number, chunk.file, "question", reason))
                continue
            places.append(_Place.of(question, row, spool.tell(), len(sample)))
            pictures += [bytes.fromhex(p.sha256)[:HASH_BYTES] for p in question.pictures]
            spool.write(sample)
    return _as_arrays(number, places, pictures), bad


def read_samples(folder: Path, chunk_N: Ints, start_N: Ints, length_N: Ints) -> Iterator[bytes]:
    """The spooled samples at these places, one by one."""
    files: dict[int, io.FileIO] = {}  # the one that was not used for longest comes first
    try:
        places = zip(chunk_N.tolist(), start_N.tolist(), length_N.tolist(), strict=True)
        for chunk, start, length in places:
            file = files.pop(chunk, None)
            if file is None:
                if len(files) == MAX_OPEN_SPOOLS:
                    files.pop(next(iter(files))).close()
                file = spool_path(folder, chunk).open("rb", buffering=0)
            files[chunk] = file
            yield os.pread(file.fileno(), length, start)
    finally:
        for file in files.values():
            file.close()


class _Place(NamedTuple):
    """What `Spooled` keeps of one question."""

    start: int
    length: int
    split: int
    id: bytes
    content: bytes
    pictures: int

    @classmethod
    def of(cls, question: Question, row: Row, start: int, length: int) -> _Place:
        split = SPLITS.index(row.split) if row.split else NO_SPLIT
        id, content = _hash([question.id]), _content_hash(question)
        return cls(start, length, split, id, content, len(question.pictures))


def _as_arrays(chunk: int, places: list[_Place], pictures: list[bytes]) -> Spooled:
    hashes = f"S{HASH_BYTES}"
    return Spooled(
        chunk_N=np.full(len(places), chunk, np.int64),
        start_N=np.array([place.start for place in places], np.int64),
        length_N=np.array([place.length for place in places], np.int64),
        split_N=np.array([place.split for place in places], np.int64),
        id_N=np.array([place.id for place in places], hashes),
        content_N=np.array([place.content for place in places], hashes),
        pictures_N=np.array([place.pictures for place in places], np.int64),
        picture_P=np.array(pictures, hashes),
    )


def _checked(row: Row, row_number: int, checks: Checks) -> tuple[Question, tuple[str, ...]]:
    """The question of a row, and the suffix of each of its pictures."""
    for name in ("id", "subject", "grade", "skill", "problem"):
        _check_text(name, getattr(row, name))
    if not row.skill:
        raise BadField("skill", "is empty; expected a name")  # exams are of skills
    suffixes: list[str] = []
    picture = None
    if row.picture is not None:
        picture = _picture("picture", row.picture, row.captions, checks, suffixes)
    options = tuple(
        _check_text(f"options[{i}]", option)
        if isinstance(option, str)
        else _picture(f"options[{i}]", option, row.captions, checks, suffixes)
        for i, option in enumerate(row.options)
    )
    if found := invalid_field(row.problem, options, row.answer):
        raise BadField(*found)
    question = Question(
        id=row.id,
        subject=row.subject,
        grade=row.grade,
        skill=row.skill,
        problem=row.problem,
        picture=picture,
        options=options,  # type: ignore[arg-type]  # invalid_field refused mixed ones
        answer=row.answer,
        row=row_number,
    )
    return question, tuple(suffixes)


def _picture(
    field: str, data: bytes, captions: Mapping[str, str], checks: Checks, suffixes: list[str]
) -> Picture:
    caption = captions.get(field)
    if caption is not None:
        _check_text(f"{field}.caption", caption)
    try:
        suffixes.append(check_picture(data, decode=checks.decode))
        if checks.max_image_side:
            data = shrink(data, checks.max_image_side)
        return Picture.of(data, caption)
    except ClipstemError as error:
        raise BadField(field, str(error)) from None


def _check_text(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadField(field, "has half of a surrogate pair; expected Unicode text") from None
    return text


def _content_hash(question: Question) -> bytes:
    """What makes two questions one: pictures and problem; without pictures, all their texts."""
    texts = [question.problem, *sorted(picture.sha256 for picture in question.pictures)]
    if not question.pictures:
        texts += [option for option in question.options if isinstance(option, str)]
    return _hash(texts)


def _hash(texts: list[str]) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).digest()[:HASH_BYTES]

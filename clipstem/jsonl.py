"""Questions from a file with one JSON object a line, and pictures as files beside it."""

from __future__ import annotations

import difflib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from clipstem.config import SOURCE_SPLITS
from clipstem.images import MAX_BYTES
from clipstem.question import UNKNOWN_ANSWER, ClipstemError
from clipstem.sources import BadField, Chunk, Row, as_json, chunk_rows, one_line, or_bad

MAX_LINE_BYTES = 2**20
MAX_FIELDS = 100  # of a line

KNOWN_FIELDS = (
    *("id", "split", "subject", "grade", "skill"),
    *("problem", "image", "options", "answer"),
)

OTHER_NAMES = {
    **{"picture": "image", "question": "problem", "choices": "options"},
    **{"answer_idx": "answer", "label": "answer", "captions": "caption"},
}
"""What other data sets call our fields: overlooking one would quietly lose pictures or answers."""


@dataclass(frozen=True)
class JsonlSource:
    """One JSON object a line; pictures are files beside it or in folders below.

    Every line goes to `split` if it is given; with `split_later` no line may name one.
    """

    file: Path
    split: str
    split_later: bool

    def chunks(self) -> list[Chunk]:
        try:
            with self.file.open("rb") as lines:
                ends, end = array("q", [0]), 0
                for piece in iter(partial(lines.readline, MAX_LINE_BYTES), b""):
                    end += len(piece)
                    if piece.endswith(b"\n"):
                        ends.append(end)
                if end > ends[-1]:  # the last line may have no end
                    ends.append(end)
        except OSError as error:
            raise ClipstemError(
                f"conf key 'path': '{self.file}' cannot be read ({error.strerror}); "
                "expected a file with one JSON object a line"
            ) from None
        rows = len(ends) - 1
        step = chunk_rows(rows)
        cuts = [*range(0, rows, step), rows]
        return [
            Chunk(self.file.name, self.split, a, a, b - a, ends[a], ends[b])
            for a, b in pairwise(cuts)
        ]

    def rows(self, chunk: Chunk) -> Iterator[tuple[int, Row | BadField]]:
        with self.file.open("rb") as lines:
            lines.seek(chunk.start)
            for number in range(chunk.first_row, chunk.first_row + chunk.rows):
                if (line := next_line(lines)).strip():
                    yield number, or_bad(self._row, line)

    def _row(self, line: bytes) -> Row:
        record = _record(line)
        if record.get("id") == "":
            raise BadField("id", "is empty; expected a text")
        name = record.get("image")
        captions: dict[str, str] = {}
        if record.get("caption") is not None:
            if name is None:
                raise BadField("caption", "is given without an image; expected both")
            captions["picture"] = text_of(record, "caption")
        return Row(
            id=text_of(record, "id"),
            split=self._split(record.get("split")),
            subject=text_of(record, "subject"),
            grade=text_of(record, "grade"),
            skill=text_of(record, "skill"),
            problem=text_of(record, "problem"),
            picture=None if name is None else picture_beside(self.file, "image", name),
            options=tuple(self._options(record, captions)),
            answer=_answer(record.get("answer")),
            captions=captions,
        )

    def _split(self, named: Any) -> str:
        if self.split:
            return self.split
        if self.split_later:
            if named is not None:
                raise BadField(
                    "split", f"is {as_json(named)}, but split_fractions makes the splits"
                )
            return ""
        split = "valid" if named == "validation" else named
        if split not in SOURCE_SPLITS:
            raise BadField(
                "split",
                f"is {as_json(named)}; expected train, valid or test, "
                "or a run with split=… or split_fractions=…",
            )
        return str(split)

    def _options(self, record: dict[str, Any], captions: dict[str, str]) -> Iterator[str | bytes]:
        """Texts and pictures; the latter's captions are added to the others."""
        options = record.get("options")
        if not isinstance(options, list):
            raise BadField("options", f"is {as_json(options)}; expected a list")
        for index, option in enumerate(options):
            name = f"options[{index}]"
            if isinstance(option, str):
                yield option
            elif isinstance(option, dict) and {"image"} <= option.keys() <= {"image", "caption"}:
                if option.get("caption") is not None:
                    captions[name] = text_of(option, "caption", f"{name}.caption")
                yield picture_beside(self.file, name, option["image"])
            else:
                raise BadField(name, f'is {as_json(option)}; expected a text or {{"image": path}}')


def picture_beside(file: Path, field: str, name: Any) -> bytes:
    """The bytes of a picture file, which must lie in the folder of the JSON file or below.

    Raises:
        BadField: if it does not, is too large, or cannot be read.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadField(field, f"is {as_json(name)}; expected a path")
    folder = file.parent.resolve()
    path = folder / name
    if Path(name).is_absolute():
        raise BadField(field, f"'{name}' is an absolute path; expected one beside the file")
    if ".." in Path(name).parts:
        raise BadField(field, f"'{name}' has '..'; expected a path below the file's folder")
    try:
        real = path.resolve()
        if not real.is_relative_to(folder):
            raise BadField(field, f"'{name}' leads out of the file's folder by a link")
        if not real.is_file():
            raise BadField(field, f"'{name}' is no file")
        if real.stat().st_size > MAX_BYTES:
            raise BadField(field, f"'{name}' has more than {MAX_BYTES:,} bytes")
        return real.read_bytes()
    except (OSError, RuntimeError) as error:
        raise BadField(field, f"'{name}' cannot be read ({one_line(error)})") from None


def next_line(lines: BinaryIO, most_bytes: int = MAX_LINE_BYTES) -> bytes:
    """The next line; of one that is too long, a little more than is allowed."""
    line = piece = lines.readline(most_bytes + 1)
    while len(piece) > most_bytes and not piece.endswith(b"\n"):
        piece = lines.readline(most_bytes + 1)
    return line


def object_of(line: bytes, most_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        BadField: if the line is too long, or no JSON object of a hundred fields at most.
    """
    if len(line) > most_bytes:
        raise BadField("line", f"is too long; expected at most {most_bytes:,} bytes")
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadField("line", f"is not JSON in UTF-8 ({one_line(error)})") from None
    if not isinstance(record, dict):
        raise BadField("line", f"is {as_json(record)}; expected an object")
    if len(record) > MAX_FIELDS:
        raise BadField("line", f"has {len(record):,} fields; expected at most {MAX_FIELDS}")
    return record


def refuse_misnamed(
    record: Mapping[str, Any], known: Sequence[str], other_names: Mapping[str, str]
) -> None:
    """Refuse a field that is a known one under another name: overlooking it would lose it quietly.

    Raises:
        BadField: naming the known one.
    """
    missing = [field for field in known if field not in record]
    for field in record:
        if field in known:
            continue
        meant = other_names.get(field)
        if meant is not None and meant not in record:
            near = [meant]
        else:
            near = difflib.get_close_matches(field, missing, 1, 0.75)
        if near:
            raise BadField(field, f"is unknown; did you mean '{near[0]}'?")


def _record(line: bytes) -> dict[str, Any]:
    record = object_of(line)
    refuse_misnamed(record, KNOWN_FIELDS, OTHER_NAMES)
    return record


def text_of(record: Mapping[str, Any], field: str, name: str = "") -> str:
    """A field that must be there and hold a text; `name` says where the record stands in another.

    Raises:
        BadField: if it is not so.
    """
    name = name or field
    if field not in record:
        raise BadField(name, "is missing; expected a text")
    value = record[field]
    if not isinstance(value, str):
        raise BadField(name, f"is {as_json(value)}; expected a text")
    return value


def _answer(value: Any) -> int:
    if value is None:
        return UNKNOWN_ANSWER
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadField("answer", f"is {as_json(value)}; expected the number of an option, from 0")
    return value

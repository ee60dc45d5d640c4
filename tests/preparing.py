"""Files to prepare, and what came of them, shared by the tests."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipstem.bank.stem import SCHEMA
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.prepare import prepare
from clipstem.question import Question
from clipstem.shards import Dataset, open_dataset


def encoded(number: int, name: str = "png", side: int = 5, mode: str = "RGB") -> bytes:
    """A picture of its own for every number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, name)
    return buffer.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A good line of JSON; a change to `...` leaves the field out."""
    values = {
        "id": f"q{number}",
        "subject": "science",
        "grade": "grade-1",
        "skill": f"skill-{number % 3}",
        "split": "train",
        "problem": f"Which one is it, {number}?",
        "options": ["this", "that"],
        "answer": number % 2,
    }
    return {key: value for key, value in (values | changes).items() if value is not ...}


def write_jsonl(folder: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "questions.jsonl"
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"".join(line + b"\n" for line in written))
    return path


def prepared(tmp_path: Path, path: Path, **changes: Any) -> Dataset:
    values: dict[str, Any] = {"source": Source.jsonl, "workers": 1, "max_skipped_fraction": 0.99}
    prepare(PrepareConfig(out=str(tmp_path / "out"), path=str(path), **(values | changes)))
    return open_dataset(str(tmp_path / "out"))


def with_broken_pictures(folder: Path, questions: int, broken: Sequence[int] = ()) -> Dataset:
    """Questions q0, q1 … of `train`; of the broken ones the picture is cut off, which preparing
    does not look at here."""
    rows = []
    for number in range(questions):
        picture = encoded(number, side=40)
        name = f"{number}.png"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture[:-300] if number in broken else picture)
        rows.append(row(number, image=name))
    path = write_jsonl(folder, rows)
    return prepared(folder, path, verify=Verify.header, tune_fraction=0)


def questions_of(dataset: Dataset) -> dict[str, tuple[str, Question]]:
    """Every question and its split, by id."""
    return {
        question.id: (split, question)
        for split in dataset.manifest.questions
        for question in dataset.read(split, range(dataset.size(split)))
    }


def skipped(tmp_path: Path) -> list[dict[str, Any]]:
    return lines(tmp_path / "out" / "skipped.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + checksum + b"\0\0\0\x09IDAT"


def stem(number: int, **changes: Any) -> dict[str, Any]:
    """A good row in STEM's schema."""
    values: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    values |= {"subject": "math", "grade": "grade-2", "skill": "s", "answer_idx": 0}
    values |= {"problem": f"What, {number}?", "pic_choice": False, "pic_prob": True}
    values |= {"problem_pic": encoded(number), "choices": ["a", "b"]}
    return values | changes

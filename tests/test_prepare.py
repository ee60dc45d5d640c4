"""Preparing: exact counts and bytes, each bad row with its reason, the same result on any cores."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipstem.bank.stem import SCHEMA
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.images import check_picture, shrink
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Question
from clipstem.shards import Dataset, open_dataset
from clipstem.splits import components, divide

REALSET = os.environ.get("CLIPSTEM_REALSET")


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


# ---------------------------------------------------------------------------- jsonl


def test_lines_of_all_kinds_come_through(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "pictures").mkdir(parents=True)
    for i, name in enumerate(("png", "jpeg", "webp", "gif", "bmp", "tiff")):
        (folder / "pictures" / f"{i}.bin").write_bytes(encoded(i, name))
    pictures = [{"image": f"pictures/{i}.bin"} for i in range(6)]
    rows = [
        row(0, image="pictures/0.bin"),
        row(1, options=pictures[1:3]),
        row(2, options=pictures[3:6], image="pictures/0.bin", split="valid"),
        row(3, split="validation"),
        row(4, answer=..., split="test", extra={"kept": False}),
    ]
    dataset = prepared(tmp_path, write_jsonl(folder, rows), tune_fraction=0.0)
    found = questions_of(dataset)
    assert {id: split for id, (split, _) in found.items()} == {
        "q0": "train",
        "q1": "train",
        "q2": "valid",
        "q3": "valid",
        "q4": "test",
    }
    assert found["q4"][1].answer == -1
    assert [p.data for p in found["q2"][1].pictures] == [
        (folder / "pictures" / f"{i}.bin").read_bytes() for i in (0, 3, 4, 5)
    ]
    assert [found[f"q{i}"][1].row for i in range(5)] == list(range(5))
    assert dataset.manifest.source_rows == dict.fromkeys(("train", "tune", "valid", "test"), 5)
    assert dataset.manifest.shared_pictures == {"train/valid": 1}
    assert skipped(tmp_path) == []


OPTION = "is not a picture (starts with b'<html')"
BAD_ROWS: list[tuple[dict[str, Any] | bytes, str, str]] = [
    (b"{", "line", "is not JSON in UTF-8 (Expecting property name"),
    (b"\xff{}", "line", "is not JSON in UTF-8 ('utf-8' codec can't decode byte 0xff"),
    (b"[" * 100_000, "line", "is not JSON in UTF-8 ("),
    (b"[1]", "line", "is [1]; expected an object"),
    (row(1, id=...), "id", "is missing; expected a text"),
    (row(1, id=7), "id", "is 7; expected a text"),
    (row(1, id=""), "id", "is empty; expected a text"),
    (row(1, id="q0"), "id", "'q0' came before; expected a different id in each row"),
    (row(1, subject=None), "subject", "is null; expected a text"),
    (row(1, problem=["a"]), "problem", 'is ["a"]; expected a text'),
    (row(1, problem=" \n"), "problem", "is empty; expected the question's text"),
    (row(1, problem="\ud800"), "problem", "has half of a surrogate pair; expected Unicode text"),
    (row(1, options=[]), "options", "there are none; expected at least one"),
    (row(1, options=...), "options", "is null; expected a list"),
    (row(1, options="ab"), "options", 'is "ab"; expected a list'),
    (row(1, options=["a", 2]), "options[1]", 'is 2; expected a text or {"image": path}'),
    (row(1, options=["a", ""]), "options[1]", "is empty; expected a text"),
    (
        row(1, options=["a", {"image": "ok.png"}]),
        "options",
        "1 texts are mixed with 1 pictures; expected all texts or all pictures",
    ),
    (
        row(1, options=[{"image": "ok.png"}, {"picture": "ok.png"}]),
        "options[1]",
        'is {"picture": "ok.png"}; expected a text or {"image": path}',
    ),
    (
        row(1, answer=2),
        "answer",
        "2 is not among the 2 options; expected 0 to 1, or -1 for unknown",
    ),
    (row(1, answer=-2), "answer", "-2 is not among the 2 options; expected 0 to 1, or -1 for"),
    (row(1, answer="0"), "answer", 'is "0"; expected the number of an option, from 0'),
    (row(1, answer=True), "answer", "is true; expected the number of an option, from 0"),
    (row(1, answer=0.0), "answer", "is 0.0; expected the number of an option, from 0"),
    (row(1, split="dev"), "split", 'is "dev"; expected train, valid or test, or a run with split='),
    (row(1, split=...), "split", "is null; expected train, valid or test, or a run with split="),
    (row(1, anwser=1, answer=...), "anwser", "is unknown; did you mean 'answer'?"),
    (row(1, image=3), "image", "is 3; expected a path"),
    (row(1, image=""), "image", 'is ""; expected a path'),
    (row(1, image="a\0b"), "image", 'is "a\\u0000b"; expected a path'),
    (row(1, image="nowhere.png"), "image", "'nowhere.png' is no file"),
    (row(1, image="."), "image", "'.' is no file"),
    (row(1, image="pipe"), "image", "'pipe' is no file"),
    (row(1, image="a/../ok.png"), "image", "'a/../ok.png' has '..'; expected a path below the"),
    (row(1, image="/etc/hostname"), "image", "'/etc/hostname' is an absolute path; expected one"),
    (row(1, image="link.png"), "image", "'link.png' leads out of the file's folder by a link"),
    (row(1, image="loop.png"), "image", "'loop.png' "),
    (row(1, image="n" * 300), "image", f"'{'n' * 300}' cannot be read ("),
    (row(1, image="html.jpg"), "picture", "is not a picture (starts with b'<html')"),
    (row(1, image="empty.png"), "picture", "is empty; expected an encoded picture"),
    (row(1, image="cut.png"), "picture", "is truncated"),
    (row(1, image="cut.jpg"), "picture", "is truncated"),
    (row(1, image="bomb.png"), "picture", "has 900,000,000 pixels; at most 64,000,000 are allowed"),
    (row(1, image="large.png"), "picture", "has 64,008,000 pixels; at most 64,000,000 are allowed"),
    (row(1, image="page.eps"), "picture", "is not a picture (starts with b'%!PS-')"),
    (row(1, options=[{"image": "ok.png"}, {"image": "html.jpg"}]), "options[1]", OPTION),
]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + checksum + b"\0\0\0\x09IDAT"


def fill_with_bad_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    outside = folder.parent / "outside.png"
    outside.write_bytes(encoded(0))
    (folder / "ok.png").write_bytes(encoded(1))
    (folder / "html.jpg").write_bytes(b"<html>not found</html>")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(encoded(2, side=99)[:-999])
    (folder / "cut.jpg").write_bytes(encoded(2, "jpeg", side=99)[:-999])
    (folder / "bomb.png").write_bytes(png_header(30_000, 30_000))
    (folder / "large.png").write_bytes(png_header(8001, 8000))
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "link.png").symlink_to(outside)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe")


def test_each_bad_row_is_skipped_with_its_reason(tmp_path: Path) -> None:
    fill_with_bad_files(tmp_path / "in")
    good = [row(0), row(99, image="ok.png")]
    rows = [good[0], *(bad for bad, _, _ in BAD_ROWS), b"", good[1]]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "in", rows), tune_fraction=0.0)
    assert questions_of(dataset).keys() == {"q0", "q99"}
    found = skipped(tmp_path)
    assert [line["row"] for line in found] == list(range(1, len(BAD_ROWS) + 1))
    assert {line["file"] for line in found} == {"questions.jsonl"}
    for (_, field, reason), line in zip(BAD_ROWS, found, strict=True):
        assert (line["field"], line["reason"][: len(reason)]) == (field, reason)
    counts = dataset.manifest.skipped
    assert sum(counts.values()) == len(BAD_ROWS)
    assert counts["answer: expected the number of an option, from N"] == 3
    assert counts["picture: is truncated"] == 2
    assert counts["picture: is not a picture"] == 2


def test_bad_rows_above_the_limit_stop_the_run_and_leave_nothing(tmp_path: Path) -> None:
    rows = [row(i) for i in range(100)] + [row(100, answer=5), row(101, problem="")]
    path = write_jsonl(tmp_path / "in", rows)
    message = (
        "2 bad rows are more than max_skipped_fraction=0.01 of 102 rows allows: "
        "1 × answer: expected N to N, or N for unknown; "
        "1 × problem: expected the question's text. The first: "
        "questions.jsonl row 100: answer 5 is not among the 2 options; expected 0 to 1, or -1 for "
        "unknown; questions.jsonl row 101: problem is empty; expected the question's text"
    )
    with pytest.raises(ClipstemError, match=f"^{re.escape(message)}$"):
        prepared(tmp_path, path, max_skipped_fraction=0.01)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    assert prepared(tmp_path, path, max_skipped_fraction=0.02).manifest.questions["train"] == 95


def test_repeated_ids_count_as_bad_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(0), row(0), row(1)])
    with pytest.raises(ClipstemError, match="1 × id: expected a different id in each row"):
        prepared(tmp_path, path, max_skipped_fraction=0.1)


def test_all_lines_can_go_to_one_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(0), row(1, split=...), row(2, split="test")])
    assert prepared(tmp_path, path, split="valid").manifest.questions == {"valid": 3}


def test_lines_that_name_splits_do_not_get_new_ones(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(0)])
    with pytest.raises(ClipstemError, match='is "train", but split_fractions makes the splits'):
        prepared(tmp_path, path, split_fractions={"train": 1.0}, max_skipped_fraction=0.0)


def shared_pictures(folder: Path, questions: int, groups: int) -> list[dict[str, Any]]:
    """Questions with a picture of their own, and one that a group has in common."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(questions):
        (folder / f"own{i}.png").write_bytes(encoded(i))
        (folder / f"group{i % groups}.png").write_bytes(encoded(10_000 + i % groups))
        options = [{"image": f"own{i}.png"}, {"image": f"group{i % groups}.png"}]
        rows.append(row(i, options=options, split=...))
    return rows


def pictures_by_split(dataset: Dataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for split, question in questions_of(dataset).values():
        found.setdefault(split, set()).update(p.sha256 for p in question.pictures)
    return found


def test_made_splits_share_no_picture(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", shared_pictures(tmp_path / "in", 200, 50))
    fractions = {"train": 0.8, "valid": 0.1, "test": 0.1}
    dataset = prepared(tmp_path, path, split_fractions=fractions)
    assert dataset.manifest.questions == {"train": 152, "tune": 8, "valid": 20, "test": 20}
    pictures = pictures_by_split(dataset)
    assert sum(map(len, pictures.values())) == len(set().union(*pictures.values())) == 250
    assert dataset.manifest.shared_pictures == dataset.manifest.leaks == {}


def test_tune_shares_no_picture_with_train(tmp_path: Path) -> None:
    rows = [{**r, "split": "train"} for r in shared_pictures(tmp_path / "in", 200, 20)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "in", rows), tune_fraction=0.1)
    assert dataset.manifest.questions == {"train": 180, "tune": 20}
    pictures = pictures_by_split(dataset)
    assert not pictures["train"] & pictures["tune"]


def test_one_picture_everywhere_leaves_no_tune(tmp_path: Path) -> None:
    rows = [{**r, "split": "train"} for r in shared_pictures(tmp_path / "in", 40, 1)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "in", rows))
    assert dataset.manifest.questions == {"train": 40}


def test_leaks_are_listed_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encoded(i))
    rows = [
        row(0, problem="Same?", image="0.png"),
        row(1, problem="Same?", image="0.png", split="valid", options=["other", "options"]),
        row(2, problem="Same?", image="0.png", split="test"),
        row(3, problem="Same?", image="1.png", split="test"),  # another picture
        row(4, problem="Other?", image="0.png", split="valid"),  # another text
        row(5, problem="Alone?"),
        row(6, problem="Alone?", split="valid"),  # without a picture, the same options
        row(7, problem="Alone?", split="valid", options=["x", "y"]),
    ]
    dataset = prepared(tmp_path, write_jsonl(folder, rows), tune_fraction=0.0)
    assert dataset.manifest.leaks == {"train/valid": 2, "train/test": 1, "valid/test": 1}
    assert dataset.manifest.shared_pictures == {
        "train/valid": 1,
        "train/test": 1,
        "valid/test": 1,
    }
    found = lines(tmp_path / "out" / "leaks.jsonl")
    assert sorted(found, key=lambda leak: leak["problem"]) == [
        {"problem": "Alone?", "train": ["q5"], "valid": ["q6"]},
        {"problem": "Same?", "train": ["q0"], "valid": ["q1"], "test": ["q2"]},
    ]


# ---------------------------------------------------------------------------- folders


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(0)])
    (tmp_path / "out").mkdir()
    with pytest.raises(ClipstemError, match="out exists and is never overwritten"):
        prepared(tmp_path, path)
    assert list((tmp_path / "out").iterdir()) == []


def test_any_number_of_workers_and_shards_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = [{**r, "split": "train"} for r in shared_pictures(folder, 700, 300)]
    rows += [row(3), row(800, answer=9), row(801, problem="")]
    path = write_jsonl(folder, rows)
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        prepare(
            PrepareConfig(
                out=str(out),
                source=Source.jsonl,
                path=str(path),
                workers=workers,
                shard_bytes=400_000,
                max_skipped_fraction=0.5,
            )
        )
        results.append(hashes(out))
    assert results[0] == results[1]
    assert {"train-000002.tar", "tune-000000.tar", "manifest.json"} <= results[0].keys()
    dataset = open_dataset(str(tmp_path / "1"))
    assert questions_of(dataset).keys() == {f"q{i}" for i in range(700)}
    assert len(lines(tmp_path / "1" / "skipped.jsonl")) == 3


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(i) for i in range(50)])
    manifests = [
        prepare(
            PrepareConfig(
                out=str(tmp_path / str(seed)),
                source=Source.jsonl,
                path=str(path),
                workers=1,
                seed=seed,
                tune_fraction=0.0,
            )
        )
        for seed in (0, 1)
    ]
    assert manifests[0].questions == manifests[1].questions
    assert manifests[0].data_sha256 != manifests[1].data_sha256


PREPARE = [sys.executable, "-m", "clipstem.prepare"]


def started(tmp_path: Path) -> subprocess.Popen[str]:
    """A run with two workers, long enough to be stopped in its middle."""
    command = [*PREPARE, f"out={tmp_path}/out", "questions_per_skill={train: 2000}", "workers=2"]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores Ctrl-C, and its children with it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".out.partial-*/spools/*.spool")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    run = started(tmp_path)
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def children(parent: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    except OSError:  # it has just ended
        return []


def test_a_killed_worker_is_one_clear_line(tmp_path: Path) -> None:
    run = started(tmp_path)
    for child in children(run.pid):
        os.kill(child, signal.SIGKILL)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 2
    assert "one of 2 worker processes was killed, most likely for lack of memory" in errors
    assert list(tmp_path.iterdir()) == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    run = started(tmp_path)
    workers = children(run.pid)
    run.kill()
    run.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("clipstem.prepare.write_shard", full)
    with pytest.raises(ClipstemError, match=r"out: No space left on device"):
        prepared(tmp_path, write_jsonl(tmp_path / "in", [row(0)]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


# ---------------------------------------------------------------------------- stem


def stem(number: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    values |= {"subject": "math", "grade": "grade-2", "skill": "s", "answer_idx": 0}
    values |= {"problem": f"What, {number}?", "pic_choice": False, "pic_prob": True}
    values |= {"problem_pic": encoded(number), "choices": ["a", "b"]}
    return values | changes


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)


def test_rows_are_counted_over_the_files_of_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_parquet(folder / "b" / "train-00000-of-00002.parquet", [stem(i) for i in range(3)])
    write_parquet(folder / "a" / "train-00001-of-00002.parquet", [stem(i) for i in range(3, 7)])
    write_parquet(folder / "validation-00000.parquet", [stem(7), stem(8)])
    write_parquet(folder / "test-00000.parquet", [stem(9, answer_idx=-1)])
    dataset = prepared(tmp_path, folder, source=Source.stem, tune_fraction=0.0)
    found = questions_of(dataset)
    ids = [f"train-{i}" for i in range(7)] + ["valid-0", "valid-1", "test-0"]
    assert found.keys() == set(ids)
    assert [found[id][1].problem for id in ids] == [f"What, {i}?" for i in range(10)]
    assert dataset.manifest.source_rows == {"train": 7, "tune": 7, "valid": 2, "test": 1}


STEM_BAD_ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"subject": None}, "subject", "is null; expected a value"),
    ({"problem": None}, "problem", "is null; expected a value"),
    ({"problem": ""}, "problem", "is empty; expected the question's text"),
    ({"answer_idx": None}, "answer_idx", "is null; expected a value"),
    ({"answer_idx": 2}, "answer", "2 is not among the 2 options; expected 0 to 1, or -1 for "),
    ({"problem_pic": None}, "problem_pic", "is empty, but pic_prob is true"),
    ({"problem_pic": b""}, "problem_pic", "is empty, but pic_prob is true"),
    (
        {"problem_pic": b"abc", "pic_prob": False},
        "problem_pic",
        "is 3 bytes, but pic_prob is false",
    ),
    ({"problem_pic": b"<html>"}, "picture", "is not a picture (starts with b'<html')"),
    ({"choices": None}, "options", "there are none; expected at least one"),
    ({"choices": ["a", None]}, "options[1]", "is null; expected a value"),
    ({"choices_pic": [b"x"]}, "options[2]", "is not a picture (starts with b'x')"),
    ({"choices_pic": [encoded(0)]}, "options", "2 texts are mixed with 1 pictures; expected all "),
    ({"pic_choice": True}, "choices", "has 2 options, but pic_choice is true"),
    (
        {"choices": None, "choices_pic": [encoded(0)]},
        "choices_pic",
        "has 1 options, but pic_choice is false",
    ),
]


def test_each_bad_stem_row_is_skipped_with_its_reason(tmp_path: Path) -> None:
    rows = [stem(99)] + [stem(i, **change) for i, (change, _, _) in enumerate(STEM_BAD_ROWS)]
    write_parquet(tmp_path / "in" / "data" / "test-00000.parquet", rows)
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    assert questions_of(dataset).keys() == {"test-0"}
    found = skipped(tmp_path)
    assert {line["file"] for line in found} == {"data/test-00000.parquet"}
    for number, ((_, field, reason), line) in enumerate(zip(STEM_BAD_ROWS, found, strict=True), 1):
        assert (line["row"], line["field"]) == (number, field)
        assert line["reason"][: len(reason)] == reason


def with_types(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(field.name, types.get(field.name, field.type)) for field in SCHEMA])


NOT_TEXT = b"\xff\xfe or not"
CAST_BAD_ROWS: list[tuple[dict[str, pa.DataType], dict[str, Any], str, str]] = [
    ({"answer_idx": pa.float64()}, {"answer_idx": 1.5}, "answer_idx", "1.5; expected a whole numb"),
    ({"answer_idx": pa.float64()}, {"answer_idx": float("nan")}, "answer_idx", "NaN; expected a "),
    ({"answer_idx": pa.uint64()}, {"answer_idx": 2**63}, "answer_idx", f"{2**63}; expected a who"),
    (
        {"answer_idx": pa.string()},
        {"answer_idx": "B"},
        "answer_idx",
        '"B"; expected a whole number',
    ),
    ({"pic_prob": pa.string()}, {"pic_prob": "maybe"}, "pic_prob", '"maybe"; expected true or fal'),
    (
        {"problem": pa.binary()},
        {"problem": NOT_TEXT},
        "problem",
        "b'\\xff\\xfe or not'; expected a text in UTF-8",
    ),
    (
        {"problem": pa.binary()},
        {"problem": b"\xff" + bytes(999)},
        "problem",
        "b'\\xff" + 19 * "\\x00" + "'...; expected a text in UTF-8",
    ),
    (
        {"choices": pa.list_(pa.binary())},
        {"choices": [b"a", NOT_TEXT]},
        "choices[1]",
        "b'\\xff\\xfe or not'; expected a text in UTF-8",
    ),
]


@pytest.mark.parametrize(("types", "change", "field", "reason"), CAST_BAD_ROWS)
def test_a_value_of_another_type_is_one_bad_row(
    tmp_path: Path,
    types: dict[str, pa.DataType],
    change: dict[str, Any],
    field: str,
    reason: str,
) -> None:
    def typed(values: dict[str, Any]) -> dict[str, Any]:
        arrays = {k: pa.array([values[k]], SCHEMA.field(k).type).cast(t) for k, t in types.items()}
        return values | {name: array.to_pylist()[0] for name, array in arrays.items()}

    rows = [typed(stem(0)), typed(stem(1)) | change, typed(stem(2))]
    write_parquet(tmp_path / "in" / "test-0.parquet", rows, with_types(**types))
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    found = questions_of(dataset)
    assert {id: question.problem for id, (_, question) in found.items()} == {
        "test-0": "What, 0?",
        "test-2": "What, 2?",
    }
    (line,) = skipped(tmp_path)
    assert (line["row"], line["field"]) == (1, field)
    assert line["reason"].startswith(f"is {reason}")
    assert len(line["reason"]) < 150


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_text_column_with_other_bytes_is_one_bad_row(tmp_path: Path, dictionary: bool) -> None:
    """Parquet's readers do not check that a text is UTF-8."""
    table = pa.Table.from_pylist([stem(i) for i in range(3)], SCHEMA)
    problems = pa.array([b"What, 0?", NOT_TEXT, b"What, 2?"])
    options = pa.array([b"a", b"b", b"a", NOT_TEXT, b"a", b"b"]).view(pa.string())
    column: pa.Array = problems.view(pa.string())
    if dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), problems)
    else:
        choices = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), options)
        table = table.set_column(SCHEMA.get_field_index("choices"), "choices", choices)
    table = table.set_column(SCHEMA.get_field_index("problem"), "problem", column)
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "test-0.parquet")
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    assert questions_of(dataset).keys() == {"test-0", "test-2"}
    (line,) = skipped(tmp_path)
    reason = r"is b'\xff\xfe or not'; expected a text in UTF-8"
    assert (line["row"], line["field"], line["reason"]) == (1, "problem", reason)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_more_files_than_can_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        write_parquet(tmp_path / "in" / f"test-{i:02d}.parquet", [stem(i)])
    most = 0

    def counted(file: int, length: int, start: int) -> bytes:
        nonlocal most
        spools = [p for p in Path("/proc/self/fd").iterdir() if str(p.resolve()).endswith(".spool")]
        most = max(most, len(spools))
        return pread(file, length, start)

    pread = os.pread
    monkeypatch.setattr("clipstem.spool.MAX_OPEN_SPOOLS", 3)
    monkeypatch.setattr("clipstem.spool.os.pread", counted)
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    monkeypatch.undo()
    assert questions_of(dataset).keys() == {f"test-{i}" for i in range(20)}
    assert most == 3


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def refused(message: str) -> None:
        with pytest.raises(ClipstemError, match=message):
            prepared(tmp_path, folder, source=Source.stem)

    refused(rf"'path': no parquet file is under '{folder}'; expected files named train-")
    file = folder / "train-0.parquet"
    file.write_bytes(b"PAR1 no")
    refused(rf"{file}: is no parquet file \(")
    names = [name for name in SCHEMA.names if name not in ("skill", "choices_pic")]
    write_parquet(file, [stem(0)], pa.schema([SCHEMA.field(name) for name in names]))
    refused(rf"{file}: lacks the columns skill, choices_pic; expected STEM's: subject, grade")
    hub_image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    place = SCHEMA.get_field_index("problem_pic")
    schema = SCHEMA.set(place, pa.field("problem_pic", hub_image))
    write_parquet(file, [stem(0, problem_pic=None)], schema)
    refused(rf"{file}: column problem_pic is struct<.*>; expected binary")
    file.rename(folder / "dev-0.parquet")
    refused(r"dev-0.parquet: its name must start with its split: train, valid or test")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "in" / "train-0.parquet"
    write_parquet(file, [stem(i, problem_pic=encoded(i, side=99)) for i in range(4)])
    data = bytearray(file.read_bytes())
    data[2000:60_000] = bytes(58_000)
    file.write_bytes(data)
    with pytest.raises(ClipstemError, match=rf"{file}: is damaged \(.*\); copy it again"):
        prepared(tmp_path, tmp_path / "in", source=Source.stem)


def test_neither_a_folder_nor_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(
        ClipstemError, match=r"no folder '.*/x'; expected a folder of parquet files"
    ):
        prepared(tmp_path, tmp_path / "x", source=Source.stem)


def test_the_hub_without_its_client_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipstem.sources import stem_source

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ClipstemError, match=r"needs huggingface_hub; pip install huggingface_hub"):
        stem_source("owner/name")

    class Client:
        @staticmethod
        def snapshot_download(name: str, **_: Any) -> str:
            raise ConnectionError(f"no network for {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    with pytest.raises(ClipstemError, match=r"could not be fetched \(no network for owner/name\)"):
        stem_source("owner/name")


def test_the_hub_gives_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Client:
        @staticmethod
        def snapshot_download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            return str(tmp_path / "snapshot")

    write_parquet(tmp_path / "snapshot" / "train-0.parquet", [stem(0)])
    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    dataset = prepared(tmp_path, Path("owner/name"), source=Source.stem)
    assert dataset.manifest.questions == {"train": 1}
    assert dataset.manifest.source["path"] == "owner/name"
    assert asked == {"name": "owner/name", "repo_type": "dataset", "allow_patterns": "*.parquet"}


@pytest.mark.skipif(not REALSET, reason="CLIPSTEM_REALSET names no folder in STEM's schema")
@pytest.mark.parametrize("verify", list(Verify))
def test_the_realset_comes_through_byte_by_byte(tmp_path: Path, verify: Verify) -> None:
    assert REALSET
    changes = {"source": Source.stem, "verify": verify, "max_skipped_fraction": 0.0}
    dataset = prepared(tmp_path, Path(REALSET), workers=2, **changes)
    expected: dict[str, dict[str, Any]] = {}
    for split in ("train", "valid", "test"):
        files = sorted(Path(REALSET).rglob(f"{split}*.parquet"))
        rows = [r for file in files for r in pq.read_table(file).to_pylist()]
        expected |= {f"{split}-{i}": r for i, r in enumerate(rows)}
    found = questions_of(dataset)
    assert len(expected) == 2841
    assert found.keys() == expected.keys()
    for id, (split, question) in found.items():
        source = expected[id]
        pictures = [source["problem_pic"]] * source["pic_prob"] + (source["choices_pic"] or [])
        assert [picture.data for picture in question.pictures] == pictures
        assert source["choices"] is None or list(question.options) == source["choices"]
        assert (question.problem, question.answer) == (source["problem"], source["answer_idx"])
        assert (question.subject, question.grade) == (source["subject"], source["grade"])
        assert (question.skill, split.replace("tune", "train")) == (
            source["skill"],
            id.partition("-")[0],
        )
    assert dataset.manifest.shared_pictures == {}


# ---------------------------------------------------------------------------- drawn


def test_drawn_splits_are_disjoint_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    def drawn(name: str, **questions_per_skill: int) -> dict[str, tuple[str, Question]]:
        prepare(
            PrepareConfig(
                out=str(tmp_path / name),
                skills=SKILL_NAMES,
                questions_per_skill=questions_per_skill,
                workers=1,
                seed=3,
                tune_fraction=0.0,
            )
        )
        return questions_of(open_dataset(str(tmp_path / name)))

    few, many = drawn("few", train=1, valid=4), drawn("many", train=6, valid=4, test=2)
    assert len(few) == 10 and len(many) == 24
    assert {k: v for k, v in few.items() if v[0] == "valid"} == {
        k: v for k, v in many.items() if v[0] == "valid"
    }
    assert {question.skill for _, question in many.values()} == set(SKILL_NAMES)


def test_an_unknown_skill_names_the_nearest(tmp_path: Path) -> None:
    wrong = SKILL_NAMES[0][:-1]
    with pytest.raises(ClipstemError, match=rf"no '{wrong}'; did you mean '{SKILL_NAMES[0]}'\?"):
        prepare(PrepareConfig(out=str(tmp_path / "out"), skills=[wrong]))


def _skill_names() -> list[str]:
    from clipstem.bank import SKILLS

    return sorted(SKILLS)[:2]


SKILL_NAMES = _skill_names()


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": Source.stem}, "'path': is missing; source=stem expects a folder"),
        ({"source": Source.jsonl}, "'path': is missing; source=jsonl expects a file"),
        ({"path": "x"}, "'path': is x; source=drawn expects no path"),
        ({"split": "valid"}, "source=drawn has its own splits"),
        ({"tune_fraction": 1.0}, "'tune_fraction': 1.0 is not from 0 to below 1"),
        ({"seed": -1}, "'seed': -1 is below 0"),
        ({"workers": 0}, "'workers': 0 is below 1"),
        ({"max_image_side": 0}, "'max_image_side': 0 is below 1"),
        ({"shard_bytes": 0}, "'shard_bytes': 0 is not above 0"),
        ({"questions_per_skill": {"dev": 1}}, "there is no split 'dev'; expected one of train,"),
        ({"questions_per_skill": {"test": -1}}, "'questions_per_skill.test': -1 is below 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        PrepareConfig(out="x", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"split": "tune"},
            "'split': there is no split 'tune'; expected one of train, valid, test",
        ),
        ({"split": "test", "split_fractions": {"train": 1.0}}, "give one of them, not both"),
        ({"split_fractions": {"train": 0.5}}, "{'train': 0.5} are not all above 0 with sum 1"),
    ],
)
def test_wrong_splits_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=re.escape(message)):
        PrepareConfig(out="x", source=Source.jsonl, path="y", **values)


# ---------------------------------------------------------------------------- pictures


MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "jpeg": ["1", "L", "RGB", "CMYK"],
    "webp": ["L", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
}


@pytest.mark.parametrize(("name", "mode"), [(n, mode) for n in MODES for mode in MODES[n]])
@pytest.mark.parametrize("side", [1, 40])
def test_odd_pictures_are_let_in_and_shrink(name: str, mode: str, side: int) -> None:
    image: Image.Image = Image.open(io.BytesIO(encoded(1, side=side)))
    # Pillow makes 16-bit pictures of none but 32-bit ones.
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, name)
    data = buffer.getvalue()
    suffix = {"jpeg": "jpg"}.get(name, name)
    assert check_picture(data, decode=True) == check_picture(data, decode=False) == suffix
    smaller = shrink(data, 20)
    assert (smaller == data) == (side == 1)
    assert check_picture(smaller, decode=True) == suffix
    assert max(Image.open(io.BytesIO(smaller)).size) == min(side, 20)


def test_a_bomb_is_refused_by_its_header() -> None:
    tracemalloc.start()
    with pytest.raises(ClipstemError, match=r"^has 900,000,000 pixels; at most 64,000,000 are"):
        check_picture(png_header(30_000, 30_000), decode=True)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_large_pictures_are_shrunk_when_asked_and_it_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "large.jpg").write_bytes(encoded(0, "jpeg", side=80))
    (folder / "small.png").write_bytes(encoded(1, "png", side=30))
    rows = [row(0, image="large.jpg"), row(1, image="small.png")]
    dataset = prepared(tmp_path, write_jsonl(folder, rows), max_image_side=32, tune_fraction=0.0)
    assert dataset.manifest.max_image_side == 32
    found = questions_of(dataset)
    large = Image.open(io.BytesIO(found["q0"][1].pictures[0].data))
    assert (large.format, large.size) == ("JPEG", (32, 32))
    assert found["q1"][1].pictures[0].data == (folder / "small.png").read_bytes()


# ---------------------------------------------------------------------------- splits


@given(st.data(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_a_plain_search(data: st.DataObject, questions: int) -> None:
    edge = st.tuples(st.integers(0, questions - 1), st.integers(0, 30))
    edges = data.draw(st.lists(edge, max_size=60))
    question_T, token_T = np.array(edges, np.int64).reshape(-1, 2).T
    label = list(range(questions))
    for _ in range(questions):
        for question, token in edges:
            least = min(label[q] for q, t in edges if t == token)
            label[question] = least
    assert components(question_T, token_T, questions).tolist() == label


def test_a_long_chain_is_one_component() -> None:
    links = np.arange(100_000)
    question_T = np.concatenate([links, links + 1])
    token_T = np.concatenate([links, links])
    started = time.perf_counter()
    assert (components(question_T, token_T, 100_001) == 0).all()
    assert time.perf_counter() - started < 10


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(0, 99))
@settings(deadline=None)
def test_shares_hold_whole_components(component_N: list[int], seed: int) -> None:
    share_N = divide(np.array(component_N), [0.7, 0.3], seed)
    assert len({(c, s) for c, s in zip(component_N, share_N.tolist(), strict=True)}) == len(
        set(component_N)
    )


def test_single_questions_are_divided_exactly() -> None:
    share_N = divide(np.arange(1000), [0.8, 0.15, 0.05], seed=1)
    assert np.bincount(share_N).tolist() == [800, 150, 50]


# ---------------------------------------------------------------------------- memory


def peak_bytes(run: subprocess.Popen[bytes]) -> int:
    """Largest resident size that a run or one of its workers had before it ended."""
    peak_kib = 0
    while run.poll() is None:
        for process in [run.pid, *children(run.pid)]:
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:  # it has just ended
                continue
            found = re.search(r"VmHWM:\s*(\d+) kB", status)
            peak_kib = max(peak_kib, int(found[1]) if found else 0)
        time.sleep(0.2)
    return peak_kib * 1024


@pytest.mark.slow
def test_memory_stays_flat_on_200_000_rows(tmp_path: Path) -> None:
    """Each of two row groups holds 0.9 GB, twice what STEM's do; no process comes to 1 GiB."""
    tail = np.random.default_rng(0).integers(0, 256, 9000, np.uint8).tobytes()
    head = encoded(0, side=8)

    def table(start: int) -> pa.Table:
        # A PNG may be followed by anything, which makes every picture another one and large.
        rows = range(start, start + 10_000)
        made = (stem(0, problem=f"{i}?", problem_pic=head + b"%d" % i + tail) for i in rows)
        return pa.Table.from_pylist(list(made), SCHEMA)

    path = tmp_path / "in" / "train-00000.parquet"
    path.parent.mkdir()
    whole = pa.concat_tables([table(start) for start in range(0, 200_000, 10_000)])
    pq.write_table(whole, path, 100_000, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).metadata.row_group(1).total_byte_size > 9 * 10**8
    command = [*PREPARE, "source=stem", f"path={path.parent}", f"out={tmp_path}/out", "workers=2"]
    run = subprocess.Popen(command)
    assert peak_bytes(run) < 2**30
    assert run.returncode == 0
    assert open_dataset(f"{tmp_path}/out").manifest.questions == {"train": 190_000, "tune": 10_000}

"""Lines of JSON: all kinds come through, each bad row with its reason."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from preparing import (
    encoded,
    png_header,
    prepared,
    questions_of,
    row,
    skipped,
    write_jsonl,
)

from clipstem.question import ClipstemError


def test_lines_of_all_kinds_come_through(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "pictures").mkdir(parents=True)
    for i, name in enumerate(("png", "jpeg", "webp", "gif", "bmp", "tiff")):
        (folder / "pictures" / f"{i}.bin").write_bytes(encoded(i, name))
    pictures = [{"image": f"pictures/{i}.bin"} for i in range(6)]
    rows = [
        row(0, image="pictures/0.bin", caption="A dot."),
        row(1, options=[pictures[1], {**pictures[2], "caption": "A line."}]),
        row(2, options=pictures[3:6], image="pictures/0.bin", caption=None, split="valid"),
        row(3, image=None, caption=None, split="validation"),
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
    assert {q.id: [p.caption for p in q.pictures] for _, q in found.values()} == {
        **{"q0": ["A dot."], "q1": [None, "A line."], "q2": [None] * 4, "q3": [], "q4": []}
    }
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
    (row(1, skill=""), "skill", "is empty; expected a name"),
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
    (row(1, caption="A dot."), "caption", "is given without an image; expected both"),
    (row(1, image="ok.png", caption=1), "caption", "is 1; expected a text"),
    (row(1, image="ok.png", caption=" "), "picture", "has an empty caption; leave it out"),
    (row(1, image="ok.png", caption="a " * 20_000), "picture", "has a caption that has 40,000"),
    (row(1, image="ok.png", caption="\ud800"), "picture.caption", "has half of a surrogate pair;"),
    (
        row(1, options=[{"image": "ok.png", "caption": 7}, {"image": "ok.png"}]),
        *("options[0].caption", "is 7; expected a text"),
    ),
    (row(1, image="ok.png", captions="a dot"), "captions", "is unknown; did you mean 'caption'?"),
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
    (row(1, image="bomb.png"), "picture", "has 900,000,000 pixels; at most 20,000,000 are allowed"),
    (row(1, image="large.png"), "picture", "has 20,004,000 pixels; at most 20,000,000 are allowed"),
    (row(1, image="page.eps"), "picture", "is not a picture (starts with b'%!PS-')"),
    (row(1, options=[{"image": "ok.png"}, {"image": "html.jpg"}]), "options[1]", OPTION),
]


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
    (folder / "large.png").write_bytes(png_header(5001, 4000))
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

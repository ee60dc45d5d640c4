"""Questions as lines of JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from preparing import encoded, row, write_jsonl

from hostile.table import RUN_CODE, Accepted, Make, Skipped, kinds, rewrite


def clean_jsonl(folder: Path) -> None:
    jsonl()(folder)


def jsonl(*bad: dict[str, Any] | bytes) -> Make:
    """A maker: good lines with pictures, then the bad ones."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "ok.png").write_bytes(encoded(1))
        write_jsonl(folder, [row(0), row(1, image="ok.png"), *bad])

    return make


def line(**changes: Any) -> Make:
    return jsonl(row(2, **changes))


def linked(target: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "link.png").symlink_to(target)
        line(image="link.png")(folder)

    return make


def named_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    line(image="pipe.png")(folder)


def large_file(folder: Path) -> None:
    with (folder / "big.png").open("wb") as file:
        file.truncate(2**30)
    line(image="big.png")(folder)


NO_JSON = Skipped("line", "is not JSON in UTF-8")

kinds(
    "jsonl",
    ("line that is no JSON", jsonl(b"{"), NO_JSON),
    ("line of NUL bytes", jsonl(bytes(100)), NO_JSON),
    ("line that is no UTF-8", jsonl(b'{"id": "\xff"}'), NO_JSON),
    ("line in UTF-16", jsonl(json.dumps(row(2)).encode("utf-16-be").replace(b"\n", b"")), NO_JSON),
    ("line that nests 100,000 deep", jsonl(b"[" * 100_000), NO_JSON),
    (
        "options that nest 900 deep",
        jsonl(
            json.dumps(row(2, options=...)).encode()[:-1]
            + b', "options": '
            + b"[" * 900
            + b"]" * 900
            + b"}"
        ),
        Skipped("options[0]", "is "),
    ),
    (
        "line of 64 MB",
        jsonl(b'"' + b"x" * 64 * 2**20 + b'"'),
        Skipped("line", "is too long; expected at most 1,048,576 bytes"),
    ),
    ("number of 100,000 digits", jsonl(b'{"answer": ' + b"9" * 100_000 + b"}"), NO_JSON),
    (
        "object with 20,000 unknown fields",
        jsonl({f"field{i}": i for i in range(20_000)}),
        Skipped("line", "has 20,000 fields"),
    ),
    (
        "field that stands there twice",
        rewrite(
            "questions.jsonl", lambda data: data.replace(b'"id": "q0"', b'"id": "x", "id": "q0"')
        ),
        Accepted(),
    ),
    (
        "byte-order mark",
        rewrite("questions.jsonl", lambda data: b"\xef\xbb\xbf" + data),
        Accepted(),
    ),
    (
        "Windows line ends and no last one",
        rewrite("questions.jsonl", lambda data: data.replace(b"\n", b"\r\n").strip()),
        Accepted(),
    ),
    ("list instead of an object", jsonl(b"[1]"), Skipped("line", "is [1]; expected an object")),
    ("id that is a number", line(id=7), Skipped("id", "is 7; expected a text")),
    ("id that came before", line(id="q0"), Skipped("id", "'q0' came before")),
    (
        "half of a surrogate pair",
        line(problem="\ud800"),
        Skipped("problem", "has half of a surrogate pair"),
    ),
    (
        "answer that is NaN",
        jsonl(json.dumps(row(2, answer=float("nan"))).encode()),
        Skipped("answer", "is NaN"),
    ),
    ("answer that is true", line(answer=True), Skipped("answer", "is true")),
    (
        "5,000 options",
        line(options=["a"] * 5000),
        Skipped("options", "there are 5,000; expected at most 1,000"),
    ),
    (
        "word of 15,000 letters",
        line(problem="y" * 15_000),
        Skipped("problem", "has a word that is too long"),
    ),
    (
        "picture outside of the folder",
        line(image="../outside/secret.png"),
        Skipped("image", "'../outside/secret.png' has '..'"),
    ),
    (
        "picture with an absolute path",
        line(image="/etc/passwd"),
        Skipped("image", "'/etc/passwd' is an absolute path"),
    ),
    (
        "picture over a link out of the folder",
        linked("../outside/secret.png"),
        Skipped("image", "'link.png' leads out of the file's folder"),
    ),
    ("picture over a link to itself", linked("link.png"), Skipped("image", "'link.png' ")),
    (
        "picture that is an endless device",
        linked("/dev/zero"),
        Skipped("image", "'link.png' leads out"),
    ),
    (
        "picture that is a named pipe",
        named_pipe,
        Skipped("image", "'pipe.png' is no file"),
    ),
    (
        "picture that is a pipe: URL",
        line(image=f"pipe:{RUN_CODE}"),
        Skipped("image", f"'pipe:{RUN_CODE}' is no file"),
    ),
    (
        "picture that is missing",
        line(image="nowhere.png"),
        Skipped("image", "'nowhere.png' is no file"),
    ),
    (
        "picture of 1 GB on the disk",
        large_file,
        Skipped("image", "'big.png' has more than 33,554,432 bytes"),
    ),
    ("path with a NUL byte", line(image="ok.png\0.png"), Skipped("image", 'is "ok.png')),
)

"""What asking a language model reads: captions of pictures, and the answers of before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from preparing import encoded

from hostile.pictures import OTHER
from hostile.table import RUN_CODE, Accepted, Make, Refused, kinds, replaced, rewrite

CAPTIONS = "captions.jsonl"


def clean_captions(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "ok.png").write_bytes(encoded(1))
    lines = [
        {"picture": "ok.png", "caption": "a ball"},
        {"picture": "0" * 64, "caption": "a box", "made_by": "somebody"},
    ]
    (folder / CAPTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(data: bytes) -> Make:
    """A maker: one more line."""
    return rewrite(CAPTIONS, lambda before: before + data)


def caption(**changes: Any) -> Make:
    return line(json.dumps({"picture": "1" * 64, "caption": "a tree", **changes}).encode())


def linked(target: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "link.png").symlink_to(target)
        caption(picture="link.png")(folder)

    return make


NO_JSON = Refused("captions.jsonl: line 3: line is not JSON in UTF-8")

kinds(
    "captions",
    ("line that is no JSON", line(b"{"), NO_JSON),
    ("line that is no UTF-8", line(b'{"picture": "\xff"}'), NO_JSON),
    ("line that nests 100,000 deep", line(b"[" * 100_000), NO_JSON),
    ("list instead of an object", line(b"[1]"), Refused("line 3: line is .1.; expected an object")),
    (
        "line of 64 MB without an end",
        line(b'"' + b"x" * 64 * 2**20),
        Refused("line 3: line is too long; expected at most 1,048,576 bytes"),
    ),
    (
        "object with 20,000 fields",
        line(json.dumps({f"field{i}": i for i in range(20_000)}).encode()),
        Refused("line 3: line has 20,000 fields"),
    ),
    ("no picture", line(b'{"caption": "x"}'), Refused("line 3: picture is missing")),
    ("no caption", line(b'{"picture": "x"}'), Refused("line 3: caption is missing")),
    ("caption that is a number", caption(caption=7), Refused("line 3: caption is 7; expected a t")),
    ("caption that is null", caption(caption=None), Refused("line 3: caption is null")),
    ("caption of blanks", caption(caption=" \n"), Refused("line 3: caption is ")),
    (
        "caption of 100,000 characters",
        caption(caption="x" * 100_000),
        Refused("line 3: caption has 100,000 characters; expected at most 20,000"),
    ),
    ("caption with line ends and options of its own", caption(caption="a\n\nA. no\nB. yes"), OTHER),
    ("half of a surrogate pair", caption(caption="a \ud800"), OTHER),
    ("picture that is a list", caption(picture=["ok.png"]), Refused("line 3: picture is ")),
    (
        "two captions for one picture",
        caption(picture="0" * 64, caption="a bag"),
        Refused("lines 2 and 3 have two captions for one picture"),
    ),
    ("the same caption twice", caption(picture="0" * 64, caption="a box"), Accepted()),
    (
        "Windows line ends, blank lines and a byte-order mark",
        rewrite(CAPTIONS, lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n")),
        Accepted(),
    ),
    ("picture that is missing", caption(picture="no.png"), Refused("'no.png' is no file")),
    (
        "picture outside of the folder",
        caption(picture="../outside/secret.png"),
        Refused("'../outside/secret.png' has '..'"),
    ),
    ("picture with an absolute path", caption(picture="/etc/passwd"), Refused("an absolute path")),
    (
        "picture over a link out of the folder",
        linked("../outside/secret.png"),
        Refused("'link.png' leads out of the file's folder"),
    ),
    ("picture that is an endless device", linked("/dev/zero"), Refused("'link.png' leads out")),
    (
        "picture that is a pipe: URL",
        caption(picture=f"pipe:{RUN_CODE}"),
        Refused("is no file"),
    ),
    ("named pipe", replaced(CAPTIONS, os.mkfifo), Refused("there is no such file")),
    (
        "endless device",
        replaced(CAPTIONS, lambda path: path.symlink_to("/dev/zero")),
        Refused("no"),
    ),
)


def clean_answers(folder: Path) -> None:
    """A file of answers that one run has left and another goes on with."""
    from clipstem.ask.answers import Reply, opened

    folder.mkdir(exist_ok=True)
    with opened(folder / ANSWERS) as answers:
        for number in range(3):
            answers.add(f"k{number}", f"q{number}", Reply("B", "stop", "m", 1, 1, ()))


ANSWERS = "answers.jsonl"


def answer(**changes: Any) -> Make:
    """A maker: one more line, with another reply."""
    reply = {"text": "A", "finish_reason": "stop", "model": "m", "prompt_tokens": 1,
             "completion_tokens": 1, "letters": [], **changes}  # fmt: skip
    record = {"key": "k9", "question": "q9", "reply": reply}
    return rewrite(ANSWERS, lambda before: before + json.dumps(record).encode() + b"\n")


def more(data: bytes) -> Make:
    return rewrite(ANSWERS, lambda before: before + data)


kinds(
    "answers",
    ("another file", rewrite(ANSWERS, lambda _: b"id,answer\n"), Refused("is no file of answers")),
    ("empty file", rewrite(ANSWERS, lambda _: b""), OTHER),
    ("half of the last line", rewrite(ANSWERS, lambda data: data[:-20]), OTHER),
    ("line that is no JSON", more(b"{\n"), Accepted()),
    ("line that nests 100,000 deep", more(b"[" * 100_000 + b"\n"), Accepted()),
    ("line of 64 MB without an end", more(b'"' + b"x" * 64 * 2**20), Accepted()),
    ("text that is a number", answer(text=7), Accepted()),
    ("letters that are none", answer(letters=[7]), Accepted()),
    (
        "probabilities that are NaN or far too large",
        answer(
            letters=[
                {
                    "start": 0,
                    "stop": 1,
                    "logprobs": {"A": float("nan"), "B": 1e299},
                    "least": float("nan"),
                    "rest": -1e299,
                }
            ]
        ),
        OTHER,
    ),
    (
        "places outside of the text",
        answer(
            letters=[
                {
                    "start": -(10**30),
                    "stop": 10**30,
                    "logprobs": {"A": -0.1},
                    "least": 9.0,
                    "rest": 1e299,
                }
            ]
        ),
        OTHER,
    ),
    ("text with half of a surrogate pair", answer(text="A \ud800"), OTHER),
    ("named pipe", replaced(ANSWERS, os.mkfifo), Refused("is no plain file")),
    ("endless device", replaced(ANSWERS, lambda path: path.symlink_to("/dev/zero")), Refused("no")),
)

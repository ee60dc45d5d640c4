"""Answers on disk: nothing is lost but half a line, and nothing is taken for another."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipstem.ask.answers import (
    HEADER,
    MAX_CHARACTERS,
    MAX_POSITIONS,
    LetterLogprobs,
    Reply,
    key_of,
    opened,
    reply_of,
)
from clipstem.question import ClipstemError


def reply(text: str = "B", **values: Any) -> Reply:
    return Reply(text, "stop", "m", 1, 2, (), **values)


def completed(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, **choice}]}


# ---------------------------------------------------------------------------- completions


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "B"}, "B"),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": "", "refusal": "I can't help with that."}, "I can't help with that."),
        ({"content": [{"type": "text", "text": "Is "}, {"type": "text", "text": "B"}]}, "Is B"),
        ({"content": [{"type": "image"}, {"type": "text", "text": "B"}]}, "B"),
        ({"content": 7}, ""),
        ({"content": "half \ud800 of a pair"}, "half ? of a pair"),
        ({"content": "x" * MAX_CHARACTERS + "Answer: B"}, "x" * (MAX_CHARACTERS - 9) + "Answer: B"),
    ],
)  # fmt: skip
def test_what_a_message_says(message: dict[str, Any], text: str) -> None:
    assert reply_of(completed(message)).text == text


@pytest.mark.parametrize("usage", [None, 7, [], {}, {"prompt_tokens": "7"}, {"prompt_tokens": -1},
                                   {"prompt_tokens": 10**12}, {"prompt_tokens": True}])  # fmt: skip
def test_a_usage_that_is_none_is_not_known(usage: Any) -> None:
    found = reply_of({**completed({"content": "B"}), "usage": usage, "model": 7})
    assert (found.prompt_tokens, found.completion_tokens, found.model) == (None, None, "")


def test_names_of_the_endpoint_are_short_and_plain() -> None:
    values = {
        **completed({"content": "B"}, finish_reason="st\nop"),
        "model": "\x1b[31m" + "m" * 999,
    }
    found = reply_of(values)
    assert found.finish_reason == "stop" and found.model == "[31m" + "m" * 195


def token(word: str, logprob: Any = -0.1, **top: Any) -> dict[str, Any]:
    given = [{"token": it, "logprob": value} for it, value in top.items()]
    return {"token": word, "logprob": logprob, "top_logprobs": given}


def letters_of(text: str, *tokens: Any) -> tuple[LetterLogprobs, ...]:
    return reply_of(completed({"content": text}, logprobs={"content": list(tokens)})).letters


def test_letters_have_the_logprobs_of_their_place() -> None:
    (found,) = letters_of(
        "Answer: (B)",
        token("Answer", A=-1.0),
        token(":"),
        token(" (", B=-1.0),
        token("B", -0.5, B=-0.5, A=-1.5, The=-3.0, c=-4.0, F=-9999.0),
        token(")"),
    )
    assert (found.start, found.stop) == (9, 10)
    assert found.logprobs == pytest.approx({"B": -0.5, "A": -1.5, "C": -4.0, "F": -700.0})
    assert found.least == math.exp(-700.0)
    assert found.rest == pytest.approx(1 - sum(map(math.exp, (-0.5, -1.5, -3.0, -4.0))))


def test_the_same_letter_in_several_tokens_is_as_probable_as_all() -> None:
    given = {"B": math.log(0.3), " B": math.log(0.2), "(B": math.log(0.1), "A": math.log(0.4)}
    (found,) = letters_of("B", token("B", math.log(0.3), **given))
    assert found.logprobs == pytest.approx({"B": math.log(0.6), "A": math.log(0.4)})


def test_without_the_top_the_letter_itself_is_known() -> None:
    (found,) = letters_of(" B", {"token": " B", "logprob": -0.25})
    assert (found.start, found.stop) == (0, 2)
    assert found.logprobs == pytest.approx({"B": -0.25})
    assert found.least == 1 - found.rest == pytest.approx(math.exp(-0.25))


@pytest.mark.parametrize(
    "logprobs",
    [
        None, 7, [], {}, {"content": None}, {"content": 7}, {"content": [7]}, {"tokens": ["B"]},
        {"content": [{"token": 7}]}, {"content": [token("C")]},
        {"content": [token("The"), token("B")]},
    ],
)  # fmt: skip
def test_logprobs_of_other_words_or_forms_are_none(logprobs: Any) -> None:
    assert reply_of(completed({"content": "B"}, logprobs=logprobs)).letters == ()


@pytest.mark.parametrize("value", [None, "x", math.nan, math.inf, 5.0, -1e9, True])
def test_logprobs_that_are_none_are_left_out(value: Any) -> None:
    (found,) = letters_of("B", token("B", value, A=-1.0, C=value))
    assert found.logprobs == pytest.approx({"A": -1.0})


def test_of_a_long_answer_the_last_places_are_kept() -> None:
    text = "B " * MAX_CHARACTERS
    found = letters_of(text, *([token("B", B=-0.1), token(" ")] * MAX_CHARACTERS))
    assert len(found) == MAX_POSITIONS
    assert (found[-1].start, found[-1].stop) == (MAX_CHARACTERS - 2, MAX_CHARACTERS - 1)


# ---------------------------------------------------------------------------- keys

BODY: dict[str, Any] = {"model": "m", "temperature": 0.0, "messages": [{"content": "?"}]}


def test_any_change_of_a_request_is_another_request() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"model": "n"}, {"temperature": 0.1}, {"messages": [{"content": "? "}]},
        {"max_tokens": 1}, {"logprobs": True},
    ]  # fmt: skip
    keys = {key_of("http://a", BODY | change, 0) for change in changes}
    keys |= {key_of("http://b", BODY, 0), key_of("http://a", BODY, 1)}
    assert len(keys) == len(changes) + 2


def test_the_order_of_a_requests_fields_is_nothing() -> None:
    assert key_of("u", BODY, 0) == key_of("u", dict(reversed(BODY.items())), 0)


# ---------------------------------------------------------------------------- the file


def line_of(**changes: Any) -> bytes:
    return json.dumps({"key": "k", "question": "q", "reply": asdict(reply()), **changes}).encode()


def test_answers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    letters = (LetterLogprobs(0, 1, {"B": -0.5}, 0.25, 0.125),)
    kept = {"k0": reply("ein Kreis ○\n"), "k1": Reply("B", "length", "", None, None, letters)}
    with opened(path) as answers:
        assert len(answers) == 0 and "k0" not in answers
        for key, value in kept.items():
            answers.add(key, "q", value)
    with opened(path) as answers:
        assert {key: answers[key] for key in kept} == kept and len(answers) == 2
        assert answers.passed_over == 0
    first, *lines = path.read_text().splitlines()
    assert first.encode() + b"\n" == HEADER
    assert [json.loads(line)["question"] for line in lines] == ["q", "q"]


texts = st.text(st.characters(), max_size=20)


@settings(max_examples=40)
@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_wherever_a_process_was_killed_whole_lines_are_kept(
    tmp_path_factory: pytest.TempPathFactory, said: list[str], data: st.DataObject
) -> None:
    """Cut the file anywhere; what was whole is there, and what is added after is there too."""
    path = tmp_path_factory.mktemp("killed") / "a.jsonl"
    with opened(path) as answers:
        for number, text in enumerate(said):
            answers.add(f"k{number}", "q", reply(text))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    ends = [place + 1 for place in range(len(whole)) if whole[place : place + 1] == b"\n"]
    complete = sum(end <= cut for end in ends[1:])
    for _ in range(2):  # the second time behind what was added
        with opened(path) as answers:
            found = {key for key in (f"k{i}" for i in range(len(said))) if key in answers}
            # A line of which only its end is missing may be known or not.
            assert {f"k{i}" for i in range(complete)} <= found
            assert len(found) <= complete + 1
            answers.add("later", "q", reply("later"))
    with opened(path) as answers:
        assert answers["later"].text == "later"
        assert all(answers[key].text == said[int(key[1:])] for key in found)


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"key": "k"}', b'{"key": "k", "reply": 7}',
        b'{"key": "k", "reply": {"text": "B"}}', b'"' + b"x" * 2**21 + b'"',
        line_of(key=7), line_of(reply={**asdict(reply()), "text": 7}), line_of(question=None),
    ],
)  # fmt: skip
def test_lines_that_are_no_answers_are_passed_over_and_counted(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with opened(path) as answers:
        answers.add("one", "q", reply("A"))
    with path.open("ab") as file:
        file.write(line + b"\n")
    with opened(path) as answers:
        answers.add("two", "q", reply("B"))
    with opened(path) as answers:
        assert answers.passed_over == 1 and len(answers) == 2
        assert (answers["one"].text, answers["two"].text) == ("A", "B")


def test_files_put_together_are_a_file_of_answers(tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for number, path in enumerate(parts):
        with opened(path) as answers:
            answers.add(f"k{number}", "q", reply(str(number)))
            answers.add("both", "q", reply(str(number)))
    together = tmp_path / "both.jsonl"
    together.write_bytes(b"".join(path.read_bytes() for path in parts))
    with opened(together) as answers:
        assert len(answers) == 3 and answers.passed_over == 0
        assert answers["both"].text == "0"


@pytest.mark.parametrize(
    "content", [b"id,answer\n1,B\n", b"{}\n", b"\0" * 9, b"x", HEADER * 2 + b"x"]
)
def test_another_file_is_not_written_to(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    if content.startswith(HEADER):
        with opened(path) as answers:
            assert answers.passed_over == 1
        return
    with pytest.raises(ClipstemError, match="is no file of answers"), opened(path):
        pass
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_what_is_no_plain_file_is_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ClipstemError, match="cannot be opened") as refused, opened(tmp_path / "a"):
        pass
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "could not be written (No space left on device); the answers before are kept"
    with opened(tmp_path / "a") as answers:
        with Path("/dev/full").open("wb", buffering=0) as full:
            monkeypatch.setattr(answers, "_handle", full.fileno())
            with pytest.raises(ClipstemError, match=re.escape(message)):
                answers.add("k", "q", reply())
        assert "k" not in answers


def test_two_runs_do_not_share_a_file_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from clipstem.ask.answers import opened\n"
        "with opened(Path(sys.argv[1])): print('open', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ClipstemError, match="is in use by another run; wait for it"):  # noqa: SIM117
            with opened(path):
                pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with opened(path) as answers:
        answers.add("k", "q", reply())

"""What a language model has answered, and the file of it that nothing is asked twice for."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipstem import facts
from clipstem.ask.prompts import LETTERS
from clipstem.jsonl import next_line, object_of
from clipstem.question import ClipstemError
from clipstem.sources import BadField

HEADER = b'{"format": "clipstem answers 1"}\n'
MAX_CHARACTERS = 100_000  # of an answer; of a longer one the end is kept, where the option stands
MAX_POSITIONS = 200  # places of an answer with letters' probabilities; the last ones are kept
MAX_TOKENS = 10**9  # of one answer, or whoever says so cannot be believed
LEAST_LOGPROB = -700.0  # whose exponential is not 0 yet; some endpoints say -9999 for "unlikely"
AROUND = " \t\r\n()[]{}*_.:,;\"'`"  # what a token may hold besides a letter


@dataclass(frozen=True)
class LetterLogprobs:
    """How probable letters are where one of them stands, at a place of the text.

    Attributes:
        start, stop: of the token, in characters of the text.
        logprobs: of those letters that are among the most probable tokens.
        least: the probability of the least of these tokens, letter or not: no other has more.
        rest: the probability of all other tokens together.
    """

    start: int
    stop: int
    logprobs: dict[str, float]
    least: float
    rest: float


@dataclass(frozen=True)
class Reply:
    """One answer of a language model.

    Attributes:
        text: what it says; empty for a refusal without words.
        finish_reason: why it ends: "stop", "length" where `max_tokens` cut it off …
        model: who answered, by the endpoint's own words.
        prompt_tokens, completion_tokens: what it cost; None where the endpoint does not say.
        letters: where a token of the answer is a letter, the probabilities of all letters there.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    letters: tuple[LetterLogprobs, ...]


def reply_of(completion: Any) -> Reply:
    """The first choice of a chat completion.

    Raises:
        ClipstemError: with the reason why it is none.
    """
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        text = _text(message.get("content")) or _text(message.get("refusal"))
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ClipstemError("is no chat completion (no choices[0].message)") from None
    kept = text[-MAX_CHARACTERS:]
    usage = completion.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    letters = _letters(choice.get("logprobs"), text, len(text) - len(kept))
    return Reply(
        text=kept,
        finish_reason=_name(choice.get("finish_reason")),
        model=_name(completion.get("model")),
        prompt_tokens=_tokens(usage.get("prompt_tokens")),
        completion_tokens=_tokens(usage.get("completion_tokens")),
        letters=tuple(letters)[-MAX_POSITIONS:],
    )


def _text(content: Any) -> str:
    """A message's content: a text, or parts of which some are texts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _name(value: Any) -> str:
    """A short text of the endpoint's, without what would disturb a terminal."""
    text = value[:200] if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())


def _tokens(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def _letters(logprobs: Any, text: str, cut: int) -> Iterator[LetterLogprobs]:
    """The letters' probabilities in a text whose first `cut` characters were not kept.

    Endpoints may leave them out, give them in other forms, or those of other words: then there are
    none.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    start = 0
    for token in tokens if isinstance(tokens, list) else ():
        word = token.get("token") if isinstance(token, dict) else None
        if not isinstance(word, str):
            return
        stop = start + len(word)
        if start >= cut and _letter(word) and text[start:stop] == word:
            yield _letters_at(start - cut, stop - cut, token)
        start = stop


def _letters_at(start: int, stop: int, token: dict[str, Any]) -> LetterLogprobs:
    top = token.get("top_logprobs")
    entries = [_entry(it) for it in (*(top if isinstance(top, list) else ()), token)]
    # Most endpoints name the token itself among the top, and some not.
    shares = {word: math.exp(logprob) for word, logprob in reversed(entries) if logprob is not None}
    letters: dict[str, float] = {}
    for word, share in shares.items():
        if letter := _letter(word):  # " B" beside "B" is the same letter
            letters[letter] = letters.get(letter, 0.0) + share
    return LetterLogprobs(
        start,
        stop,
        logprobs={letter: math.log(share) for letter, share in letters.items()},
        least=min(shares.values(), default=1.0),
        rest=max(0.0, 1.0 - sum(shares.values())),
    )


def _entry(token: Any) -> tuple[str, float | None]:
    """A token and the logarithm of its probability; None where that is no such number."""
    if not isinstance(token, dict) or not isinstance(token.get("token"), str):
        return "", None
    value: Any = token.get("logprob")
    if type(value) not in (int, float) or not -1e4 <= value <= 1e-3:  # a NaN is not between
        return "", None
    return token["token"], max(min(float(value), 0.0), LEAST_LOGPROB)


def _letter(word: str) -> str:
    bare = word.strip(AROUND).upper()
    return bare if len(bare) == 1 and bare in LETTERS else ""


# ---------------------------------------------------------------------------- the file


def key_of(url: str, body: Mapping[str, Any], sample: int) -> str:
    """What a request is known by: all of it, so that another prompt, model or setting is another.

    `sample` tells apart several answers to the same request.
    """
    whole = json.dumps({"url": url, "body": body, "sample": sample}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class _Record:
    """A line of the file; `question` is the first one that it was asked for."""

    key: str
    question: str
    reply: Reply


class Answers:
    """The file of answers, one JSON object a line. Lines are only ever added, each by one write;
    a process that is killed leaves half a line at most, which is passed over.

    Attributes:
        passed_over: lines that are no answers.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.passed_over = 0
        self._handle = handle
        self._replies: dict[str, Reply] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, question: str, reply: Reply) -> None:
        """Keep an answer; it is in the file when this returns.

        Raises:
            ClipstemError: if the disk does not take it.
        """
        self._append(json.dumps(asdict(_Record(key, question, reply))).encode() + b"\n")
        self._replies[key] = reply

    def _append(self, line: bytes) -> None:
        try:
            if os.write(self._handle, line) < len(line):
                raise OSError(0, "no room for all of a line")
        except OSError as error:
            raise ClipstemError(
                f"{self.path}: could not be written ({error.strerror}); the answers before are "
                "kept, and the same command goes on with them"
            ) from None

    def read(self) -> None:
        """Take what the file holds, and make it ready to be added to.

        Raises:
            ClipstemError: if it is no file of answers.
        """
        last = HEADER
        with self.path.open("rb") as lines:
            first = next_line(lines)
            if first != HEADER and not HEADER.startswith(first):
                raise ClipstemError(
                    f"conf key 'cache': '{self.path}' is no file of answers; expected one that "
                    "python -m clipstem.ask has made, or a new name"
                )
            while line := next_line(lines):
                self._take(line)
                last = line
        if first != HEADER:  # nothing, or a part of it
            os.ftruncate(self._handle, 0)
            self._append(HEADER)
        elif not last.endswith(b"\n"):
            self._append(b"\n")

    def _take(self, line: bytes) -> None:
        if line == HEADER or not line.strip():  # of files that were put together
            return
        try:
            record = facts.of_type(_Record, object_of(line))
        except (BadField, ClipstemError):
            self.passed_over += 1
        else:
            self._replies.setdefault(record.key, record.reply)


@contextmanager
def opened(path: Path) -> Iterator[Answers]:
    """The answers of a file, which is made if it is not there; no other run may have it open.

    Raises:
        ClipstemError: if it cannot be opened, another run has it, or it is something else.
    """
    handle = _open(path)
    try:
        answers = Answers(path, handle)
        answers.read()
        yield answers
    finally:
        os.close(handle)  # and with it goes the lock


def _open(path: Path) -> int:
    """A handle of the file, which is locked."""
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(0, "is no plain file")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, BlockingIOError):
            raise ClipstemError(
                f"conf key 'cache': '{path}' is in use by another run; wait for it, or give "
                "another cache=<file>"
            ) from None
        raise ClipstemError(
            f"conf key 'cache': '{path}' cannot be opened ({error.strerror}); expected a file to "
            "keep answers in"
        ) from None
    return handle

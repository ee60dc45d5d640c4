"""A question as a language model reads it: lettered options, and captions instead of pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from clipstem.config import AskConfig, Pictures
from clipstem.images import check_picture, decoded
from clipstem.jsonl import next_line, object_of, picture_beside
from clipstem.question import MAX_CHARACTERS, ClipstemError, Picture, Question
from clipstem.sources import BadField, as_json

LETTERS = ascii_uppercase
"""The options' names; a question with more options than letters is not asked."""

SENT_AS = {"png": "png", "jpg": "jpeg", "webp": "webp", "gif": "gif"}
"""Kinds of picture that endpoints read, by suffix; others are sent as PNG."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class NotAsked(ClipstemError):
    """Why a question cannot be put to a language model."""


# ---------------------------------------------------------------------------- captions


def read_captions(path: Path) -> dict[str, str]:
    """The captions of a file by the SHA-256 of their pictures, as the shards store it.

    A line is {"picture": …, "caption": …}; the picture is that hash, or the path of the picture's
    file beside the captions or below. Other fields are not read.

    Raises:
        ClipstemError: naming the first line that is none, or the two that contradict each other.
    """
    captions: dict[str, str] = {}
    line_of: dict[str, int] = {}
    try:
        if not path.is_file():
            raise OSError(0, "there is no such file")
        with path.open("rb") as lines:
            for number, line in enumerate(iter(lambda: next_line(lines), b""), 1):
                if not line.strip():
                    continue
                sha256, caption = _caption(path, number, line)
                if captions.setdefault(sha256, caption) != caption:
                    raise ClipstemError(
                        f"{path}: lines {line_of[sha256]} and {number} have two captions for one "
                        "picture; keep one of them"
                    )
                line_of.setdefault(sha256, number)
    except OSError as error:
        raise ClipstemError(
            f"conf key 'captions': '{path}' cannot be read ({error.strerror}); expected a file of "
            'lines {"picture": <sha256 or path>, "caption": <text>}'
        ) from None
    return captions


def _caption(path: Path, number: int, line: bytes) -> tuple[str, str]:
    try:
        record = object_of(line)
        for field in ("picture", "caption"):
            if field not in record:
                raise BadField(field, "is missing; expected a text")
            if not isinstance(record[field], str) or not record[field].strip():
                raise BadField(field, f"is {as_json(record[field])}; expected a text")
        caption = _in_a_line(record["caption"])
        if len(caption) > MAX_CHARACTERS:
            raise BadField(
                "caption", f"has {len(caption):,} characters; expected at most {MAX_CHARACTERS:,}"
            )
        name = record["picture"]
        if not _SHA256.fullmatch(name):
            name = hashlib.sha256(picture_beside(path, "picture", name)).hexdigest()
    except BadField as bad:
        raise ClipstemError(f"{path}: line {number}: {bad.field} {bad.reason}") from None
    return name, caption


# ---------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Prompt:
    """What is sent for a question.

    Attributes:
        content: the one message of the chat: a text, or texts and pictures.
        options: what each option is called in words; empty for a picture that is sent.
        without_caption: the problem's picture is not told of, because it has no caption.
    """

    content: str | list[dict[str, Any]]
    options: tuple[str, ...]
    without_caption: bool = False


def render(question: Question, config: AskConfig, captions: Mapping[str, str]) -> Prompt:
    """A question's prompt: instruction, problem, its picture, lettered options.

    A problem's picture without a caption is left out. Options have no other text than their
    captions, so that all of them need one.

    Raises:
        NotAsked: if an option's picture has no caption, there are more options than letters, or a
            picture that is to be sent does not decode.
    """
    if len(question.options) > len(LETTERS):
        raise NotAsked(f"has {len(question.options)} options; there are {len(LETTERS)} letters")
    if config.pictures is Pictures.send and question.pictures:
        return _with_pictures(question, config.instruction)
    problem = _caption_of(question.picture, captions) if question.picture else ""
    told = f"\nPicture: {problem}" if problem else ""
    options = tuple(
        _caption_of(option, captions) if isinstance(option, Picture) else option
        for option in question.options
    )
    if unnamed := options.count(""):
        raise NotAsked(
            f"{unnamed} of its {len(options)} pictures to choose from have no caption; give "
            "captions=<file>, `caption` in the data, or pictures=send"
        )
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    content = f"{config.instruction}\n\nQuestion: {question.problem}{told}\n\n{lines}\n\nAnswer:"
    return Prompt(content, options, without_caption=question.picture is not None and not problem)


def _caption_of(picture: Picture, captions: Mapping[str, str]) -> str:
    """The one that the file has, else the data set's, in a line; empty without any."""
    return captions.get(picture.sha256) or _in_a_line(picture.caption or "")


def _in_a_line(caption: str) -> str:
    return " ".join(caption.encode(errors="replace").decode().split())


def _with_pictures(question: Question, instruction: str) -> Prompt:
    parts = [_text(f"{instruction}\n\nQuestion: {question.problem}")]
    if question.picture is not None:
        parts.append(_picture(question.picture))
    options = []
    for letter, option in zip(LETTERS, question.options, strict=False):
        if isinstance(option, Picture):
            parts += [_text(f"{letter}."), _picture(option)]
        else:
            parts.append(_text(f"{letter}. {option}"))
        options.append(option if isinstance(option, str) else "")
    return Prompt([*parts, _text("Answer:")], tuple(options))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(picture: Picture) -> dict[str, Any]:
    data = picture.data
    try:
        kind = SENT_AS.get(check_picture(data, decode=False))
        if kind is None:
            kind, buffer = "png", io.BytesIO()
            decoded(data).save(buffer, kind)
            data = buffer.getvalue()
    except ClipstemError as error:
        raise NotAsked(f"a picture {error}") from None
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}

"""What a client may send, and how it becomes questions whose pictures are decoded already.

Everything is checked before it can meet anybody else's questions in a batch.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from clipstem.config import ServeConfig
from clipstem.images import PictureSpec, check_picture, to_pixels
from clipstem.question import ClipstemError, Kind, Picture, Question

ID_CHARACTERS = 200
NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of pairs that no encoding has."""


class ApiError(HTTPException):
    """What a client is told, with its HTTP status and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))


class Strict(BaseModel):
    """No unknown keys, and no numbers taken for texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


Base64 = Annotated[
    str, Field(min_length=1, description="A PNG, JPEG, WebP, GIF, BMP or TIFF file in base64.")
]


class PictureIn(Strict):
    """An option that is a picture."""

    picture: Base64


class QuestionIn(Strict):
    """A question with its options, all texts or all pictures."""

    id: Annotated[str, Field(max_length=ID_CHARACTERS)] | None = None
    question: Annotated[str, Field(min_length=1, description="The question's text.")]
    picture: Base64 | None = None
    options: Annotated[list[str | PictureIn], Field(min_length=1)]


class QuestionsIn(Strict):
    """Several questions at once."""

    questions: Annotated[list[QuestionIn], Field(min_length=1)]


class AnswerOut(BaseModel):
    """The probability of each option, in their order, and the place of the most probable one."""

    id: str | None
    probabilities: list[float]
    choice: int


class AnswersOut(BaseModel):
    """An answer to each question, in their order."""

    answers: list[AnswerOut]


class ErrorOut(BaseModel):
    """What is wrong with a request."""

    error: str


@dataclass(frozen=True)
class Asked:
    """A question that was let in, with the pixels of its pictures by their sha256."""

    question: Question
    pixels: Mapping[str, NDArray[np.uint8]]


def of_json(body: bytes, config: ServeConfig) -> list[QuestionIn]:
    """The questions of a JSON body: one question, or `{"questions": […]}`.

    Raises:
        ApiError: naming the first field that is wrong.
    """
    try:
        raw = from_json(body)
    except ValueError as error:
        raise ApiError(422, f"the body is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ApiError(422, 'the body is no object; expected a question, or {"questions": […]}')
    # Which of the two it is must be known before it is checked, so that an error names its field.
    shape = QuestionsIn if "questions" in raw else QuestionIn
    _refuse_too_many(raw, config)  # a checker writes an error for each item of a list
    try:
        found = shape.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in first["loc"]
            if part not in ("str", "PictureIn")
        ).lstrip(".")
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise ApiError(422, message) from None
    return found.questions if isinstance(found, QuestionsIn) else [found]


MOST_KEYS = 16  # of an object; the largest that is known has four


def _refuse_too_many(raw: dict[str, Any], config: ServeConfig) -> None:
    """Refuse lists and objects that are longer than anything that is known."""
    questions = raw.get("questions")
    if isinstance(questions, list) and len(questions) > config.max_questions:
        raise ApiError(
            413, f"questions: there are {len(questions):,}; at most {config.max_questions}"
        )
    for place, one in enumerate(questions if isinstance(questions, list) else [raw]):
        here = f"questions[{place}]." if isinstance(questions, list) else ""
        if not isinstance(one, dict):
            continue
        if len(one) > MOST_KEYS:
            raise ApiError(413, f"{here}there are {len(one):,} fields; at most {MOST_KEYS}")
        options = one.get("options")
        if isinstance(options, list):
            _refuse_too_many_options(here, len(options), config)
            if any(isinstance(it, dict) and len(it) > MOST_KEYS for it in options):
                raise ApiError(413, f"{here}options: one has more than {MOST_KEYS} fields")
    if len(raw) > MOST_KEYS:
        raise ApiError(413, f"there are {len(raw):,} fields; at most {MOST_KEYS}")


def _refuse_too_many_options(here: str, count: int, config: ServeConfig) -> None:
    if count > config.max_options:
        raise ApiError(413, f"{here}options: there are {count:,}; at most {config.max_options}")


async def of_form(form: FormData) -> QuestionIn:
    """The question of a form: `question`, `option` for each text, files `picture`,
    `option_picture`.

    Raises:
        ApiError: naming the field that is wrong.
    """
    known = {"id", "question", "picture", "option", "option_picture"}
    if unknown := sorted(set(form) - known):
        raise ApiError(422, f"{unknown[0][:80]}: is no field; expected {', '.join(sorted(known))}")
    texts = [it for it in form.getlist("option") if isinstance(it, str)]
    if len(texts) < len(form.getlist("option")):
        raise ApiError(422, "option: is a file; expected a text (option_picture takes files)")
    pictures = [await _file(it, "option_picture") for it in form.getlist("option_picture")]
    shown = form.get("picture")
    question, identity = form.get("question"), form.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > ID_CHARACTERS):
        raise ApiError(422, f"id: expected a text of at most {ID_CHARACTERS} characters")
    if not isinstance(question, str) or not question:
        raise ApiError(422, "question: is missing; expected the question's text")
    if not texts and not pictures:
        raise ApiError(422, "option: is missing; expected a text or an option_picture for each")
    return QuestionIn(
        id=identity,
        question=question,
        picture=None if shown is None else await _file(shown, "picture"),
        options=[*texts, *(PictureIn(picture=it) for it in pictures)],
    )


async def _file(part: UploadFile | str, name: str) -> str:
    if isinstance(part, str):
        raise ApiError(422, f"{name}: is a text; expected a file")
    data = await part.read()
    if not data:
        raise ApiError(422, f"{name}: is empty; expected an encoded picture")
    return base64.b64encode(data).decode()


def check_texts(questions: Sequence[QuestionIn], config: ServeConfig) -> None:
    """Refuse texts that are too long, and characters that are no text.

    Raises:
        ApiError: saying where, how much there is, and how much is allowed.
    """
    for place, question in enumerate(questions):
        here = f"questions[{place}]." if len(questions) > 1 else ""
        _refuse_too_many_options(here, len(question.options), config)
        texts = {"id": question.id or "", "question": question.question}
        texts |= {
            f"options[{number}]": option
            for number, option in enumerate(question.options)
            if isinstance(option, str)
        }
        for name, text in texts.items():
            if len(text) > config.max_text_characters:
                raise ApiError(
                    413,
                    f"{here}{name}: has {len(text):,} characters; at most "
                    f"{config.max_text_characters:,}",
                )
            if found := NO_TEXT.search(text):
                raise ApiError(
                    422,
                    f"{here}{name}: character {found.start()} is U+{ord(found[0]):04X}, no text",
                )


def asked(
    given: QuestionIn, place: str, spec: PictureSpec, config: ServeConfig, until: float
) -> Asked:
    """A checked question with its pictures decoded. Takes milliseconds: not for the event loop.

    Nobody waits for it any more after `until`, a time of `time.monotonic`.

    Raises:
        ApiError: naming the field that is wrong.
    """
    pixels: dict[str, NDArray[np.uint8]] = {}

    def picture(name: str, text: str) -> Picture:
        if time.monotonic() > until:
            raise ApiError(503, "it took too long; ask again", {"Retry-After": "1"})
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(422, f"{place}{name}: is not base64") from None
        shown = Picture.of(data)
        try:
            check_picture(data, decode=False, max_pixels=config.max_pixels)
            if shown.sha256 not in pixels:
                pixels[shown.sha256] = to_pixels(data, spec, config.max_pixels)
        except ClipstemError as error:
            raise ApiError(422, f"{place}{name}: {error}") from None
        return shown

    options: list[Any] = [
        option if isinstance(option, str) else picture(f"options[{number}].picture", option.picture)
        for number, option in enumerate(given.options)
    ]
    try:
        question = Question(
            id=given.id or "",
            subject="",
            grade="",
            skill="",
            problem=given.question,
            picture=None if given.picture is None else picture("picture", given.picture),
            options=tuple(options),
        )
    except ClipstemError as error:
        raise ApiError(422, f"{place}{str(error).removeprefix(_prefix(given))}") from None
    if question.kind is Kind.TEXT_ONLY:
        raise ApiError(
            422, f"{place}picture: is missing; CLIP scores pictures, and there is none here"
        )
    return Asked(question, pixels)


def _prefix(given: QuestionIn) -> str:
    return f"question '{given.id or ''}': "


def decoded(question: Question, spec: PictureSpec) -> Asked:
    """A question of our own, with its pictures' pixels."""
    return Asked(question, {it.sha256: to_pixels(it.data, spec) for it in question.pictures})

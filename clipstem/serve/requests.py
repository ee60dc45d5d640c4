"""What a client may send, and how it becomes questions whose pictures are decoded already.

Everything is checked before it can meet anybody else's questions in a batch.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from clipstem.config import ServeConfig
from clipstem.images import PictureSpec, check_picture, to_pixels
from clipstem.question import ClipstemError, Kind, Picture, Question

ID_CHARACTERS = 200
WHITE_SPACE = "\t\n\r"  # the control characters that texts may have


class ApiError(Exception):
    """What a client is told, with its HTTP status and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


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
    # Which of the two it is must be known before it is checked, so that an error names its field.
    shape = QuestionsIn if b'"questions"' in body else QuestionIn
    try:
        found = shape.model_validate_json(body)
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
    pictures = [await _file(it, "option_picture") for it in form.getlist("option_picture")]
    shown = form.get("picture")
    question, identity = form.get("question"), form.get("id")
    if not isinstance(question, str) or not question:
        raise ApiError(422, "question: is missing; expected the question's text")
    if not texts and not pictures:
        raise ApiError(422, "option: is missing; expected a text or an option_picture for each")
    return QuestionIn(
        id=identity[:ID_CHARACTERS] if isinstance(identity, str) else None,
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


def check_counts(questions: Sequence[QuestionIn], config: ServeConfig) -> None:
    """Refuse what is too much, before anything is decoded.

    Raises:
        ApiError: saying how much there is and how much is allowed.
    """
    if len(questions) > config.max_questions:
        raise ApiError(
            413, f"questions: there are {len(questions):,}; at most {config.max_questions}"
        )
    for place, question in enumerate(questions):
        here = f"questions[{place}]." if len(questions) > 1 else ""
        if len(question.options) > config.max_options:
            raise ApiError(
                413,
                f"{here}options: there are {len(question.options):,}; at most {config.max_options}",
            )
        texts = {"id": question.id or "", "question": question.question}
        texts |= {
            f"options[{number}]": option
            for number, option in enumerate(question.options)
            if isinstance(option, str)
        }
        for name, text in texts.items():
            _check_text(f"{here}{name}", text, config.max_text_characters)


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ApiError(413, f"{name}: has {len(text):,} characters; at most {most:,}")
    for place, letter in enumerate(text):
        # Control characters, and halves of pairs that no encoding has.
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in WHITE_SPACE:
            raise ApiError(422, f"{name}: character {place} is U+{ord(letter):04X}, no text")


def asked(given: QuestionIn, place: str, spec: PictureSpec, config: ServeConfig) -> Asked:
    """A checked question with its pictures decoded. Takes milliseconds: not for the event loop.

    Raises:
        ApiError: naming the field that is wrong.
    """
    pixels: dict[str, NDArray[np.uint8]] = {}

    def picture(name: str, text: str) -> Picture:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(422, f"{place}{name}: is not base64") from None
        shown = Picture.of(data)
        try:
            check_picture(data, decode=False, max_pixels=config.max_pixels)
            if shown.sha256 not in pixels:
                pixels[shown.sha256] = to_pixels(data, spec)
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

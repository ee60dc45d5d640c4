"""A question: one exam item with its options. The first of the package's nouns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

UNKNOWN_ANSWER = -1  # STEM's `test` split withholds its answers
SPLITS = ("train", "tune", "valid", "test")

MAX_OPTIONS = 1000
MAX_CHARACTERS = 20_000  # of one text; CLIP reads about 400
MAX_WORD = 1000  # letters without a space: byte pairs take the square of a word's length


class ClipstemError(ValueError):
    """A user's mistake or bad input: one line that says what, where, and what to do."""


class Kind(StrEnum):
    """What a question shows: the one thing about a question that `pairs.render` branches on."""

    TEXT_OPTIONS = "text_options"  # a picture, and options that are texts
    PICTURE_OPTIONS = "picture_options"  # a text, and options that are pictures
    PICTURE_OPTIONS_ON_PICTURE = "picture_options_on_picture"  # both sides have pictures
    TEXT_ONLY = "text_only"  # no picture at all: kept, but CLIP has no score for it


class ProblemPicture(Enum):
    """What the problem's picture does in a question whose options are pictures too.

    The paper gives no rule for these questions. Lower-case names: they are what people type.
    """

    added = "added"  # ours: cos(option, unit(text + problem picture))
    ignored = "ignored"  # cos(option, text)
    reference = "reference"  # the public evaluation's: one candidate, so always the first option


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture file (PNG, JPEG …) with the hash of its bytes.

    `caption` tells in words what it shows, for who cannot see it; it makes no other picture of it.

    Raises:
        ClipstemError: if the caption is empty or too long.
    """

    data: bytes = field(repr=False)
    sha256: str
    caption: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.caption is not None and not self.caption.strip():
            raise ClipstemError("has an empty caption; leave it out")
        if self.caption and (reason := _too_long(self.caption)):
            raise ClipstemError(f"has a caption that {reason}")

    @classmethod
    def of(cls, data: bytes, caption: str | None = None) -> Picture:
        """The picture stored in `data`, hashed."""
        return cls(data, hashlib.sha256(data).hexdigest(), caption)


@dataclass(frozen=True, slots=True)
class Question:
    """One exam item.

    `options` are all texts or all pictures; `answer` is the 0-based index of the right one, or
    `UNKNOWN_ANSWER`; `row` is the question's place in its source, counted from 0.

    Raises:
        ClipstemError: if there are no options, if they mix texts and pictures, if a text is
            empty, or if the answer is not among them.
    """

    id: str
    subject: str
    grade: str
    skill: str
    problem: str
    picture: Picture | None
    options: tuple[str, ...] | tuple[Picture, ...]
    answer: int = UNKNOWN_ANSWER
    row: int = 0

    def __post_init__(self) -> None:
        if problem := invalid_field(self.problem, self.options, self.answer):
            name, reason = problem
            raise ClipstemError(f"question '{self.id}': {name}: {reason}")

    @property
    def kind(self) -> Kind:
        if isinstance(self.options[0], Picture):
            return Kind.PICTURE_OPTIONS if self.picture is None else Kind.PICTURE_OPTIONS_ON_PICTURE
        return Kind.TEXT_ONLY if self.picture is None else Kind.TEXT_OPTIONS

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture of the question, the problem's first."""
        first = () if self.picture is None else (self.picture,)
        return first + tuple(option for option in self.options if isinstance(option, Picture))


def invalid_field(
    problem: str, options: Sequence[str | Picture], answer: int
) -> tuple[str, str] | None:
    """The first (field, reason) that makes this no question, or None."""
    if not problem.strip():
        return "problem", "is empty; expected the question's text"
    if reason := _too_long(problem):
        return "problem", reason
    if not options:
        return "options", "there are none; expected at least one"
    if len(options) > MAX_OPTIONS:
        return "options", f"there are {len(options):,}; expected at most {MAX_OPTIONS:,}"
    texts = [option for option in options if isinstance(option, str)]
    if texts and len(texts) != len(options):
        return "options", (
            f"{len(texts)} texts are mixed with {len(options) - len(texts)} pictures; "
            "expected all texts or all pictures"
        )
    for index, text in enumerate(texts):
        if not text.strip():
            return f"options[{index}]", "is empty; expected a text"
        if reason := _too_long(text):
            return f"options[{index}]", reason
    if not UNKNOWN_ANSWER <= answer < len(options):
        return "answer", (
            f"{answer} is not among the {len(options)} options; expected 0 to "
            f"{len(options) - 1}, or {UNKNOWN_ANSWER} for unknown"
        )
    return None


_LONG_WORD = re.compile(rf"\w{{{MAX_WORD + 1}}}")


def _too_long(text: str) -> str | None:
    """Why a text would keep a tokenizer busy for ever, or None."""
    if len(text) > MAX_CHARACTERS:
        return f"has {len(text):,} characters; expected at most {MAX_CHARACTERS:,}"
    if len(text) > MAX_WORD and _LONG_WORD.search(text):
        return f"has a word that is too long; expected at most {MAX_WORD:,} letters in one"
    return None


YOUNGEST = ("pre-k", "prek", "kindergarten")  # STEM's grades that no number puts in order


def natural(name: str, first: Sequence[str] = ()) -> tuple[int, tuple[tuple[int, int | str], ...]]:
    """A sort key: names of `first` in its order, then others, grade-2 before grade-10."""
    words = "".join(c if c.isdigit() else f" {c} " if c == "-" else c for c in name).split()
    place = first.index(name) if name in first else len(first)
    return place, tuple((0, int(word)) if word.isdecimal() else (1, word) for word in words)

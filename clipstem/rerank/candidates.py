"""Questions with generated candidates: files of JSON lines, read and checked, as arrays.

Q questions, n candidates of one question, C candidates of all, S systems.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.images import check_picture
from clipstem.jsonl import next_line, object_of, picture_beside, refuse_misnamed, text_of
from clipstem.question import MAX_OPTIONS, ClipstemError, Picture, invalid_field
from clipstem.sources import BadField, as_json, one_line

MAX_LINE_BYTES = 8 * 2**20  # a thousand candidates of 8,000 letters fit
MAX_SYSTEMS = 100
MAX_NAME = 200  # characters of a system, a skill …
MAX_FINAL = 10_000  # characters; what has no end is seldom an answer
MAX_TEXT = 100_000  # characters of a candidate; a scorer reads the end

FIELDS = ("id", "problem", "image", "answer", "candidates", "subject", "grade", "skill")
CANDIDATE_FIELDS = ("system", "text", "final", "correct", "score")
OTHER_NAMES = {
    **{"picture": "image", "question": "problem", "gold": "answer"},
    **{"responses": "candidates", "solutions": "candidates", "completions": "candidates"},
}
OTHER_CANDIDATE_NAMES = {
    **{"model": "system", "source": "system", "response": "text", "solution": "text"},
    **{"label": "correct", "is_correct": "correct", "right": "correct", "answer": "final"},
}
"""What other data sets call our fields."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generated answer.

    Attributes:
        place: in the question's line, from 0.
        final: the answer that it comes to, as `normal` writes it; None without one.
        correct: None where nobody knows.
        score: higher is better; None where none is given.
    """

    place: int
    system: str
    text: str
    final: str | None
    correct: bool | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its candidates; `line_candidates` counts also those that are left out."""

    id: str
    problem: str
    picture: Picture | None
    subject: str
    grade: str
    skill: str
    candidates: tuple[Candidate, ...]
    line_candidates: int

    @property
    def is_known(self) -> bool:
        """Whether of every candidate it is known if it is right."""
        return all(candidate.correct is not None for candidate in self.candidates)


@dataclass(frozen=True)
class Skipped:
    """A line that is no question, and why."""

    file: str
    line: int
    field: str
    reason: str


@dataclass(frozen=True)
class Read:
    """What files of candidates hold.

    Attributes:
        asked: the questions, in the files' order.
        skipped: lines that are none.
        only_left_out: ids of questions whose candidates are all of systems that are left out.
        notes: what is odd but can be used, in words.
    """

    asked: list[Asked]
    skipped: list[Skipped]
    only_left_out: list[str]
    notes: list[str]


# ---------------------------------------------------------------------------- final answers

_NUMBER = re.compile(
    r"(?P<minus>-)?[$£€¥]?(?P<sign>[-+])?(?P<whole>\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))"
    r"(?:\.(?P<part>\d*))?"
)


def normal(final: str) -> str:
    """One spelling for answers that are the same: "1,000", "$1000" and "1000.0" are "1000".

    Numbers lose currency signs, separators of thousands and zeros that say nothing; other texts
    lose their capitals, doubled spaces and a full stop at their end. 50 % is not 50.
    """
    plain = " ".join(final.replace("\N{MINUS SIGN}", "-").split())
    bare = plain.removesuffix(".")
    unit = "%" if bare.endswith("%") else ""
    found = _NUMBER.fullmatch(bare.removesuffix(unit).rstrip())
    if not found or (found["minus"] and found["sign"]):
        return plain.casefold().removesuffix(".").strip() or plain
    whole = found["whole"].replace(",", "").lstrip("0") or "0"
    part = (found["part"] or "").rstrip("0")
    number = f"{whole}.{part}" if part else whole
    is_negative = (found["minus"] or found["sign"]) == "-" and number != "0"
    return f"-{number}{unit}" if is_negative else number + unit


# ---------------------------------------------------------------------------- reading


def read(
    files: Sequence[Path], leave_out: Sequence[str], needs_score: bool, max_skipped_fraction: float
) -> Read:
    """Read files of candidates; a bad line is skipped and explained.

    Raises:
        ClipstemError: if a file cannot be read, no question is left, too many lines are bad, a
            system that is to be left out does not occur, or there are too many systems.
    """
    asked: dict[str, Asked] = {}
    skipped: list[Skipped] = []
    only_left_out: list[str] = []
    seen: dict[str, str] = {}
    systems: Counter[str] = Counter()
    for file in files:
        for number, line in _lines(file):
            try:
                question = _question(object_of(line, MAX_LINE_BYTES), file, needs_score)
                if question.id in seen:
                    raise BadField("id", f"'{question.id}' stands in {seen[question.id]} too")
            except BadField as bad:
                skipped.append(Skipped(str(file), number, bad.field, bad.reason))
                continue
            seen[question.id] = f"line {number} of {file}"
            systems.update(candidate.system for candidate in question.candidates)
            if kept := tuple(it for it in question.candidates if it.system not in leave_out):
                asked[question.id] = replace(question, candidates=kept)
            else:
                only_left_out.append(question.id)
    lines = len(seen) + len(skipped)
    if len(skipped) > max_skipped_fraction * lines:
        first = skipped[0]
        raise ClipstemError(
            f"{len(skipped):,} bad lines are more than max_skipped_fraction="
            f"{max_skipped_fraction} of {lines:,}; the first is line {first.line} of "
            f"{first.file}: {first.field} {first.reason}"
        )
    if unknown := [name for name in leave_out if name not in systems]:
        raise ClipstemError(
            f"conf key 'leave_out': there is no system '{unknown[0]}'; expected some of "
            f"{', '.join(sorted(systems)[:20])}"
        )
    if not asked:
        raise ClipstemError(f"{', '.join(map(str, files))}: holds no question with candidates")
    if len(systems) > MAX_SYSTEMS:
        raise ClipstemError(
            f"the candidates are of {len(systems):,} systems; expected at most {MAX_SYSTEMS}: "
            "'system' names who made a candidate, not the candidate"
        )
    questions = list(asked.values())
    return Read(questions, skipped, only_left_out, list(_oddities(questions)))


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1."""
    if not file.is_file():  # a pipe would be waited for without end
        raise ClipstemError(
            f"{file}: there is no such file; expected a file with one JSON object a line"
        )
    try:
        with file.open("rb") as lines:
            every = enumerate(iter(partial(next_line, lines, MAX_LINE_BYTES), b""), start=1)
            yield from ((number, line) for number, line in every if line.strip())
    except OSError as error:
        raise ClipstemError(f"{file}: cannot be read ({error.strerror})") from None


def _question(record: dict[str, Any], file: Path, needs_score: bool) -> Asked:
    refuse_misnamed(record, FIELDS, OTHER_NAMES)
    given = record.get("candidates")
    if not isinstance(given, list):
        raise BadField("candidates", f"is {as_json(given)}; expected a list")
    if not 0 < len(given) < MAX_OPTIONS:  # a predictions file has one option more
        expected = f"expected at least one and below {MAX_OPTIONS:,}"
        raise BadField("candidates", f"there are {len(given):,}; {expected}")
    gold = _final(record.get("answer"), "answer")
    candidates = tuple(
        _candidate(value, place, gold, needs_score) for place, value in enumerate(given)
    )
    id, problem = _word(record, "id"), _encodable(text_of(record, "problem"), "problem")
    if invalid := invalid_field(problem, ["a candidate may be empty, and is cut"], -1):
        raise BadField(*invalid)
    return Asked(
        id=id,
        problem=problem,
        picture=_picture(record.get("image"), file),
        **{name: _word(record, name, "unknown") for name in ("subject", "grade", "skill")},
        candidates=candidates,
        line_candidates=len(candidates),
    )


def _candidate(value: Any, place: int, gold: str | None, needs_score: bool) -> Candidate:
    where = f"candidates[{place}]"
    if not isinstance(value, dict):
        raise BadField(where, f"is {as_json(value)}; expected an object")
    try:
        refuse_misnamed(value, CANDIDATE_FIELDS, OTHER_CANDIDATE_NAMES)
        final = _final(value.get("final"), "final")
        correct = value.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise BadField("correct", f"is {as_json(correct)}; expected true, false or null")
        if correct is None and gold is not None:
            correct = final == gold  # an answer that was never reached is wrong
        return Candidate(
            place=place,
            system=_word(value, "system"),
            text=_text(value),
            final=final,
            correct=correct,
            score=_score(value.get("score"), needs_score),
        )
    except BadField as bad:
        raise BadField(f"{where}.{bad.field}", bad.reason) from None


def _text(value: Mapping[str, Any]) -> str:
    text = _encodable(text_of(value, "text"), "text")
    if len(text) > MAX_TEXT:
        raise BadField("text", f"has {len(text):,} characters; expected at most {MAX_TEXT:,}")
    return text


def _final(value: Any, field: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadField(field, f"is {as_json(value)}; expected a text or a number, or null")
    # A float's shortest digits, written out: repr says 1e-05 where texts have 0.00001.
    text = format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)
    if len(text) > MAX_FINAL:
        raise BadField(field, f"has {len(text):,} characters; expected at most {MAX_FINAL:,}")
    return normal(_encodable(text, field)) if text.strip() else None


def _score(value: Any, is_needed: bool) -> float | None:
    if value is None and not is_needed:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadField("score", f"is {as_json(value)}; expected a number")
    if not -1e30 < value < 1e30:  # written so that a NaN is refused too
        raise BadField("score", f"is {as_json(value)}; expected a finite number")
    return float(value)


def _word(record: Mapping[str, Any], field: str, absent: str | None = None) -> str:
    if absent is not None and record.get(field) is None:
        return absent
    value = _encodable(text_of(record, field), field)
    if not value.strip():
        raise BadField(field, "is empty; expected a text")
    if len(value) > MAX_NAME:
        raise BadField(field, f"has {len(value):,} characters; expected at most {MAX_NAME}")
    return value


def _encodable(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadField(field, "holds half of a character, which is no UTF-8") from None
    return text


def _picture(name: Any, file: Path) -> Picture | None:
    if name is None:
        return None
    data = picture_beside(file, "image", name)
    try:
        check_picture(data, decode=True)
    except ClipstemError as error:
        raise BadField("image", f"'{name}' {one_line(error)}") from None
    return Picture.of(data)


def _oddities(asked: Sequence[Asked]) -> Iterator[str]:
    """What a user should know of the candidates, in words."""
    known = sum(question.is_known for question in asked)
    some = sum(
        not question.is_known and any(it.correct is not None for it in question.candidates)
        for question in asked
    )
    if some:
        yield (
            f"{some:,} questions say of some candidates only whether they are right: not used to "
            "learn nor to measure"
        )
    if known + some < len(asked):
        yield (
            f"{len(asked) - known - some:,} questions do not say which candidates are right: "
            "answered, but not measured"
        )
    both = sum(len(_contradictory(question)) > 0 for question in asked)
    if both:
        yield f"{both:,} questions have one final answer that is called right and wrong"
    several = sum(len(_right_finals(question)) > 1 for question in asked)
    if several:
        yield f"{several:,} questions have several final answers that are called right"
    without = sum(it.final is None for question in asked for it in question.candidates)
    if without:
        yield f"{without:,} candidates have no final answer: each stands alone in a vote"


def _right_finals(question: Asked) -> set[str | None]:
    return {it.final for it in question.candidates if it.correct and it.final is not None}


def _contradictory(question: Asked) -> set[str | None]:
    wrong = {it.final for it in question.candidates if it.correct is False}
    return _right_finals(question) & wrong


def read_scores(
    file: Path, asked: Sequence[Asked]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """score_C and scorer_Q: the candidates' scores from a file of lines with `id` and `scores`.

    `scores` has a number for each candidate of the question's line; null where it is left out.
    Where scores are not of one scorer, which cannot be compared, a whole number `scorer` says whose
    they are.

    Raises:
        ClipstemError: naming the first question whose scores are missing or no numbers.
    """
    wanted = {question.id: question for question in asked}
    found: dict[str, list[float]] = {}
    scorers: dict[str, int] = {}
    for number, line in _lines(file):
        try:
            record = object_of(line, MAX_LINE_BYTES)
            id = text_of(record, "id")
            if id in wanted:
                if id in found:
                    raise BadField("id", f"'{id}' stands in an earlier line too")
                found[id] = _scores_of(wanted[id], record.get("scores"))
                scorers[id] = _scorer(record.get("scorer", 0))
        except BadField as bad:
            raise ClipstemError(f"{file}: line {number}: {bad.field} {bad.reason}") from None
    if missing := [id for id in wanted if id not in found]:
        raise ClipstemError(
            f"{file}: has no scores for {len(missing):,} of {len(wanted):,} questions; the first "
            f"is '{missing[0]}'"
        )
    score_C = np.array([score for question in asked for score in found[question.id]])
    return score_C, np.array([scorers[question.id] for question in asked], np.int64)


def _scorer(number: Any) -> int:
    if type(number) is not int or abs(number) >= 2**63:
        raise BadField("scorer", f"is {as_json(number)}; expected a whole number")
    return number


def _scores_of(question: Asked, scores: Any) -> list[float]:
    if not isinstance(scores, list) or len(scores) != question.line_candidates:
        raise BadField(
            "scores",
            f"is {as_json(scores)}; expected a list of {question.line_candidates} numbers, one for "
            f"each candidate of '{question.id}'",
        )
    found = []
    for candidate in question.candidates:
        try:
            found.append(_score(scores[candidate.place], is_needed=True))
        except BadField as bad:
            raise BadField(f"scores[{candidate.place}]", bad.reason) from None
    return [score for score in found if score is not None]

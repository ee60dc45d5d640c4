"""Questions: their kinds, their pictures, and what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from samples import picture, question

from clipstem.question import ClipstemError, Kind, Picture, Question


@pytest.mark.parametrize(
    ("options", "shown", "kind"),
    [
        (["a", "b"], picture(0), Kind.TEXT_OPTIONS),
        ([picture(0), picture(1)], None, Kind.PICTURE_OPTIONS),
        ([picture(0), picture(1)], picture(2), Kind.PICTURE_OPTIONS_ON_PICTURE),
        (["a", "b"], None, Kind.TEXT_ONLY),
    ],
)
def test_the_kind_follows_from_what_there_is(
    options: list[Any], shown: Picture | None, kind: Kind
) -> None:
    assert question(options, shown).kind is kind


def test_pictures_come_in_order_the_problems_first() -> None:
    assert question([picture(1), picture(0)], picture(2)).pictures == (
        picture(2),
        picture(1),
        picture(0),
    )
    assert question(["a", "b"], picture(2)).pictures == (picture(2),)
    assert question(["a", "b"]).pictures == ()


def test_a_picture_is_known_by_the_hash_of_its_bytes() -> None:
    assert Picture.of(b"x").sha256 == hashlib.sha256(b"x").hexdigest()
    assert "data" not in repr(Picture.of(b"many bytes"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": " \n"}, "question 'q7': problem: is empty; expected the question's text"),
        ({"options": ()}, "question 'q7': options: there are none; expected at least one"),
        (
            {"options": ("a", picture(0), picture(1))},
            "question 'q7': options: 1 texts are mixed with 2 pictures; "
            "expected all texts or all pictures",
        ),
        ({"options": ("a", "  ")}, "question 'q7': options[1]: is empty; expected a text"),
        (
            {"answer": 2},
            "question 'q7': answer: 2 is not among the 2 options; "
            "expected 0 to 1, or -1 for unknown",
        ),
        (
            {"answer": -2},
            "question 'q7': answer: -2 is not among the 2 options; "
            "expected 0 to 1, or -1 for unknown",
        ),
    ],
)
def test_what_is_no_question_is_refused(changes: dict[str, Any], message: str) -> None:
    values = {"problem": "which?", "options": ("a", "b"), "picture": None, **changes}
    with pytest.raises(ClipstemError) as error:
        Question(id="q7", subject="", grade="", skill="", **values)
    assert str(error.value) == message


@pytest.mark.parametrize("answer", [-1, 0, 1])
def test_every_option_or_none_may_be_the_answer(answer: int) -> None:
    assert question(["a", "b"], answer=answer).answer == answer


def test_a_question_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        question(["a", "b"]).answer = 1  # type: ignore[misc]

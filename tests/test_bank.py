"""The drawn bank: its breadth, its determinism, and that nothing but the picture gives answers."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from clipstem.bank import SKILLS, draw
from clipstem.bank.skill import NEEDS, SIDE, TextOptions, arrange
from clipstem.question import Kind, Question

GRADES = ("pre-k", "kindergarten", *(f"grade-{number}" for number in range(1, 9)))
SEED = 5
PAINTED = 60  # questions painted of each skill
ARRANGED = 4000  # of each skill, half of them to learn from: 5 points are 4.5 σ of chance or more


@pytest.fixture(scope="module", params=list(SKILLS))
def name(request: pytest.FixtureRequest) -> str:
    """Every skill; by the scope, all tests of one skill run in a row and share its draws."""
    return str(request.param)


@cache
def painted(name: str) -> tuple[Question, ...]:
    return tuple(draw(SKILLS[name], SEED, index) for index in range(PAINTED))


class Arranged(NamedTuple):
    """What may be read without looking at a picture; picture options stand as their names."""

    problem: str
    options: tuple[str, ...]
    answer: int


@lru_cache(maxsize=1)
def arranged(name: str) -> tuple[Arranged, ...]:
    return tuple(_arranged(name, index) for index in range(ARRANGED))


def _arranged(name: str, index: int) -> Arranged:
    item, options, answer = arrange(SKILLS[name], SEED, index)
    problem = item.problem if isinstance(item, TextOptions) else ""
    return Arranged(problem, tuple(str(option) for option in options), answer)


def test_four_subjects_have_ten_skills_each() -> None:
    subjects = Counter(skill.subject for skill in SKILLS.values())
    assert set(subjects) == {"science", "technology", "engineering", "math"}
    assert min(subjects.values()) >= 10
    assert len(SKILLS) >= 40


def test_every_grade_is_covered() -> None:
    assert {skill.grade for skill in SKILLS.values()} == set(GRADES)


def test_needs_are_mixed() -> None:
    needs = Counter(skill.needs for skill in SKILLS.values())
    assert set(needs) == set(NEEDS)
    assert needs["counting"] + needs["reading"] >= 5
    assert needs["relation"] >= 5
    assert any(skill.hard for skill in SKILLS.values())


def test_names_are_slugs() -> None:
    for name, skill in SKILLS.items():
        assert name == skill.name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


def test_all_three_kinds_and_two_to_five_options() -> None:
    questions = [question for name in SKILLS for question in painted(name)[:20]]
    assert {question.kind for question in questions} == set(Kind) - {Kind.TEXT_ONLY}
    assert {len(question.options) for question in questions} == {2, 3, 4, 5}


def test_subjects_have_picture_options() -> None:
    kinds = defaultdict(set)
    for name, skill in SKILLS.items():
        kinds[skill.subject].add(painted(name)[0].kind)
    assert all(len(found) == 3 for found in kinds.values()), dict(kinds)


def test_a_draw_is_a_function_of_seed_skill_and_index(name: str) -> None:
    again = draw(SKILLS[name], SEED, 7)
    assert again == painted(name)[7]
    assert [picture.data for picture in again.pictures] == [
        picture.data for picture in painted(name)[7].pictures
    ]
    assert _digest(draw(SKILLS[name], SEED + 1, 7)) != _digest(again)


def test_another_process_draws_the_same() -> None:
    code = (
        "import sys; from clipstem.bank import SKILLS, draw; "
        "print(*(p.sha256 for n in sys.argv[1:] for p in draw(SKILLS[n], 5, 7).pictures))"
    )
    names = list(SKILLS)[::6]
    run = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = [picture.sha256 for name in names for picture in painted(name)[7].pictures]
    assert run.stdout.split() == expected


def test_pictures_practically_never_come_twice(name: str) -> None:
    pictures = [picture.sha256 for question in painted(name) for picture in question.pictures]
    assert len(pictures) == len(set(pictures))


def test_pictures_are_square_rgb(name: str) -> None:
    for question in painted(name)[:5]:
        for picture in question.pictures:
            image = Image.open(io.BytesIO(picture.data))
            image.load()
            assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")


def test_options_of_a_question_differ(name: str) -> None:
    for question in painted(name):
        assert len(question.options) == len(set(question.options))
    for drawn in arranged(name):
        assert len(drawn.options) == len(set(drawn.options))


def test_texts_read_like_questions(name: str) -> None:
    for question in painted(name):
        assert 3 <= len(question.problem.split()) <= 24
        assert question.problem[0].isupper() and question.problem[-1] in "?."


def test_the_right_place_is_uniform(name: str) -> None:
    places: dict[int, Counter[int]] = defaultdict(Counter)
    for drawn in arranged(name):
        places[len(drawn.options)][drawn.answer] += 1
    for count, found in places.items():
        expected = sum(found.values()) / count
        chi_square = sum((found[place] - expected) ** 2 / expected for place in range(count))
        assert chi_square < 22, (count, found)  # p < 0.0003 at the most, 4 degrees of freedom


@pytest.mark.parametrize("guess", ["longest", "most_frequent", "bag_of_words", "same_place"])
def test_texts_and_order_do_not_give_the_answer(name: str, guess: str) -> None:
    half = ARRANGED // 2
    learn, held_out = arranged(name)[:half], arranged(name)[half:]
    guesses = GUESSERS[guess](learn, held_out)
    right = np.mean([g == drawn.answer for g, drawn in zip(guesses, held_out, strict=True)])
    chance = np.mean([1 / len(drawn.options) for drawn in held_out])
    assert abs(right - chance) <= 0.05


@pytest.mark.parametrize("guess", ["longest", "most_frequent", "bag_of_words", "same_place"])
def test_the_guessers_find_a_planted_shortcut(guess: str) -> None:
    planted = [Arranged("Which?", ("it is a truly long one", f"no {k % 9}"), 0) for k in range(400)]
    assert set(GUESSERS[guess](planted, planted)) == {0}


Guesser = Callable[[Sequence[Arranged], Sequence[Arranged]], Sequence[int]]


def _longest(_: Sequence[Arranged], held_out: Sequence[Arranged]) -> list[int]:
    return [_best([len(option) for option in drawn.options]) for drawn in held_out]


def _most_frequent(learn: Sequence[Arranged], held_out: Sequence[Arranged]) -> list[int]:
    right: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for drawn in learn:
        right[drawn.options[drawn.answer]] += 1
        shown.update(drawn.options)
    return [
        _best([right[option] / max(1, shown[option]) for option in drawn.options])
        for drawn in held_out
    ]


def _same_place(learn: Sequence[Arranged], held_out: Sequence[Arranged]) -> list[int]:
    favourite = {
        count: Counter(drawn.answer for drawn in learn if len(drawn.options) == count)
        for count in range(2, 6)
    }
    return [favourite[len(drawn.options)].most_common(1)[0][0] for drawn in held_out]


def _bag_of_words(learn: Sequence[Arranged], held_out: Sequence[Arranged]) -> list[int]:
    seen = Counter(
        (_text(drawn, option), place == drawn.answer)
        for drawn in learn
        for place, option in enumerate(drawn.options)
    )
    words = CountVectorizer(token_pattern=r"[^\s,.?!()\[\]]+")
    rows = words.fit_transform([text for text, _ in seen])
    model = LogisticRegression(max_iter=50)
    model.fit(rows, [is_right for _, is_right in seen], sample_weight=list(seen.values()))
    texts = sorted({_text(drawn, option) for drawn in held_out for option in drawn.options})
    score = dict(zip(texts, model.decision_function(words.transform(texts)), strict=True))
    return [_best([score[_text(drawn, option)] for option in drawn.options]) for drawn in held_out]


def _text(drawn: Arranged, option: str) -> str:
    return f"{drawn.problem} {option}"


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


GUESSERS: dict[str, Guesser] = {
    "longest": _longest,
    "most_frequent": _most_frequent,
    "bag_of_words": _bag_of_words,
    "same_place": _same_place,
}


def _digest(question: Question) -> str:
    parts = [question.problem, *(picture.sha256 for picture in question.pictures)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

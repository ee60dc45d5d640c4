"""Options that give the answer away: each cue is named, and honest options have none."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from curating import NOTHING, data, read
from preparing import encoded, row

from clipstem.curate import cues, fingerprints
from clipstem.curate.fingerprints import Fingerprints


def asked(options: list[list[str]], answers: list[int], problem: str = "Which?") -> Fingerprints:
    """Fingerprints of text questions, without a data set."""
    flat = [option for row in options for option in row]
    return replace(
        NOTHING,
        index=pa.table(
            {
                "id": [f"q{n}" for n in range(len(options))],
                "subject": ["math"] * len(options),
                "skill": ["s"] * len(options),
                "split": ["train"] * len(options),
                "answer": answers,
            }
        ),
        text_N=np.arange(len(options)),
        picture_N=np.full(len(options), -1),
        start_N=np.cumsum([0, *map(len, options)]),
        option_O=-1 - np.unique(flat, return_inverse=True)[1],
        length_O=np.array([len(option) for option in flat]),
        number_O=np.array([fingerprints._number(option) for option in flat]),
        named_O=np.array([fingerprints._stands_in(option, problem) for option in flat]),
    )


def named(questions: Fingerprints) -> set[str]:
    found = cues.find(questions, np.ones(len(questions), np.bool_), 0)
    return {cue.name for cue in found.named}


def drawn(make: Callable[[random.Random], tuple[list[str], int]], count: int = 80) -> Fingerprints:
    rng = random.Random(1)
    made = [make(rng) for _ in range(count)]
    return asked([options for options, _ in made], [answer for _, answer in made], "a cat runs")


def words(rng: random.Random, count: int = 4) -> list[str]:
    return ["".join(rng.choices("bdefgh", k=rng.randint(3, 9))) for _ in range(count)]


def longest(rng: random.Random) -> tuple[list[str], int]:
    options = words(rng)
    answer = rng.randrange(4)
    options[answer] += "x" * 12
    return options, answer


def middle(rng: random.Random) -> tuple[list[str], int]:
    numbers = sorted(rng.sample(range(100, 1000), 3))
    options = [str(number) for number in numbers]
    rng.shuffle(options)
    return options, options.index(str(numbers[1]))


def in_question(rng: random.Random) -> tuple[list[str], int]:
    options = words(rng)
    answer = rng.randrange(4)
    options[answer] = "cat"
    return options, answer


def always_second(rng: random.Random) -> tuple[list[str], int]:
    return words(rng), 1


@pytest.mark.parametrize(
    ("make", "cue"),
    [
        (longest, "the longest text"),
        (middle, "the middle number"),
        (in_question, "the only option that stands in the question"),
        (always_second, "the place that is right most often"),
    ],
)
def test_a_cue_that_gives_the_answer_away_is_named(make: Any, cue: str) -> None:
    assert cue in named(drawn(make))


def test_an_option_that_is_mostly_right_is_a_cue_and_one_that_is_often_there_is_none() -> None:
    def mostly(rng: random.Random) -> tuple[list[str], int]:
        options = ["yes", *words(rng, 3)]
        rng.shuffle(options)
        return options, options.index("yes")

    def often(rng: random.Random) -> tuple[list[str], int]:
        options = ["yes", *words(rng, 3)]
        rng.shuffle(options)
        return options, rng.randrange(4)

    assert "what is right most often" in named(drawn(mostly))
    assert not named(drawn(often))


def test_honest_options_have_a_cue_as_seldom_as_is_promised() -> None:
    rng = random.Random(5)
    sets = 100
    found = 0
    for _ in range(sets):
        options = [words(rng, rng.randint(2, 5)) for _ in range(60)]
        answers = [rng.randrange(len(row)) for row in options]
        found += bool(named(asked(options, answers)))
    assert found <= 4  # one is to be expected; five or more come 4 times in 1,000


def test_a_picture_of_another_size_is_a_cue(tmp_path: Path) -> None:
    pictures, rows = {}, []
    for number in range(24):
        answer = number % 3
        names = [f"{number}-{place}.png" for place in range(3)]
        for place, name in enumerate(names):
            pictures[name] = encoded(3 * number + place, side=6 if place == answer else 5)
        rows.append(
            row(number, skill="s", options=[{"image": name} for name in names], answer=answer)
        )
    questions = read(data(tmp_path, rows, pictures))
    found = cues.find(questions, questions.in_train_N, 0)
    by_name = {cue.name: cue for cue in found.named}
    cue = by_name["the only picture of another size"]
    assert (cue.questions, cue.right) == (24, 24) and cue.chance == pytest.approx(1 / 3)
    assert "the largest picture file" in by_name
    assert (found.found_by_N >= 0).all()

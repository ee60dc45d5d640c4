"""Candidates drawn by code: word problems, solved by four made-up systems of different skill.

Enough to try every part of `rerank` without a download; what is measured on them says nothing about
real systems. Mistakes are of three sorts: a slip in a step, which anybody can see who calculates; a
wrong number taken from the problem; and subtracting the wrong way round or adding instead, which
several systems do in the same problem, so that the majority is wrong there. Whoever is wrong says
more often that he is not sure: that can be learnt from a few hundred solutions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatma", "Goran", "Hana")
THINGS = ("apples", "books", "coins", "eggs", "pencils", "shells", "stamps", "tickets")
UNSURE = ("I think", "probably", "perhaps", "if I am not mistaken")
CONFESSES, DOUBTS = 0.6, 0.1  # how often a wrong and a right solution sound unsure


@dataclass(frozen=True)
class _System:
    """How often a step goes wrong, and how solutions are written down."""

    name: str
    slips: float
    misreads: float
    misleads: float  # of problems that mislead, the share that do
    first: str
    second: str
    end: str


SYSTEMS = (
    _System("short", 0.16, 0.12, 0.9, "{a} * {b} = {m}.", "{m} {sign} {c} = {r}.", "A: {r}"),
    _System(
        *("steps", 0.10, 0.08, 0.8),
        first="1. Multiply: {a} x {b} = {m}.",
        second="2. Then {m} {sign} {c} = {r}.",
        end="#### {r}",
    ),
    _System(
        *("wordy", 0.08, 0.06, 0.7),
        first="We know that there are {a} boxes of {b}, which makes {m} {things} in all.",
        second="With {c} {things} this becomes {r}, because {m} {sign} {c} is {r}.",
        end="So the answer is {r}.",
    ),
    _System(
        *("careful", 0.03, 0.03, 0.3),
        first="{a} boxes with {b} {things} each are {a} * {b} = {m} {things}.",
        second="{name} then has {m} {sign} {c} = {r} {things}.",
        end="Answer: {r}",
    ),
)


def lines(questions: int, seed: int) -> Iterator[dict[str, Any]]:
    """So many questions with a candidate of each system, as lines of a file of candidates."""
    for number in range(questions):
        yield _question(number, random.Random(f"{seed} {number}"))


def _question(number: int, rng: random.Random) -> dict[str, Any]:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 9), rng.randint(3, 12)
    gains = rng.random() < 0.5
    c = rng.randint(2, 20) if gains else rng.randint(2, a * b - 1)
    misleads = rng.random() < 0.2
    change = f"gets {c} more" if gains else f"gives {c} away"
    problem = f"{name} has {a} boxes with {b} {things} each and {change}."
    if misleads:
        change = f"Once {c} {things} {'are taken out' if gains else 'are put in'} again,"
        problem = f"{problem[:-1]}, after all. {change} it is as before. And now?"
    else:
        problem = f"{problem} How many {things} does {name} have now?"
    answer = a * b + (c if gains else -c)
    told = {"name": name, "things": things, "gains": gains}
    return {
        "id": f"drawn-{number}",
        "subject": "math",
        "grade": "grade-3",
        "skill": "misleading" if misleads else "plain",
        "problem": problem,
        "answer": str(answer),
        "candidates": [
            _solution(system, (a, b, c), told, misleads, answer, rng) for system in SYSTEMS
        ],
    }


def _solution(
    system: _System,
    numbers: tuple[int, int, int],
    told: dict[str, Any],
    misleads: bool,
    answer: int,
    rng: random.Random,
) -> dict[str, Any]:
    a, b, c = numbers
    if rng.random() < system.misreads:
        b += rng.choice((-1, 1))
    adds = told["gains"] != (misleads and rng.random() < system.misleads)
    product = a * b + _slip(system, rng)
    result = product + (c if adds else -c) + _slip(system, rng)
    words = {**told, "a": a, "b": b, "c": c, "m": product, "sign": "+" if adds else "-"}
    parts = [it.format(**words, r=result) for it in (system.first, system.second)]
    if rng.random() < (CONFESSES if result != answer else DOUBTS):
        place = rng.randrange(2)
        parts[place] = f"{parts[place][:-1]}, {rng.choice(UNSURE)}."
    return {
        "system": system.name,
        "text": "\n".join([*parts, system.end.format(r=result)]),
        "final": str(result),
        "correct": result == answer,
    }


def _slip(system: _System, rng: random.Random) -> int:
    return rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < system.slips else 0

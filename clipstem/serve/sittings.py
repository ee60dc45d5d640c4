"""People sitting an exam, and the model sitting the same one.

A sitting never gives the right answer, nor what the model says, before the person has answered.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from clipstem.bank import SKILLS, draw
from clipstem.batches import usable
from clipstem.config import Rule
from clipstem.exam import TOP, next_scores
from clipstem.images import check_picture
from clipstem.question import YOUNGEST, ClipstemError, Question, natural
from clipstem.shards import Dataset

log = logging.getLogger(__name__)

MOST_SITTINGS = 1000  # the ones not used for longest are forgotten


@dataclass(frozen=True)
class Unit:
    """A skill in a grade; `questions` is None where any number can be drawn."""

    subject: str
    grade: str
    skill: str
    questions: int | None


class Questions(Protocol):
    """Where an exam's questions come from."""

    units: Sequence[Unit]

    def question(self, unit: Unit, number: int, seed: int) -> Question:
        """Question `number` of an exam of the unit that was begun with `seed`."""
        ...


class Drawn:
    """Questions drawn by code, others in every exam."""

    def __init__(self) -> None:
        found = [Unit(it.subject, it.grade, it.name, None) for it in SKILLS.values()]
        self.units: Sequence[Unit] = sorted(found, key=_order)

    def question(self, unit: Unit, number: int, seed: int) -> Question:
        return draw(SKILLS[unit.skill], seed, number)


class Prepared:
    """The questions of a split with a known answer; all of a unit before any comes twice.

    Raises:
        ClipstemError: if there is none.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.dataset, self.split = dataset, split
        index = dataset.index(split).select(["subject", "grade", "skill"]).to_pylist()
        self._numbers: dict[tuple[str, str, str], list[int]] = {}
        for number in np.flatnonzero(usable(dataset, split, answered=True)).tolist():
            row = index[number]
            key = (row["subject"], row["grade"], row["skill"])
            self._numbers.setdefault(key, []).append(number)
        if not self._numbers:
            raise ClipstemError(
                f"{dataset.location}: no question of '{split}' has a picture and a known answer; "
                "an exam needs both"
            )
        found = [Unit(*key, len(numbers)) for key, numbers in self._numbers.items()]
        self.units: Sequence[Unit] = sorted(found, key=_order)
        self._is_whole: dict[int, bool] = {}  # of the questions that were looked at

    def question(self, unit: Unit, number: int, seed: int) -> Question:
        """One whose pictures decode; those behind a broken one move up.

        Raises:
            ClipstemError: if the unit has none.
        """
        numbers = list(self._numbers[unit.subject, unit.grade, unit.skill])
        random.Random(seed).shuffle(numbers)
        while numbers := [it for it in numbers if self._is_whole.get(it, True)]:
            chosen = numbers[number % len(numbers)]
            (found,) = self.dataset.read(self.split, [chosen])
            if chosen not in self._is_whole:
                self._is_whole[chosen] = _is_whole(found)
            if self._is_whole[chosen]:
                return found
        raise ClipstemError("no question of this skill has pictures that can be read")


def _is_whole(question: Question) -> bool:
    try:
        for picture in question.pictures:
            check_picture(picture.data, decode=True)
    except ClipstemError as error:
        log.warning("question '%s' is left out of exams: a picture %s", question.id, error)
        return False
    return True


def _order(unit: Unit) -> tuple[object, ...]:
    return unit.subject, natural(unit.grade, YOUNGEST), unit.skill


@dataclass(frozen=True)
class Step:
    """One answered question: the person's choice, the model's probabilities, scores after it."""

    id: str
    answer: int
    choice: int
    probabilities: tuple[float, ...]
    score: int
    model_score: int

    @property
    def model_choice(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


@dataclass
class Sitting:
    """An exam that a person takes, and the model beside."""

    id: str
    unit: Unit
    rule: Rule
    length: int
    seed: int
    steps: list[Step] = field(default_factory=list)

    @property
    def score(self) -> int:
        return self.steps[-1].score if self.steps else 0

    @property
    def model_score(self) -> int:
        return self.steps[-1].model_score if self.steps else 0

    @property
    def is_done(self) -> bool:
        """At the highest score, or with the last question. The model goes on as long as people."""
        return self.score >= TOP or len(self.steps) >= self.length

    def take(self, question: Question, choice: int, probabilities: Sequence[float]) -> Step:
        """Answer the present question."""
        after = next_scores(self.rule)
        picked = int(np.argmax(probabilities))
        step = Step(
            id=question.id,
            answer=question.answer,
            choice=choice,
            probabilities=tuple(map(float, probabilities)),
            score=int(after[int(choice == question.answer), self.score]),
            model_score=int(after[int(picked == question.answer), self.model_score]),
        )
        self.steps.append(step)
        return step


class Sittings:
    """All sittings of a server, in memory."""

    def __init__(self, questions: Questions, rule: Rule, length: int) -> None:
        self.questions, self.rule, self.length = questions, rule, length
        self._all: OrderedDict[str, Sitting] = OrderedDict()

    def begin(self, unit: Unit, seed: int | None = None) -> Sitting:
        number = secrets.randbelow(2**31) if seed is None else seed
        made = Sitting(secrets.token_urlsafe(12), unit, self.rule, self.length, number)
        self._all[made.id] = made
        while len(self._all) > MOST_SITTINGS:
            self._all.popitem(last=False)
        return made

    def question(self, sitting: Sitting, number: int) -> Question:
        return self.questions.question(sitting.unit, number, sitting.seed)

    def __getitem__(self, id: str) -> Sitting:
        self._all.move_to_end(id)
        return self._all[id]

    @property
    def by_unit(self) -> Mapping[tuple[str, str, str], Unit]:
        return {(it.subject, it.grade, it.skill): it for it in self.questions.units}

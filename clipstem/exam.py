"""`python -m clipstem.exam predictions=…`: sit an exam in every skill, many times, without torch.

An exam is of one skill in one grade, called a unit. Its questions are drawn, answered in order with
the model's choices, and each answer moves a score that begins at 0 and ends at 100 or with the last
question. Q questions, U units, R repeats, N questions of one exam.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from clipstem import prediction, run
from clipstem.atomic import new_folder
from clipstem.command import verb
from clipstem.config import Choices, ExamConfig, Rule, plain
from clipstem.console import console
from clipstem.prediction import Predictions
from clipstem.question import YOUNGEST, ClipstemError, natural
from clipstem.statistics import TAILS, numbered

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOP = 100  # the highest score; an exam ends there

MASTERED_ABOVE = 90  # a skill with a higher score counts as mastered; arXiv 2402.17205

PEOPLE = 84.8  # the published mean score of people, read off a figure of arXiv 2402.17205

LOWEST_SHOWN = 20  # skills in the terminal's table

AT_ONCE = 2**22  # places shuffled together, 32 MiB: a unit may have 100,000s of questions

_GAIN = {
    Rule.regular: [max(2, 10 - tens) for tens in range(10)],
    Rule.advanced: [max(3, 10 - tens + (tens >= 7)) for tens in range(10)],
    Rule.fast: [15, 13, 11, 9, 8, 7, 6, 5, 4, 4],
    Rule.powerpath: [max(4, 14 - tens) for tens in range(10)],
}
"""What a right answer adds to a score below 10, 20 … 100. The authors of STEM publish no rule, and
that of the exercises is its owner's; these are a third party's reconstruction of it."""

_LOSS = {
    Rule.regular: [1, 1, 2, 3, 4, 5, 5, 6, 6, 7],
    Rule.advanced: [1, 1, 2, 3, 4, 5, 5, 6, 7, 8],
    Rule.fast: [1, 1, 2, 3, 3, 4, 5, 6, 7, 8],
    Rule.powerpath: [1, 1, 2, 3, 4, 5, 5, 6, 7, 8],
}
"""What a wrong answer takes away."""


def next_scores(rule: Rule) -> Ints:
    """The score after an answer, [wrong or right, score before it]; 100 stays."""
    score = np.arange(TOP)
    tens = score // 10
    wrong = np.maximum(score - np.take(_LOSS[rule], tens), 0)
    right = np.minimum(score + np.take(_GAIN[rule], tens), TOP)
    return np.stack([np.append(wrong, TOP), np.append(right, TOP)])


def final_scores(right_NR: NDArray[np.bool_], rule: Rule) -> Ints:
    """The last score of each of R exams whose answers are right or wrong, in their order."""
    after = next_scores(rule)
    score_R = np.zeros(right_NR.shape[1], np.int64)
    for right_R in right_NR.astype(np.int64):
        score_R = after[right_R, score_R]
    return score_R


def draw_questions(
    rng: np.random.Generator, questions: int, length: int, repeats: int, replacement: bool
) -> Ints:
    """The places of the drawn questions, [length, repeats]; without replacement all differ."""
    if replacement:
        return rng.integers(questions, size=(length, repeats))
    block = max(1, AT_ONCE // questions)
    sizes = [min(block, repeats - start) for start in range(0, repeats, block)]
    return np.concatenate([_shuffled(rng, questions, length, size) for size in sizes], axis=1)


def _shuffled(rng: np.random.Generator, questions: int, length: int, repeats: int) -> Ints:
    """The first places of so many shuffles, [length, repeats]."""
    place_QR = np.repeat(np.arange(questions)[:, None], repeats, axis=1)
    column_R = np.arange(repeats)
    for here in range(length):  # a shuffle by Fisher and Yates that stops when enough are drawn
        other_R = rng.integers(here, questions, size=repeats)
        drawn_R = place_QR[other_R, column_R]
        place_QR[other_R, column_R] = place_QR[here]
        place_QR[here] = drawn_R
    return place_QR[:length].copy()  # lets go of the rest


@dataclass(frozen=True)
class Unit:
    """A skill in a grade, with the questions whose answers are known and the accuracy on them."""

    subject: str
    grade: str
    skill: str
    questions: int
    accuracy: float | None  # None without a question


@dataclass(frozen=True)
class Score:
    """The mean score of some units, 0 to 100.

    Attributes:
        mean: over the units and the repeats.
        low, high: 95 % of single exams are between them. One exam is luckier than the next: this
            is its spread, and not how sure the mean is.
        guessing: the mean score of guesses among each question's own options.
        mastered: share of the units that end above `MASTERED_ABOVE`.
        units: how many they are.
    """

    mean: float
    low: float
    high: float
    guessing: float
    mastered: float
    units: int


@dataclass(frozen=True)
class Exam:
    """Exams of every unit, sat many times.

    Attributes:
        units: those that were sat, by subject, grade and skill.
        score_RU, guess_RU: final scores of the model, and of guesses.
        left_out: units without a question whose answer is known, or with fewer than an exam
            without replacement needs.
        unknown: number of questions whose answer is not known; they cannot be asked.
        config: every setting.
    """

    units: list[Unit]
    score_RU: Ints
    guess_RU: Ints
    left_out: list[Unit]
    unknown: int
    config: ExamConfig

    @property
    def small(self) -> list[Unit]:
        """Units that were sat with fewer questions than an exam has, so that they came again."""
        return [unit for unit in self.units if unit.questions < self.config.questions_per_skill]

    @property
    def perfect(self) -> int:
        """The score of an exam without a wrong answer."""
        right_NR = np.ones((self.config.questions_per_skill, 1), np.bool_)
        return int(final_scores(right_NR, self.config.rule)[0])

    def by(self, name: str) -> dict[str, Score]:
        """The scores by `subject`, `grade` or `skill`.

        A skill's units are its grades; it is called subject/skill, because two subjects may use one
        name.
        """
        names, group_U = numbered(
            f"{unit.subject}/{unit.skill}" if name == "skill" else getattr(unit, name)
            for unit in self.units
        )
        return {str(n): self._score(group_U == place) for place, n in enumerate(names)}

    @property
    def mean_of_skills(self) -> Score:
        """Every unit counts the same."""
        return self._score(np.ones(len(self.units), np.bool_))

    @property
    def mean_of_subjects(self) -> Score:
        """Every subject counts the same: the paper's "Average"."""
        _, subject_U = numbered(unit.subject for unit in self.units)
        return self._score(1 / np.bincount(subject_U)[subject_U])

    @property
    def of_units(self) -> list[Score]:
        """The score of each unit, in the order of `units`."""
        return [
            self._score(np.arange(len(self.units)) == place) for place in range(len(self.units))
        ]

    def _score(self, weight_U: NDArray[Any]) -> Score:
        here_V = np.flatnonzero(weight_U)
        share_V = weight_U[here_V] / weight_U.sum()
        score_RV = self.score_RU[:, here_V]
        mean_R = score_RV @ share_V
        low, high = np.quantile(mean_R, TAILS)
        return Score(
            mean=float(mean_R.mean()),
            low=float(low),
            high=float(high),
            guessing=float(self.guess_RU[:, here_V].mean(axis=0) @ share_V),
            mastered=float((score_RV > MASTERED_ABOVE).mean(axis=0) @ share_V),
            units=len(here_V),
        )


def sit(found: Predictions, config: ExamConfig) -> Exam:
    """Sit the exams of every unit.

    What a unit scores depends on its questions and the settings, not on the order of the rows nor
    on other units; two models that answer the same questions get the same draws.

    Raises:
        ClipstemError: if no answer is known, or no unit has enough questions.
    """
    known_Q = found.answer_Q >= 0
    if not known_Q.any():
        raise ClipstemError(
            f"{config.predictions}: none of the {len(found):,} questions has a known answer, so "
            "there is no exam; predict a split that has answers"
        )
    right_Q = _chance_to_be_right(found, config.choices)
    guess_Q = 1 / found.num_options_Q
    accurate_Q = found.choice_Q == found.answer_Q
    names, unit_Q = numbered(
        zip(*(found.columns[name] for name in ("subject", "grade", "skill")), strict=True)
    )
    in_order_Q = np.lexsort((numbered(found.columns["id"])[1], unit_Q))
    places = np.split(in_order_Q, np.cumsum(np.bincount(unit_Q))[:-1])
    needed = 1 if config.replacement else config.questions_per_skill
    units, left_out, scores = [], [], []
    for (subject, grade, skill), all_Q in zip(names, places, strict=True):
        here_Q = all_Q[known_Q[all_Q]]
        accuracy = float(accurate_Q[here_Q].mean()) if len(here_Q) else None
        unit = Unit(subject, grade, skill, len(here_Q), accuracy)
        if unit.questions < needed:
            left_out.append(unit)
            continue
        units.append(unit)
        scores.append(_sit_unit(unit, np.stack([right_Q[here_Q], guess_Q[here_Q]]), config))
    if not units:
        most = max(unit.questions for unit in left_out)
        raise ClipstemError(
            f"{config.predictions}: no skill has {config.questions_per_skill} questions (the "
            f"largest has {most}); give replacement=true or questions_per_skill={most} or less"
        )
    score_2RU = np.stack(scores, axis=-1)
    return Exam(units, score_2RU[0], score_2RU[1], left_out, int((~known_Q).sum()), config)


def _chance_to_be_right(found: Predictions, choices: Choices) -> Floats:
    """How probably each question is answered right; 0 or 1 where choices do not vary."""
    if choices is Choices.argmax:
        return (found.choice_Q == found.answer_Q).astype(np.float64)
    return found.probs_QK[np.arange(len(found)), found.answer_Q]


def _sit_unit(unit: Unit, right_2Q: Floats, config: ExamConfig) -> Ints:
    """Final scores [2, repeats] of a model and of guesses, who get the same questions."""
    name = "\n".join([unit.subject, unit.grade, unit.skill])
    rng = np.random.default_rng([config.seed, *name.encode()])
    length, repeats = config.questions_per_skill, config.repeats
    place_NR = draw_questions(rng, unit.questions, length, repeats, config.replacement)
    luck_NR = rng.random(place_NR.shape)
    return np.stack(
        [final_scores(luck_NR < right_Q[place_NR], config.rule) for right_Q in right_2Q]
    )


# ---------------------------------------------------------------------------- what people see


def show(exam: Exam, found: Predictions) -> None:
    """Print the scores and everything that they hang on."""
    console.print(_scores_table(exam))
    console.print(_lowest_table(exam))
    settings = ", ".join(f"{name}={value}" for name, value in plain(exam.config).items())
    for line in (settings, *_notes(exam, found)):
        console.print(line, highlight=False)


def _notes(exam: Exam, found: Predictions) -> Iterator[str]:
    length = exam.config.questions_per_skill
    yield (
        "the intervals hold 95 % of single exams; the published score is of another test split, "
        "and its rule and length are not known"
    )
    if exam.perfect <= MASTERED_ABOVE:
        yield (
            f"{length} right answers make {exam.perfect}, so no skill can be mastered "
            f"(above {MASTERED_ABOVE})"
        )
    if exam.unknown:
        yield f"{exam.unknown:,} questions have no known answer: not asked"
    if exam.left_out:
        yield f"{len(exam.left_out):,} skills have too few questions: {_names(exam.left_out)}"
    if exam.small:
        yield (
            f"{len(exam.small):,} skills have fewer than {length} questions, which come again: "
            f"{_names(exam.small)}"
        )
    if found.unread:
        yield f"columns that were not read: {', '.join(found.unread)}"


def _names(units: list[Unit]) -> str:
    return ", ".join(f"{unit.skill} ({unit.grade}: {unit.questions})" for unit in units)


def _scores_table(exam: Exam) -> Table:
    table = _table(
        "exam score, 0 to 100", "", "skills", "score", "95 % of exams", "guessing",
        f"above {MASTERED_ABOVE}, %",
    )  # fmt: skip
    for name in ("subject", "grade"):
        scores = exam.by(name)
        for group in sorted(scores, key=lambda group: natural(group, YOUNGEST)):
            table.add_row(group, *_cells(scores[group]))
        table.add_section()
    table.add_row("mean of subjects", *_cells(exam.mean_of_subjects))
    table.add_row("mean of skills", *_cells(exam.mean_of_skills))
    table.add_row("people, published", "", str(PEOPLE))
    return table


def _lowest_table(exam: Exam) -> Table:
    scored = sorted(zip(exam.of_units, exam.units, strict=True), key=lambda pair: pair[0].mean)
    title = f"the lowest {len(scored[:LOWEST_SHOWN])} of {len(scored):,} skills"
    table = _table(title, "skill", "grade", "questions", "accuracy %", "score", "95 % of exams")
    for score, unit in scored[:LOWEST_SHOWN]:
        table.add_row(
            unit.skill,
            unit.grade,
            f"{unit.questions:,}",
            f"{100 * (unit.accuracy or 0):.1f}",
            f"{score.mean:.1f}",
            f"{score.low:.0f} – {score.high:.0f}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for name in columns:
        is_text = name in ("", "skill", "grade")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    return table


def _cells(score: Score) -> Sequence[str]:
    return (
        f"{score.units:,}",
        f"{score.mean:.1f}",
        f"{score.low:.1f} – {score.high:.1f}",
        f"{score.guessing:.1f}",
        f"{100 * score.mastered:.0f}",
    )


# ---------------------------------------------------------------------------- files


def write(exam: Exam, found: Predictions, folder: Path) -> None:
    """Write `exam.json`, with all that is printed and more, and `exam.parquet`, a row a unit.

    Raises:
        ClipstemError: if the folder exists.
    """
    content = {
        "settings": plain(exam.config),
        "mean_of_subjects": dataclasses.asdict(exam.mean_of_subjects),
        "mean_of_skills": dataclasses.asdict(exam.mean_of_skills),
        **{
            name: {group: dataclasses.asdict(score) for group, score in exam.by(name).items()}
            for name in ("subject", "grade", "skill")
        },
        "people": PEOPLE,
        "mastered_above": MASTERED_ABOVE,
        "perfect": exam.perfect,
        "questions": sum(unit.questions for unit in exam.units),
        "questions_without_answer": exam.unknown,
        "skills_left_out": [dataclasses.asdict(unit) for unit in exam.left_out],
        "skills_with_few_questions": [dataclasses.asdict(unit) for unit in exam.small],
        "columns_not_read": found.unread,
        "predictions_made_by": found.provenance,
        "exam_made_by": run.environment(),
    }
    rows = [
        {**dataclasses.asdict(unit), **dataclasses.asdict(score)}
        for unit, score in zip(exam.units, exam.of_units, strict=True)
    ]
    with new_folder(folder) as partial:
        (partial / "exam.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        pq.write_table(pa.Table.from_pylist(rows), partial / "exam.parquet")


@verb("exam", ExamConfig)
def main(config: ExamConfig) -> None:
    found = prediction.read(Path(config.predictions))
    exam = sit(found, config)
    if config.out is not None:
        write(exam, found, Path(config.out))
    show(exam, found)


if __name__ == "__main__":
    main()

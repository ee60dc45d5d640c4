"""The exam in the report: every model sits it in every skill, on the report's questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from clipstem import charts, exam
from clipstem.config import ExamConfig, ExamRules
from clipstem.exam import Exam, Score
from clipstem.prediction import Predictions
from clipstem.report.analyses import correlation_in_words
from clipstem.report.answers import Answers, Labels, Model
from clipstem.report.page import NOTHING, Chart, Part, Section, Table, count, percent
from clipstem.statistics import ranks

Exams = Mapping[str, Exam]
"""Of each model, by its name."""


def sit(answers: Answers, rules: ExamRules) -> Exams:
    """Every model's exams; all get the same questions in the same draws."""
    return {
        model.name: exam.sit(
            _predictions(answers, model), ExamConfig(predictions=str(model.path), **vars(rules))
        )
        for model in answers.models
    }


def _predictions(answers: Answers, model: Model) -> Predictions:
    questions = answers.questions
    columns: dict[str, Sequence[object]] = {
        "id": questions.id.to_pylist(),
        "subject": _words(questions.subject.names, questions.subject),
        "grade": _words(questions.grade.names, questions.grade),
        "skill": _words(questions.slug_S, questions.skill),
        "num_options": questions.num_options_Q.tolist(),
        "answer": questions.answer_Q.tolist(),
    }
    return Predictions(columns, model.probs_QK, model.logits_QK)


def _words(names: Sequence[str], labels: Labels) -> list[str]:
    return np.array(names, object)[labels.number_Q].tolist()


def headline(exams: Exams, rules: ExamRules) -> Section:
    """The scores, what guesses and people reach, and every setting."""
    rows = [
        _row(name, found.mean_of_subjects, found.mean_of_skills) for name, found in exams.items()
    ]
    first = next(iter(exams.values()))
    rows += [
        (
            "guessing",
            f"{first.mean_of_subjects.guessing:.1f}",
            f"{first.mean_of_skills.guessing:.1f}",
            NOTHING,
        ),
        ("people (published)", f"{exam.PEOPLE:.1f}", NOTHING, NOTHING),
    ]
    columns = (
        "taken by",
        "mean of subjects",
        "mean of skills",
        f"mastered (above {exam.MASTERED_ABOVE}), %",
    )
    notes = [
        f"Rule {rules.rule.value}, at most {count(rules.questions_per_skill)} questions of a "
        f"skill, {'with' if rules.replacement else 'without'} replacement, {count(rules.repeats)} "
        "repeats. 95 % of single exams lie in the intervals: the luck of one exam, not how sure "
        "the mean is. People: read off a figure of the paper, for other questions and an "
        "unpublished number of them.",
        *_few_questions(first, rules),
    ]
    return Section("Exam score", (Table("Exam scores, 0 to 100", columns, rows, notes=notes),))


def _row(name: str, of_subjects: Score, of_skills: Score) -> tuple[str, ...]:
    return (
        name,
        _with_interval(of_subjects),
        _with_interval(of_skills),
        percent(of_skills.mastered),
    )


def _few_questions(found: Exam, rules: ExamRules) -> list[str]:
    """Skills that the exam says less about, by name."""
    lines = []
    if found.perfect <= exam.MASTERED_ABOVE:
        lines.append(
            f"{rules.questions_per_skill} right answers make {found.perfect}: no skill can be "
            "mastered."
        )
    if found.small:
        lines.append(
            f"{len(found.small):,} of {len(found.units):,} skills have fewer questions than an "
            "exam, so that some come again; the list of every skill has their numbers."
        )
    if found.left_out:
        named = ", ".join(f"{it.skill} ({it.grade}: {it.questions:,})" for it in found.left_out)
        lines.append(
            f"{len(found.left_out):,} skills have too few questions for an exam without "
            f"replacement and are left out: {named}."
        )
    return lines


def by_group(answers: Answers, exams: Exams) -> Section:
    """By subject and by grade."""
    parts: list[Part] = []
    for name, labels in (
        ("subject", answers.questions.subject),
        ("grade", answers.questions.grade),
    ):
        scores = {model: found.by(name) for model, found in exams.items()}
        first = next(iter(scores.values()))
        order = [group for group in labels.names if group in first]
        rows = [
            (
                group,
                str(first[group].units),
                f"{first[group].guessing:.1f}",
                *(_with_interval(of_model[group]) for of_model in scores.values()),
                *(percent(of_model[group].mastered) for of_model in scores.values()),
            )
            for group in order
        ]
        above = [f"{model} above {exam.MASTERED_ABOVE}, %" for model in scores]
        caption = f"Exam score by {name}, with 95 % of single exams, and skills mastered"
        parts.append(Table(caption, (name, "skills", "guessing", *scores, *above), rows))
    return Section("Exam score by subject and grade", parts)


def of_skills(answers: Answers, found: Exam) -> list[float]:
    """The mean score of each skill over its grades; NaN where it was not sat."""
    scores: dict[tuple[str, str], list[float]] = {}
    for unit, score in zip(found.units, found.score_RU.mean(axis=0).tolist(), strict=True):
        scores.setdefault((unit.subject, unit.skill), []).append(score)
    means = {key: float(np.mean(values)) for key, values in scores.items()}
    questions = answers.questions
    first_S = np.unique(questions.skill.number_Q, return_index=True)[1]
    subjects = [questions.subject.names[n] for n in questions.subject.number_Q[first_S]]
    return [means.get(key, math.nan) for key in zip(subjects, questions.slug_S, strict=True)]


def _with_interval(score: Score) -> str:
    return f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]"


def correlation(exams: Exams) -> Section:
    """Accuracy and exam score of each skill in each grade."""
    points = {
        name: (
            [100 * (unit.accuracy or 0) for unit in found.units],
            found.score_RU.mean(axis=0).tolist(),
        )
        for name, found in exams.items()
    }
    rows = [
        (
            name,
            correlation_in_words(np.array(x), np.array(y)),
            correlation_in_words(ranks(np.array(x)), ranks(np.array(y))),
        )
        for name, (x, y) in points.items()
    ]
    caption = "Correlation of accuracy with exam score over the skills"
    alt = f"{caption}: one point for each skill in a grade and model."
    svg = charts.scatter(points, "accuracy, %", "exam score", alt)
    return Section(
        "Accuracy and exam score",
        (
            Table(caption, ("model", "Pearson", "Spearman"), rows),
            Chart("accuracy-and-exam-score", "A point is a skill in a grade.", alt, svg),
        ),
    )

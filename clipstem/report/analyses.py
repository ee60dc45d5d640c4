"""The analyses of the paper: tables and charts of one or several models over the same questions.

Pure functions of `Answers`. Q questions, S skills, K most options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clipstem import charts, metrics
from clipstem.charts import Estimate
from clipstem.metrics import Reliability
from clipstem.report import published
from clipstem.report.answers import Answers, Labels, Model, Questions
from clipstem.report.page import (
    NOTHING,
    Chart,
    Section,
    Table,
    between,
    count,
    decimal,
    percent,
    signed_percent,
)
from clipstem.statistics import (
    ranks,
    skills_like_these_interval,
    these_skills_interval,
    wilson,
)

Floats = NDArray[np.float64]

# ---------------------------------------------------------------------------- headline


def accuracy(answers: Answers, repeats: int, seed: int) -> Section:
    """Macro and micro accuracy with both intervals, and chance."""
    questions = answers.questions
    skill_Q, subject_Q = questions.skill.number_Q, questions.subject.number_Q
    rows = [
        (
            model.name,
            percent(macro(questions, model.right_Q)),
            between(these_skills_interval(model.right_Q, skill_Q, repeats, seed, subject_Q)),
            between(skills_like_these_interval(model.right_Q, skill_Q, subject_Q)),
            percent(model.right_Q.mean()),
            between(these_skills_interval(model.right_Q, skill_Q, repeats, seed)),
            between(skills_like_these_interval(model.right_Q, skill_Q)),
        )
        for model in answers.models
    ]
    chance = (percent(macro(questions, questions.chance_Q)), percent(questions.chance_Q.mean()))
    rows.append(("chance", chance[0], NOTHING, NOTHING, chance[1], NOTHING, NOTHING))
    intervals = ("these skills", "skills like these")
    notes = (
        "Macro: the unweighted mean of the subjects' accuracies, the paper's average. Micro: all "
        "questions alike. Intervals are 95 %. These skills: other questions of the same skills "
        f"(bootstrap of the questions within each skill, {count(repeats)} repeats). Skills like "
        "these: other skills of the same sort (cluster-robust, Student's t); not given below 10 "
        "skills, nor where one holds most of the questions.",
    )
    columns = ("model", "macro, %", *intervals, "micro, %", *intervals)
    return Section(
        "Accuracy",
        (Table("Macro and micro accuracy, with two intervals each", columns, rows, notes=notes),),
    )


def macro(questions: Questions, value_Q: NDArray[np.generic]) -> float:
    """The unweighted mean of the subjects' means."""
    return float(questions.subject.means(value_Q).mean())


def probability_quality(answers: Answers, bins: int) -> Section:
    """How good the probabilities are, not only the choices."""
    rows = []
    for model in answers.models:
        answer_Q = model.answer_Q
        with np.errstate(divide="ignore"):
            nll = -np.log(model.probs_QK[np.arange(len(answer_Q)), answer_Q]).mean()
        rows.append(
            (
                model.name,
                decimal(nll),
                decimal(metrics.brier(model.probs_QK, answer_Q)),
                percent(metrics.ece(model.probs_QK, answer_Q, bins)),
                decimal(model.provenance.get("temperature") or float("nan")),
            )
        )
    notes = (
        "Lower is better. Negative log-likelihood of the right option, nats; Brier: squared "
        f"distance summed over options; expected calibration error over {bins} bins of equal "
        "width. All after the temperature.",
    )
    columns = (
        "model",
        "negative log-likelihood, nats",
        "Brier",
        "calibration error, %",
        "temperature",
    )
    return Section(
        "Probabilities", (Table("How good the probabilities are", columns, rows, notes=notes),)
    )


def published_results() -> Section:
    """The paper's table, beside."""
    rows = [
        (row.name, *(f"{value:.1f}" for value in (*row.subjects, row.average)))
        for row in published.MODELS
    ]
    columns = ("model", *published.SUBJECTS, "average")
    exam = [(name, f"{score:.1f}") for name, score in published.EXAM_SCORES.items()]
    return Section(
        "Published results",
        (
            Table("Published accuracy, %", columns, rows, notes=(published.NOTE,)),
            Table(
                "Published exam scores, average",
                ("taken by", "score"),
                exam,
                notes=("Read off a figure, about ±0.2; the exam's rule was not published.",),
            ),
            Table(
                "Published accuracy of some skills, %",
                ("skill", "chance", "zero-shot", "fine-tuned"),
                [(name, *map(str, values)) for name, values in published.SKILLS.items()],
                notes=("Read off a figure, about ±0.5.",),
            ),
        ),
    )


# ---------------------------------------------------------------------------- by group


def by_subject(answers: Answers) -> Section:
    return Section("By subject", _group(answers, answers.questions.subject, "subject"))


def by_grade(answers: Answers) -> Section:
    return Section("By grade", _group(answers, answers.questions.grade, "grade"))


def by_kind(answers: Answers) -> Section:
    kind = answers.questions.kind
    words = Labels(tuple(name.replace("_", " ") for name in kind.names), kind.number_Q)
    return Section("By kind of question", _group(answers, words, "kind"))


def by_options(answers: Answers) -> Section:
    labels = Labels.of([f"{number} options" for number in answers.questions.num_options_Q.tolist()])
    return Section("By number of options", _group(answers, labels, "number of options"))


WORD_EDGES = (0, 6, 11, 16, 21, 31, 51)
TRAINING_EDGES = (0, 1, 101, 301, 1001, 3001)


def by_length(answers: Answers) -> Section:
    labels = binned(answers.questions.words_Q, WORD_EDGES, "words")
    return Section("By question length", _group(answers, labels, "question length"))


def binned(value_Q: NDArray[np.int64], edges: Sequence[int], unit: str) -> Labels:
    """Whole numbers by range: between edges, and from the last on; below the first is unknown."""
    ends = [
        f"{low:,} to {high - 1:,} {unit}" if high - low > 1 else f"{low:,} {unit}"
        for low, high in pairwise(edges)
    ]
    names = ("unknown", *ends, f"{edges[-1]:,} or more {unit}")
    number_Q = np.searchsorted(edges, value_Q, "right")
    used = np.unique(number_Q)
    return Labels(tuple(names[number] for number in used), np.searchsorted(used, number_Q))


WILSON = (
    "Wilson's intervals are as if questions were independent; those of one skill are alike, so "
    "that on other skills accuracies spread wider."
)


def _group(answers: Answers, labels: Labels, what: str) -> tuple[Table, Chart]:
    """Accuracy of each group of questions, with chance and an interval for each model."""
    chance_G = labels.means(answers.questions.chance_Q)
    estimates = {model.name: _estimates(model.right_Q, labels) for model in answers.models}
    rows = [
        (
            name,
            count(int(labels.counts[number])),
            percent(chance_G[number]),
            *(_with_interval(of_model[number]) for of_model in estimates.values()),
        )
        for number, name in enumerate(labels.names)
    ]
    caption = f"Accuracy by {what}, %, with 95 % intervals (Wilson)"
    table = Table(caption, (what, "questions", "chance", *estimates), rows, notes=(WILSON,))
    svg = charts.rows(
        labels.names,
        estimates,
        "accuracy, %",
        alt := f"{caption}: the table above, drawn.",
        reference=("chance", [100 * chance for chance in chance_G]),
    )
    return table, Chart(
        f"accuracy-by-{what.replace(' ', '-')}", f"Accuracy by {what}; ticks are chance.", alt, svg
    )


def _estimates(right_Q: NDArray[np.bool_], labels: Labels) -> list[Estimate]:
    """Per cent, with Wilson's interval."""
    found = []
    for share, total in zip(labels.means(right_Q), labels.counts, strict=True):
        interval = wilson(share * total, total)
        found.append(Estimate(100 * share, 100 * interval.low, 100 * interval.high))
    return found


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


# ---------------------------------------------------------------------------- by skill


def every_skill(answers: Answers, scores: Mapping[str, Sequence[float]]) -> Section:
    """All skills, the whole list; `scores` are the exam's, of each model in the skills' order."""
    questions = answers.questions
    skill = questions.skill
    first_S = np.unique(skill.number_Q, return_index=True)[1]
    means = [skill.means(model.right_Q) for model in answers.models]
    chance_S = skill.means(questions.chance_Q)
    grades_S = _grades_of_skills(questions)
    rows = [
        (
            questions.slug_S[number],
            questions.subject.names[questions.subject.number_Q[first_S[number]]],
            grades_S[number],
            count(int(skill.counts[number])),
            percent(chance_S[number]),
            *(percent(of_model[number]) for of_model in means),
            *(decimal(of_model[number], 1) for of_model in scores.values()),
        )
        for number in range(len(skill.names))
    ]
    columns = (
        "skill",
        "subject",
        "grade",
        "questions",
        "chance",
        *(model.name for model in answers.models),
        *(f"{name}, score" for name in scores),
    )
    caption = f"Accuracy, %, and mean exam score of all {len(rows):,} skills"
    return Section("Every skill", (Table(caption, columns, rows, words=3, sortable=True),))


def _grades_of_skills(questions: Questions) -> list[str]:
    """The grades of each skill's questions: a skill may stand in several."""
    pairs = np.unique(
        np.stack([questions.skill.number_Q, questions.grade.number_Q], axis=1), axis=0
    )
    grades: list[list[str]] = [[] for _ in questions.skill.names]
    for skill, grade in pairs:
        grades[skill].append(questions.grade.names[grade])
    return [", ".join(names) for names in grades]


def by_training_questions(answers: Answers) -> Section:
    """Accuracy by how many questions of a skill the model was trained on."""
    title = "By number of training questions"
    trained = [m for m in answers.models if m.provenance.get("train_questions_of_skill")]
    if not trained:
        line = "No predictions file says how many questions of each skill its model was trained on."
        return Section(title, (line,))
    skill = answers.questions.skill
    rows, points, lines = [], {}, []
    for model in trained:
        seen_S = _training_questions(model, answers.questions.slug_S)
        labels = binned(seen_S[skill.number_Q], TRAINING_EDGES, "questions")
        estimates = _estimates(model.right_Q, labels)
        rows += [
            (model.name, name, count(int(labels.counts[g])), _with_interval(estimates[g]))
            for g, name in enumerate(labels.names)
        ]
        accuracy_S = 100 * skill.means(model.right_Q)
        points[model.name] = (seen_S[seen_S > 0].tolist(), accuracy_S[seen_S > 0].tolist())
        lines.append(
            f"{model.name}: rank correlation of a skill's accuracy with its number of training "
            f"questions {correlation_in_words(ranks(seen_S), ranks(accuracy_S))}."
        )
    caption = "Accuracy by number of training questions of the skill, %"
    columns = ("model", "trained on", "questions", "accuracy, %")
    alt = f"{caption}: one point for each skill and model."
    chart = charts.scatter(
        points, "training questions of the skill", "accuracy, %", alt, log_x=True
    )
    return Section(
        title,
        (
            Table(caption, columns, rows, words=2, notes=(WILSON,)),
            Chart("accuracy-by-training-questions", f"{caption}; a point is a skill.", alt, chart),
            *lines,
        ),
    )


def _training_questions(model: Model, slug_S: Sequence[str]) -> NDArray[np.int64]:
    known: Mapping[str, int] = model.provenance["train_questions_of_skill"]
    return np.array([known.get(slug, 0) for slug in slug_S], np.int64)


def correlation_in_words(x: Floats, y: Floats) -> str:
    """A coefficient with the number of points that it is of; without spread there is none."""
    if min(len(np.unique(x)), len(np.unique(y))) < 2:
        return f"{NOTHING} (n = {len(x)})"
    return f"{decimal(float(np.corrcoef(x, y)[0, 1]), 2)} (n = {len(x)})"


# ---------------------------------------------------------------------------- model size


def by_size(answers: Answers) -> Section:
    """Macro accuracy against the number of parameters, the published models beside."""
    sized = [m for m in answers.models if m.provenance.get("parameters")]
    title = "By model size"
    if not sized:
        return Section(title, ("No predictions file says how many parameters its model has.",))
    rows = [
        (
            model.name,
            f"{model.provenance['parameters'] / 1e6:,.1f}",
            percent(macro(answers.questions, model.right_Q)),
        )
        for model in sized
    ]
    zero_shot = [row for row in published.MODELS if row.parameters is not None]
    rows += [
        (f"{row.name} (published)", f"{row.parameters:,.0f}", f"{row.average:.1f}")
        for row in zero_shot
    ]
    ours = [100 * macro(answers.questions, model.right_Q) for model in sized]
    points = {
        "this report": ([m.provenance["parameters"] for m in sized], ours),
        "published, zero-shot": (
            [1e6 * (row.parameters or math.nan) for row in zero_shot],
            [row.average for row in zero_shot],
        ),
    }
    names = {
        "this report": [model.name for model in sized],
        "published, zero-shot": [row.name.removeprefix("CLIP ") for row in zero_shot],
    }
    caption = "Macro accuracy by model size"
    alt = f"{caption}: the table above, parameters on a logarithmic axis."
    svg = charts.scatter(points, "parameters", "macro accuracy, %", alt, True, names)
    notes = (f"Published parameters are read off a figure. {published.NOTE}",)
    return Section(
        title,
        (
            Table(caption, ("model", "parameters, millions", "accuracy, %"), rows, notes=notes),
            Chart("accuracy-by-size", f"{caption}.", alt, svg),
        ),
    )


# ---------------------------------------------------------------------------- calibration


def calibration(answers: Answers, bins: int) -> Section:
    """Reliability before the temperature (from logits, where there are any) and after it."""
    parts = [
        part
        for number, model in enumerate(answers.models)
        for part in _reliability(model, answers.questions, f"reliability-{number}", bins)
    ]
    rows = [
        (str(centre), *(f"{points[b]:.1f}" for points in published.RELIABILITY.values()))
        for b, centre in enumerate(published.RELIABILITY_CENTRES)
    ]
    caption = "Published reliability: accuracy in each bin of confidence, %"
    notes = (f"Read off a figure, about ±0.5. {published.NOTE}",)
    beside = Table(caption, ("bin's centre", *published.RELIABILITY), rows, notes=notes)
    return Section("Calibration", (*parts, beside))


def _reliability(model: Model, questions: Questions, name: str, bins: int) -> tuple[Table, Chart]:
    given = {"after": model.probs_QK}
    if model.has_logits:
        before_QK = metrics.probabilities(model.logits_QK, questions.num_options_Q)
        given = {"before the temperature": before_QK, **given}
    found = [_every_bin(probs_QK, model.answer_Q, bins) for probs_QK in given.values()]
    errors = [percent(metrics.ece(probs_QK, model.answer_Q, bins)) for probs_QK in given.values()]
    centre_B = found[0].centre_B
    rows = [
        [percent(centre)] + [cell for one in found for cell in _bin_cells(one, b)]
        for b, centre in enumerate(centre_B)
        if any(one.count_B[b] for one in found)
    ]
    columns = ["bin's centre"]
    columns += [f"{what} {when.split()[0]}" for when in given for what in ("n", "held", "right")]
    before = f"{errors[0]} % before and " if model.has_logits else ""
    missing = "" if model.has_logits else " (no logits given: nothing is known of before)"
    caption = (
        f"Reliability of {model.name}: expected calibration error {before}{errors[-1]} % after the "
        f"temperature{missing}"
    )
    notes = ("n: choices in the bin; held: their mean probability, %; right: accuracy, %.",)
    alt = f"{caption}. Accuracy over confidence; on the dashed line both agree."
    series = {when: (100 * one.accuracy_B).tolist() for when, one in zip(given, found, strict=True)}
    svg = charts.line(
        (100 * centre_B).tolist(),
        series,
        "probability of the choice, %",
        "accuracy, %",
        alt,
        diagonal=True,
    )
    return Table(caption, columns, rows, notes=notes), Chart(name, f"{caption}.", alt, svg)


def _every_bin(probs_QK: Floats, answer_Q: NDArray[np.int64], bins: int) -> Reliability:
    """The same with empty bins: no questions, and NaN."""
    found = metrics.reliability(probs_QK, answer_Q, bins)
    filled = np.floor(found.centre_B * bins).astype(np.int64)

    def spread(values: NDArray[np.generic], empty: float) -> NDArray[np.float64]:
        every = np.full(bins, empty)
        every[filled] = values
        return every

    return Reliability(
        (np.arange(bins) + 0.5) / bins,
        spread(found.confidence_B, math.nan),
        spread(found.accuracy_B, math.nan),
        spread(found.count_B, 0).astype(np.int64),
    )


def _bin_cells(found: Reliability, b: int) -> list[str]:
    return [
        count(int(found.count_B[b])),
        percent(found.confidence_B[b]),
        percent(found.accuracy_B[b]),
    ]


# ---------------------------------------------------------------------------- people


def people(answers: Answers) -> Section:
    """How far from people."""
    interval = wilson(
        published.PEOPLE_ACCURACY / 100 * published.PEOPLE_QUESTIONS, published.PEOPLE_QUESTIONS
    )
    rows = [
        (
            "people (published)",
            f"{published.PEOPLE_ACCURACY:.1f} {between(interval)}",
            NOTHING,
        )
    ]
    for model in answers.models:
        reached = model.right_Q.mean()
        behind = reached - published.PEOPLE_ACCURACY / 100
        rows.append((model.name, percent(reached), signed_percent(behind)))
    notes = (
        f"People answered {published.PEOPLE_QUESTIONS} sampled questions of STEM; the interval is "
        f"Wilson's. {published.NOTE}",
    )
    columns = ("answered by", "accuracy, %", "difference, points")
    return Section("People", (Table("Accuracy beside people's", columns, rows, notes=notes),))

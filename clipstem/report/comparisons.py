"""What the paper lacks: models against each other, against changed questions, and by habit.

Pure functions of `Answers`. Q questions, S skills, K most options.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from clipstem.config import Perturbation
from clipstem.question import Question
from clipstem.report.answers import Answers, Model, Variant
from clipstem.report.page import (
    NOTHING,
    Section,
    Table,
    between,
    count,
    p_value,
    percent,
    signed_percent,
)
from clipstem.statistics import holm, mcnemar_exact, paired_difference

SHOWN_SKILLS = 15
ALONE = "Give several predictions files to compare models."

WITHOUT_SIGHT = tuple(
    change.value
    for change in (
        Perturbation.blank_picture,
        Perturbation.shuffled_pictures,
        Perturbation.options_only,
    )
)
"""Perturbations that take away what the answer needs: a model that looks loses by them."""

CHANGES = {change.value for change in Perturbation} - set(WITHOUT_SIGHT)
"""Perturbations that leave the answer true."""


def paired(answers: Answers) -> Section:
    """Each pair of models on the same questions."""
    title = "Paired comparison"
    pairs = list(combinations(answers.models, 2))
    if not pairs:
        return Section(title, (ALONE,))
    skill_Q = answers.questions.skill.number_Q
    found = [paired_difference(b.right_Q, a.right_Q, skill_Q) for a, b in pairs]
    adjusted = holm(np.array([one.p for one in found]))
    rows = [
        (
            f"{b.name} − {a.name}",
            signed_percent(one.difference),
            between(one.interval),
            count(int((b.right_Q & ~a.right_Q).sum())),
            count(int((a.right_Q & ~b.right_Q).sum())),
            p_value(one.p),
            p_value(p),
        )
        for (a, b), one, p in zip(pairs, found, adjusted, strict=True)
    ]
    columns = (
        "models",
        "points",
        "95 % interval",
        "only the first right",
        "only the second right",
        "p",
        "p, corrected",
    )
    notes = (
        "Difference of micro accuracies, in points; its interval is for other skills of the same "
        "sort (cluster-robust; not given for too few skills). p: exact McNemar test, two-sided; "
        "corrected over the pairs after Holm. The test is as if questions were independent; those "
        "of one skill are alike, so that the interval is the more careful of the two.",
    )
    table = Table("Difference in accuracy, question by question", columns, rows, notes=notes)
    return Section(
        title, (table, *(_skills_that_differ(answers, model) for model in answers.models[1:]))
    )


def _skills_that_differ(answers: Answers, model: Model) -> Table:
    """The skills in which a model differs most surely from the first one."""
    baseline, skill = answers.models[0], answers.questions.skill
    only_S = [
        np.bincount(skill.number_Q, flags_Q, len(skill.names)).astype(np.int64)
        for flags_Q in (model.right_Q & ~baseline.right_Q, baseline.right_Q & ~model.right_Q)
    ]
    p_S = np.array(
        [mcnemar_exact(a, b) for a, b in zip(*(one.tolist() for one in only_S), strict=True)]
    )
    adjusted_S = holm(p_S)
    difference_S = (only_S[0] - only_S[1]) / skill.counts
    order = np.lexsort((-np.abs(difference_S), adjusted_S))[:SHOWN_SKILLS]
    rows = [
        (
            skill.names[s],
            count(int(skill.counts[s])),
            signed_percent(difference_S[s]),
            count(int(only_S[0][s])),
            count(int(only_S[1][s])),
            p_value(adjusted_S[s]),
        )
        for s in order
    ]
    sure = int((adjusted_S < 0.05).sum())
    caption = (
        f"{model.name} against {baseline.name}: {sure} of {len(skill.names)} skills differ "
        f"(corrected p below 0.05); the {len(rows)} surest"
    )
    columns = (
        "skill",
        "questions",
        "points",
        f"only {model.name}",
        f"only {baseline.name}",
        "p, corrected",
    )
    return Table(caption, columns, rows)


def disagreement(answers: Answers) -> Section:
    """Where the models choose differently."""
    title = "Where the models disagree"
    models = answers.models
    if len(models) < 2:
        return Section(title, (ALONE,))
    rows = [
        (
            f"{a.name} and {b.name}",
            percent((a.choice_Q == b.choice_Q).mean()),
            percent((a.right_Q & b.right_Q).mean()),
            percent((~a.right_Q & ~b.right_Q).mean()),
            percent(((a.choice_Q == b.choice_Q) & ~a.right_Q).mean()),
        )
        for a, b in combinations(models, 2)
    ]
    columns = ("models", "same choice", "both right", "both wrong", "the same mistake")
    right_Q = np.sum([model.right_Q for model in models], axis=0)
    shares = np.bincount(right_Q, minlength=len(models) + 1) / len(right_Q)
    reached = [
        (f"{number} of {len(models)}", percent(share)) for number, share in enumerate(shares)
    ]
    return Section(
        title,
        (
            Table("Agreement, % of questions", columns, rows),
            Table(
                "Questions by how many models are right", ("models right", "questions, %"), reached
            ),
            _disputed_skills(answers),
        ),
    )


def _disputed_skills(answers: Answers) -> Table:
    skill = answers.questions.skill
    choices_QM = np.stack([model.choice_Q for model in answers.models], axis=1)
    disputed_S = skill.means((choices_QM != choices_QM[:, :1]).any(axis=1))
    rows = [
        (
            skill.names[s],
            count(int(skill.counts[s])),
            percent(disputed_S[s]),
            *(percent(skill.means(model.right_Q)[s]) for model in answers.models),
        )
        for s in np.argsort(-disputed_S, kind="stable")[:SHOWN_SKILLS]
    ]
    columns = ("skill", "questions", "disputed", *(model.name for model in answers.models))
    return Table(
        "Skills with the largest share of disputed questions; accuracies, %", columns, rows
    )


# ---------------------------------------------------------------------------- changed questions


def sight(answers: Answers) -> Section:
    """Does the model look at the picture at all?"""
    title = "Does it look at the picture?"
    found = [(m, v) for m in answers.models for v in m.variants if v.name in WITHOUT_SIGHT]
    if not found:
        return Section(
            title,
            (
                "Nothing can be said: no predictions for questions with blanked or shuffled "
                "pictures, or with the options only, were given. python -m clipstem.predict "
                f"makes them with perturb={', '.join(WITHOUT_SIGHT)}.",
            ),
        )
    table = _changes("Accuracy without the picture, or with the options only, %", answers, found)
    return Section(
        title,
        (
            "Blank and shuffled pictures: a model that looks loses what the picture is worth; one "
            "that does not, loses nothing. Options only: the question's text and its picture are "
            "gone, options that are pictures stay; what is above chance is read off the options. "
            f"Chance is {percent(answers.questions.chance_Q.mean())}\u00a0%.",
            table,
        ),
    )


def robustness(answers: Answers) -> Section:
    """What small changes do, and the worst case over them question by question."""
    title = "Robustness"
    found = [(m, v) for m in answers.models for v in m.variants if v.name not in WITHOUT_SIGHT]
    if not found:
        return Section(
            title,
            (
                "Nothing can be said: no predictions for perturbed questions were given. "
                "python -m clipstem.predict makes them with perturb="
                f"{', '.join(sorted(CHANGES))}.",
            ),
        )
    worst = []
    for model in answers.models:
        variants = [v for m, v in found if m is model]
        if variants:
            answered_Q = np.all([v.answered_Q for v in variants], axis=0)
            right_Q = np.all([model.right_Q, *(v.right_Q for v in variants)], axis=0)
            worst.append(
                (
                    model.name,
                    str(len(variants)),
                    count(int(answered_Q.sum())),
                    percent(model.right_Q[answered_Q].mean()),
                    percent(right_Q[answered_Q].mean()),
                )
            )
    columns = ("model", "changes", "questions", "unchanged", "right under every change")
    return Section(
        title,
        (
            _changes("Accuracy on changed questions, %", answers, found),
            Table("The worst case over all changes, question by question, %", columns, worst),
        ),
    )


def _changes(caption: str, answers: Answers, found: Sequence[tuple[Model, Variant]]) -> Table:
    skill_Q = answers.questions.skill.number_Q
    rows = []
    for model, variant in found:
        here = variant.answered_Q
        after_Q, before_Q = variant.credit_Q[here], model.credit_Q[here]
        change = paired_difference(after_Q, before_Q, skill_Q[here])
        # A share against right or wrong is no coin that falls evenly: McNemar's test has no place.
        tied = bool(((after_Q % 1 > 0) | (before_Q % 1 > 0)).any())
        rows.append(
            (
                model.name,
                variant.title,
                count(int(here.sum())),
                percent(before_Q.mean()),
                percent(after_Q.mean()),
                signed_percent(change.difference),
                between(change.interval),
                NOTHING if tied else p_value(change.p),
            )
        )
    columns = (
        "model",
        "change",
        "questions",
        "unchanged",
        "changed",
        "points",
        "95 % interval",
        "p",
    )
    notes = (
        "Interval and p as in the paired comparison above. Where n options share the largest "
        "probability exactly, as when all are blank pictures, the right one among them counts 1/n, "
        "and no p is given.",
    )
    return Table(caption, columns, rows, words=2, notes=notes)


# ---------------------------------------------------------------------------- habits


def positions(answers: Answers) -> Table:
    """How often each place among the options is right, and how often each model chooses it."""
    questions = answers.questions
    rows = [
        (
            f"{place + 1} of {options}",
            count(int(here.sum())),
            percent((questions.answer_Q[here] == place).mean()),
            *(percent((model.choice_Q[here] == place).mean()) for model in answers.models),
        )
        for options in np.unique(questions.num_options_Q)
        for here in [questions.num_options_Q == options]
        for place in range(options)
    ]
    columns = ("position", "questions", "right", *(f"chosen by {m.name}" for m in answers.models))
    return Table("How often each position is right and is chosen, %", columns, rows)


def lengths(
    answers: Answers, number_N: NDArray[np.int64], questions_N: Sequence[Question]
) -> Table:
    """The same for the longest and the shortest option, on N questions with text options."""
    rows = []
    for what, pick in (("longest", max), ("shortest", min)):
        single: list[int] = []
        place: list[int] = []
        for number, question in zip(number_N.tolist(), questions_N, strict=True):
            sizes = [len(option) for option in question.options if isinstance(option, str)]
            if sizes and sizes.count(pick(sizes)) == 1:
                single.append(number)
                place.append(sizes.index(pick(sizes)))
        if single:
            rows.append(
                (
                    what,
                    count(len(single)),
                    percent((answers.questions.answer_Q[single] == place).mean()),
                    *(percent((m.choice_Q[single] == place).mean()) for m in answers.models),
                )
            )
    columns = ("option", "questions", "right", *(f"chosen by {m.name}" for m in answers.models))
    notes = (
        f"Of {count(len(questions_N))} questions drawn from those with text options, those whose "
        "longest (shortest) option is one alone, by characters.",
    )
    return Table(
        "How often the longest and the shortest option is right and chosen, %",
        columns,
        rows,
        notes=notes,
    )

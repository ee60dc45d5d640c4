"""What was found of each training question, and what it therefore weighs. Pure functions.

N questions of all splits; findings and weights are of those of `train`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipstem.curate.cues import NOWHERE, Cues
from clipstem.curate.duplicates import Duplicates
from clipstem.curate.fingerprints import Fingerprints, Floats, Ints
from clipstem.curate.labels import Labels
from clipstem.curate.unseen import Unseen
from clipstem.report.curate import FINDINGS, UnitRow
from clipstem.report.page import percent

EASY = 0.99  # mean probability of the answer from which a question teaches next to nothing
NAMED = 5  # questions of a group that a finding names at most


@dataclass(frozen=True)
class Finding:
    """One reason to look at a question.

    Attributes:
        kind: of `FINDINGS`.
        why: the reason, as a sentence.
        others: numbers of the questions that it has to do with.
        instead: the option that is likely right, or −1.
    """

    kind: str
    why: str
    others: tuple[int, ...] = ()
    instead: int = -1


@dataclass
class Found:
    """All findings by the question's number, and what they do to its weight."""

    of: dict[int, list[Finding]] = field(default_factory=dict)

    def add(self, number: int, finding: Finding) -> None:
        self.of.setdefault(number, []).append(finding)

    def kinds(self, number: int) -> list[str]:
        """The gravest first."""
        kinds = {finding.kind for finding in self.of.get(number, ())}
        return [kind for kind in FINDINGS if kind in kinds]

    def numbers(self, kind: str) -> list[int]:
        return sorted(
            number
            for number, findings in self.of.items()
            if any(finding.kind == kind for finding in findings)
        )

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(kind for number in self.of for kind in self.kinds(number))
        return {kind: counted[kind] for kind in FINDINGS if counted[kind]}


def gather(
    questions: Fingerprints,
    duplicates: Duplicates,
    cues: Cues,
    labels: Labels | None,
    unseen: Unseen | None,
) -> tuple[Found, Floats, dict[str, int]]:
    """All findings, the weight of each question of `train` before balancing, and leaks by split.

    Weights, float64 [N], 1 for the other splits: 0 for leaks and suspected labels, and for all that
    contradict each other but what most of them say; what is left of a group of duplicates weighs 1
    together.
    """
    found = Found()
    split_N = questions.column("split")
    train_N = questions.in_train_N
    weight_N = np.ones(len(questions))
    leaks_into = _leaks(found, questions, duplicates, split_N, weight_N)
    if labels is not None and unseen is not None:
        _labels(found, questions, labels, unseen, np.flatnonzero(train_N), weight_N)
    for group in duplicates.groups(train_N):
        _contradictions(found, questions, duplicates.said_N, group, weight_N)
        _repeats(found, questions, group)
        left = group[weight_N[group] > 0]
        weight_N[left] = 1 / max(len(left), 1)
    for number in np.flatnonzero(train_N & (cues.found_by_N != NOWHERE)).tolist():
        cue = cues.named[cues.found_by_N[number]]
        share = percent(cue.right / cue.questions)
        why = (
            f"the right option is {cue.name}, as in {share} % of this skill's questions where "
            f"there is one; chance is {percent(cue.chance)} %"
        )
        found.add(number, Finding("giveaway", why))
    return found, weight_N, leaks_into


def _leaks(
    found: Found,
    questions: Fingerprints,
    duplicates: Duplicates,
    split_N: NDArray[np.object_],
    weight_N: Floats,
) -> dict[str, int]:
    leaks_into: Counter[str] = Counter()
    for group in duplicates.groups(np.ones(len(questions), np.bool_)):
        inside, outside = group[split_N[group] == "train"], group[split_N[group] != "train"]
        if not len(outside):
            continue
        splits = sorted(set(split_N[outside].tolist()))
        why = f"is in {' and '.join(splits)} too: {_names(questions, outside)}"
        for number in inside.tolist():
            found.add(number, Finding("leak", why, _some(outside)))
            leaks_into.update(splits)
        weight_N[inside] = 0
    return dict(sorted(leaks_into.items()))


def _contradictions(
    found: Found, questions: Fingerprints, said_N: Ints, group: Ints, weight_N: Floats
) -> None:
    """Where two of a group have different right options, as far as they are known."""
    counts = Counter(said_N[group[said_N[group] >= 0]].tolist())
    if len(counts) < 2:
        return
    (most, votes), (_, second) = counts.most_common(2)
    for number in group[said_N[group] >= 0].tolist():
        others = group[(said_N[group] >= 0) & (said_N[group] != said_N[number])]
        why = f"has another right option than {_names(questions, others)}"
        found.add(number, Finding("contradiction", why, _some(others)))
        if said_N[number] != most or votes == second:
            weight_N[number] = 0


def _repeats(found: Found, questions: Fingerprints, group: Ints) -> None:
    for number in group.tolist():
        others = group[group != number]
        why = f"is the same question as {_names(questions, others)}"
        found.add(number, Finding("duplicate", why, _some(others)))


def _labels(
    found: Found,
    questions: Fingerprints,
    labels: Labels,
    unseen: Unseen,
    train: Ints,
    weight_N: Floats,
) -> None:
    """Arrays of `labels` and `unseen` are of `train` alone, in its order."""
    judged = {skill.name for skill in labels.skills if skill.is_judged}
    skill_N = questions.skill_N
    for place in np.flatnonzero(~np.isnan(labels.confidence_N)).tolist():
        number = int(train[place])
        confidence, right = labels.confidence_N[place], unseen.right_N[place]
        if (other := int(labels.other_N[place])) >= 0:
            why = (
                f"models that have not seen it give option {other + 1} "
                f"{percent(unseen.mean_NK[place, other])} %, and the labelled option "
                f"{questions.answer_N[number] + 1} {percent(confidence)} %"
            )
            found.add(number, Finding("label", why, instead=other))
            weight_N[number] = 0
        elif right == 0 and skill_N[number] in judged:
            why = (
                f"none of {unseen.answered_N[place]} models that have not seen it gets it right; "
                f"they give the labelled option {percent(confidence)} %"
            )
            found.add(number, Finding("too hard", why))
        elif right == 1 and confidence >= EASY:
            why = f"models that have not seen it give the labelled option {percent(confidence)} %"
            found.add(number, Finding("too easy", why))


def _some(numbers: Ints) -> tuple[int, ...]:
    return tuple(numbers[:NAMED].tolist())


def _names(questions: Fingerprints, numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    ids = questions.index["id"]
    shown = ", ".join(f"'{ids[int(number)].as_py()}'" for number in numbers[:NAMED])
    more = len(numbers) - NAMED
    return shown if more <= 0 else f"{shown} and {more:,} more"


def balanced(
    questions: Fingerprints, weight_N: Floats, strength: float
) -> tuple[Floats, tuple[UnitRow, ...]]:
    """Weights with the skills of each grade evened out, and what each of these units weighs.

    A unit's weights are multiplied by (mean weight of a unit / its own weight) ** strength, and
    then all by one factor that leaves their sum as it was.
    """
    train = np.flatnonzero(questions.in_train_N)
    names = list(
        zip(
            *(questions.column(name)[train].tolist() for name in ("subject", "grade", "skill")),
            strict=True,
        )
    )
    units = sorted(set(names))
    place = {unit: number for number, unit in enumerate(units)}
    unit_T = np.array([place[name] for name in names], np.int64)
    size_U = np.bincount(unit_T, minlength=len(units))
    total_U = np.bincount(unit_T, weight_N[train], len(units))
    left_out_U = np.bincount(unit_T, weight_N[train] == 0, len(units)).astype(np.int64)
    evened_U = np.divide(
        total_U[total_U > 0].mean() if (total_U > 0).any() else 1.0,
        total_U,
        out=np.ones(len(units)),
        where=total_U > 0,
    )
    after_N = weight_N.copy()
    after_N[train] *= evened_U[unit_T] ** strength
    if after_N[train].any():
        after_N[train] *= weight_N[train].sum() / after_N[train].sum()
    after_U = np.bincount(unit_T, after_N[train], len(units))
    rows = tuple(
        UnitRow(
            subject=subject,
            grade=grade,
            skill=skill,
            questions=int(size_U[number]),
            left_out=int(left_out_U[number]),
            weight=float(after_U[number]),
            evened=float(evened_U[number]),
        )
        for number, (subject, grade, skill) in enumerate(units)
    )
    return after_N, rows

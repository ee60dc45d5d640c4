"""What `python -m clipstem.curate` found, as tables: of its `curate.json`, or while it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipstem import facts
from clipstem.report.page import NOTHING, Part, Section, Table, count, decimal, p_value, percent

MAX_BYTES = 64 * 2**20  # of a curate.json; that of 448 skills has 200 KB

FINDINGS = {
    "leak": "is in valid, test or tune too",
    "contradiction": "is there with another answer too",
    "label": "its label is likely wrong",
    "giveaway": "the options give the answer away",
    "duplicate": "is there more than once",
    "too hard": "no model that has not seen it gets it right",
    "too easy": "every such model is sure of the answer",
}
"""The kinds of findings, the gravest first, by what is said of the question."""

MOVES = {
    "leak": "0, so that scores stay honest",
    "contradiction": "0, unless most of them say the same",
    "label": "0",
    "giveaway": "stays",
    "duplicate": "all together weigh as one",
    "too hard": "stays",
    "too easy": "stays",
}
"""What the finding does to a question's weight."""


@dataclass(frozen=True)
class Cue:
    """A cue that finds the right option of a skill far more often than chance.

    Attributes:
        questions: of the skill, where it points at an option.
        right: how many of these options are right.
        chance: what guesses would reach there.
        p: that so many are right by chance, adjusted for all skills and cues (Holm).
    """

    skill: str
    name: str
    questions: int
    right: int
    chance: float
    p: float


@dataclass(frozen=True)
class Skill:
    """What predictions say of a skill's labels.

    Attributes:
        questions: with a known answer and a prediction.
        agreement: share of them whose most probable option is the labelled one.
        chance: of a guess.
        threshold: the probability from which an option counts as the right one.
        suspected: how many labels are.
        is_judged: False where models know too little: then nothing is suspected.
    """

    name: str
    questions: int
    agreement: float
    chance: float
    threshold: float
    suspected: int
    is_judged: bool


@dataclass(frozen=True)
class UnitRow:
    """A skill of a grade: its questions in `train`, and what they weigh together.

    Attributes:
        evened: the factor that gives all skills of all grades the same weight.
    """

    subject: str
    grade: str
    skill: str
    questions: int
    left_out: int
    weight: float
    evened: float


@dataclass(frozen=True)
class FileRow:
    """A predictions file, and how many of its questions its run had not seen."""

    path: str
    sha256: str
    questions: int


@dataclass(frozen=True)
class Curated:
    """All that `curate.json` holds.

    Attributes:
        questions: how many each split has.
        findings: how many questions of `train` there are of each of `FINDINGS`.
        leaks_into: how many questions of `train` are in each other split too.
        left_out: questions of `train` whose weight is 0.
        broken: questions with a picture that does not decode; they were compared with nothing.
        cues_tried: pairs of a skill and a cue that were tested.
        predicted: questions of `train` that a model answered which had not seen them.
        settings, made_by: of the command.
    """

    data: str
    data_sha256: str
    questions: dict[str, int]
    findings: dict[str, int]
    leaks_into: dict[str, int]
    left_out: int
    broken: int
    cues: tuple[Cue, ...]
    cues_tried: int
    predicted: int
    skills: tuple[Skill, ...]
    units: tuple[UnitRow, ...]
    predictions: tuple[FileRow, ...]
    settings: dict[str, Any]
    made_by: dict[str, Any]


def read(path: Path) -> Curated:
    """The content of a `curate.json`, checked.

    Raises:
        ClipstemError: if it is missing, or not what `python -m clipstem.curate` writes.
    """
    advice = "expected the curate.json of python -m clipstem.curate"
    return facts.read(Curated, path, MAX_BYTES, advice)


def section(curated: Curated) -> Section:
    """All tables, for a report."""
    parts: list[Part] = [
        f"{curated.data}: {_sizes(curated.questions)}. {count(curated.left_out)} questions of "
        "train have the weight 0; nothing was deleted.",
        _findings(curated),
        _cues(curated),
        *([_labels(curated)] if curated.skills else []),
        _balance(curated),
    ]
    return Section("What curation found", parts)


def _sizes(questions: dict[str, int]) -> str:
    return ", ".join(f"{split} {count(number)}" for split, number in questions.items())


def _findings(curated: Curated) -> Table:
    total = max(curated.questions.get("train", 0), 1)
    rows = [
        (name, said, MOVES[name], count(number), percent(number / total))
        for name, said in FINDINGS.items()
        if (number := curated.findings.get(name, 0)) or curated.predicted or name not in JUDGED
    ]
    notes = [
        f"Leaks by split: {_sizes(curated.leaks_into)}." if curated.leaks_into else "",
        f"{count(curated.predicted)} questions have predictions of models that had not seen them."
        if curated.predicted
        else "Labels were not judged: no predictions were given.",
        f"{count(curated.broken)} questions have a picture that does not decode; they were "
        "compared with nothing."
        if curated.broken
        else "",
    ]
    columns = ("finding", "a question of train", "its weight", "questions", "%")
    return Table("Findings", columns, rows, words=3, notes=[note for note in notes if note])


JUDGED = ("label", "too hard", "too easy")
"""Findings that need predictions."""


def _cues(curated: Curated) -> Table:
    rows = [
        (
            cue.skill,
            cue.name,
            count(cue.questions),
            percent(cue.right / max(cue.questions, 1)),
            percent(cue.chance),
            p_value(cue.p),
        )
        for cue in curated.cues
    ]
    notes = (
        "Where the option that is the longest, the only one named in the question and so on is "
        f"the right one much more often than by chance. {count(curated.cues_tried)} pairs of skill "
        "and cue were tried; p is adjusted for all of them (Holm).",
    )
    columns = ("skill", "the right option is", "questions", "right, %", "chance, %", "p")
    return Table("Options that give the answer away", columns, rows, words=2, notes=notes)


def _labels(curated: Curated) -> Table:
    rows = [
        (
            skill.name,
            count(skill.questions),
            percent(skill.agreement),
            percent(skill.chance),
            decimal(skill.threshold, 2),
            count(skill.suspected) if skill.is_judged else "not judged",
        )
        for skill in curated.skills
    ]
    blind = sum(not skill.is_judged for skill in curated.skills)
    notes = (
        "Agreement: how often models that have not seen the question choose the labelled option. "
        "How often another option than the labelled one reaches the threshold, the mean "
        "probability of the skill's labelled options, says how many labels are wrong; the least "
        "probable and most disputed are suspected (confident learning, Northcutt et al. 2021). "
        f"{count(blind)} skills are not judged: models know too little of them to tell a wrong "
        "label from a hard question.",
    )
    columns = ("skill", "questions", "agreement, %", "chance, %", "threshold", "suspected")
    return Table("Labels, skill by skill", columns, rows, notes=notes, sortable=True)


def _balance(curated: Curated) -> Table:
    rows = [
        (
            unit.skill,
            unit.subject,
            unit.grade,
            count(unit.questions),
            count(unit.left_out),
            decimal(unit.weight, 1),
            NOTHING if unit.questions == unit.left_out else decimal(unit.evened, 2),
        )
        for unit in curated.units
    ]
    notes = (
        "Weight: of all the skill's questions in that grade together. Evened: the factor that "
        "would give every skill of every grade the same weight (balance=1).",
    )
    columns = ("skill", "subject", "grade", "questions", "left out", "weight", "evened")
    return Table(
        "Balance over skills and grades", columns, rows, words=3, notes=notes, sortable=True
    )

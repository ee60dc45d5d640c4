"""The findings as a page: tables, and questions with their pictures, each beside its twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipstem.curate.findings import Finding, Found
from clipstem.curate.fingerprints import Fingerprints
from clipstem.curate.unseen import Unseen
from clipstem.question import Question
from clipstem.report import curate as report
from clipstem.report.gallery import shown_question
from clipstem.report.page import (
    NOTHING,
    Chapter,
    Command,
    Gallery,
    Mistake,
    Part,
    Report,
    Section,
    count,
    percent,
    slug,
)
from clipstem.shards import Dataset


def sheet(
    curated: report.Curated,
    questions: Fingerprints,
    found: Found,
    unseen: Unseen | None,
    dataset: Dataset,
    shown: int,
) -> Report:
    """The page; the lowest margins first among suspected labels, else the data's order."""
    sections = [
        _shown(kind, found, questions, unseen, dataset, shown)
        for kind in report.FINDINGS
        if found.counts.get(kind) and shown
    ]
    many = sum(kind != "too easy" for number in found.of for kind in found.kinds(number))
    summary = [
        f"{count(curated.questions['train'])} questions of train were looked at: {count(many)} "
        f"reasons to look at one again. {count(curated.left_out)} questions have the weight 0 in "
        "weights.parquet; nothing was deleted."
    ]
    made = [Section("The command", (Command(curated.made_by["command"]),))]
    return Report(
        "Questions to look at again",
        summary,
        [
            Chapter("Findings", (report.section(curated),)),
            *([Chapter("The questions", sections)] if sections else []),
            Chapter("How this was made", made),
        ],
    )


def _shown(
    kind: str,
    found: Found,
    questions: Fingerprints,
    unseen: Unseen | None,
    dataset: Dataset,
    most: int,
) -> Section:
    numbers = _chosen(kind, found, questions, unseen, most)
    parts: list[Mistake] = []
    for number in numbers:
        finding = next(it for it in found.of[number] if it.kind == kind)
        parts.append(_question(number, finding, questions, unseen, dataset))
        parts += [
            _question(other, None, questions, unseen, dataset) for other in finding.others[:1]
        ]
    total = found.counts[kind]
    caption = (
        f"{count(len(numbers))} of {count(total)}; review.jsonl has all. Pictures are made smaller."
        if kind != "too easy"
        else f"{count(len(numbers))} of {count(total)}; weights.parquet has all."
    )
    whole: list[Part] = [Gallery(caption, parts)]
    return Section(f"{kind.capitalize()}: {report.FINDINGS[kind]}", whole)


def _chosen(
    kind: str, found: Found, questions: Fingerprints, unseen: Unseen | None, most: int
) -> Sequence[int]:
    """Numbers of questions to show, of a group only the first."""
    numbers = found.numbers(kind)
    if kind == "label" and unseen is not None:
        place_of = _places(questions)
        chosen = []
        for number in numbers:
            place, (finding,) = place_of[number], [it for it in found.of[number] if it.kind == kind]
            own = unseen.mean_NK[place, questions.answer_N[number]]
            chosen.append((own - unseen.mean_NK[place, finding.instead], number))
        return [number for _, number in sorted(chosen)[:most]]
    seen: set[int] = set()
    firsts = []
    for number in numbers:
        others = next(it.others for it in found.of[number] if it.kind == kind)
        if number not in seen:
            firsts.append(number)
        seen |= {number, *others}
    return firsts[:most]


def _places(questions: Fingerprints) -> dict[int, int]:
    """The place of each question within `train`."""
    train = np.flatnonzero(questions.in_train_N).tolist()
    return {number: place for place, number in enumerate(train)}


def _question(
    number: int,
    finding: Finding | None,
    questions: Fingerprints,
    unseen: Unseen | None,
    dataset: Dataset,
) -> Mistake:
    split, place, question = read(number, questions, dataset)
    options = len(question.options)
    said: list[Any] = [NOTHING] * options
    if unseen is not None and split == "train" and unseen.answered_N[place]:
        said = [percent(p) for p in unseen.mean_NK[place, :options].tolist()]
    why = "the same question again" if finding is None else finding.why
    return shown_question(
        question,
        slug(f"{'twin' if finding is None else finding.kind}-{number}"),
        f"{question.subject}, {question.grade}: {question.skill} ({question.id}, {split}): {why}",
        said,
        question.answer,
        -1 if finding is None else finding.instead,
    )


def read(number: int, questions: Fingerprints, dataset: Dataset) -> tuple[str, int, Question]:
    """The split, the number within it, and the question itself."""
    split = questions.index["split"][number].as_py()
    first = 0
    for name in dataset.manifest.questions:
        if name == split:
            break
        first += dataset.size(name)
    place = number - first
    return split, place, dataset.read(split, [place])[0]

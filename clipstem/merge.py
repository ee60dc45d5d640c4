"""What the tasks of a sweep made, as one: the parts of a prediction, or a table of trainings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipstem import prediction
from clipstem.atomic import new_file
from clipstem.metrics import Summary, summarize
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.sweep import Task, differing

MUST_AGREE = (
    *("parts", "split", "data_sha256", "weights_sha256", "temperature", "problem_picture"),
    *("picture_fit", "perturbation"),
)
"""What predictions say of how they were made, where the parts of one must say the same."""


def join(files: Sequence[Path]) -> Predictions:
    """The predictions that one process would have made, of the files of all its parts.

    Raises:
        ClipstemError: if a file is no part, a part is missing or comes twice, or they are not of
            the same questions, asked the same way of the same model.
    """
    file_of_part: dict[int, Path] = {}
    found_of_part: dict[int, Predictions] = {}
    for file in files:
        found = prediction.read_with_skipped(file)
        part = found.provenance.get("part")
        if part is None:
            raise ClipstemError(f"{file}: is no part; expected predictions made with part= parts=")
        if part in file_of_part:
            raise ClipstemError(f"{file}: is part {part}, as {file_of_part[part]} is")
        file_of_part[part], found_of_part[part] = file, found
    _refuse_what_differs(file_of_part, found_of_part)
    _refuse_what_comes_twice(file_of_part, found_of_part)
    (parts,) = {found.provenance["parts"] for found in found_of_part.values()}
    if missing := sorted(set(range(1, parts + 1)) - set(file_of_part)):
        said = ", ".join(map(str, missing))
        raise ClipstemError(f"part {said} of {parts} is missing; nothing is merged")
    ordered = [found_of_part[part] for part in sorted(found_of_part)]
    whole = prediction.joined(ordered)
    _refuse_too_many_skipped(whole)
    provenance = {key: it for key, it in whole.provenance.items() if key not in ("part", "parts")}
    provenance["seconds"] = round(sum(part.provenance["seconds"] for part in ordered), 3)
    return replace(whole, provenance={**provenance, "merged_parts": parts})


def _refuse_too_many_skipped(whole: Predictions) -> None:
    """Each part was allowed its share of the whole split's broken pictures."""
    most = whole.provenance.get("max_skipped_fraction", 1.0)
    questions = len(whole) + len(whole.skipped)
    if len(whole.skipped) > most * max(questions, 100):
        raise ClipstemError(
            f"{len(whole.skipped):,} of {questions:,} questions have broken pictures, more than "
            f"trainer.max_skipped_fraction={most:g} of the parts; prepare the data again with "
            "verify=decode"
        )


def _refuse_what_differs(
    file_of_part: dict[int, Path], found_of_part: dict[int, Predictions]
) -> None:
    first, *others = found_of_part
    for part in others:
        for name in MUST_AGREE:
            a, b = (found_of_part[it].provenance.get(name) for it in (first, part))
            if a != b:
                raise ClipstemError(
                    f"{file_of_part[part]}: {name} is {b}, but in {file_of_part[first]} it is {a}; "
                    "these are not parts of the same predictions"
                )


def _refuse_what_comes_twice(
    file_of_part: dict[int, Path], found_of_part: dict[int, Predictions]
) -> None:
    known: set[str] = set()
    for part, found in found_of_part.items():
        if twice := known & set(found.columns["id"]):
            raise ClipstemError(
                f"{file_of_part[part]}: the question '{min(twice)}' is in another part too"
            )
        known |= set(found.columns["id"])


def steps_done(run: Run) -> int:
    """Optimiser steps that a run has logged; 0 before the first."""
    if not run.metrics.is_file():
        return 0
    with run.metrics.open(newline="") as file:
        return max((int(row["step"]) for row in csv.DictReader(file) if row["step"]), default=0)


def valid_summary(run: Run) -> Summary | None:
    """What a finished run scored on `valid`; None without one whose answers are known."""
    file = run.predictions("valid")
    if not file.is_file():
        return None
    found = prediction.read(file)
    if not (found.answer_Q >= 0).any():
        return None
    return summarize(found.probs_QK, found.answer_Q, found.num_options_Q, found.columns["subject"])


RESULTS = ("steps_done", "valid_micro", "valid_macro", "chance_micro", "chance_macro", "nll", "out")


def results(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """A row for each finished training: what it was given and what it scored, as fractions."""
    keys = differing(tasks)
    rows = []
    for task in tasks:
        row: dict[str, Any] = {"task": task.number, **{key: task.settings.get(key) for key in keys}}
        row |= dict.fromkeys(RESULTS) | {
            "steps_done": steps_done(Run(task.out)),
            "out": str(task.out),
        }
        if summary := valid_summary(Run(task.out)):
            row |= {"valid_micro": summary.micro, "valid_macro": summary.macro}
            row |= {"chance_micro": summary.chance_micro, "chance_macro": summary.chance_macro}
            row["nll"] = summary.nll
        rows.append(row)
    return rows


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as CSV; the same runs give the same table, so it may be written again."""
    with new_file(path, replace=True) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

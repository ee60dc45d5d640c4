"""What routing reads: the same questions, answered by the fast model, its samples and the tool.

Q questions, A answers of the fast model to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem import prediction
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.route.gate import Flags

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """The same questions in the same order, answered by all.

    Attributes:
        fast: the fast model's answers.
        samples: its other answers.
        tool: the tool's; where it has none, the fast model's stand for them. None without a tool.
        has_tool_Q: where it has one.
        sample_names: what each sample is.
        notes: what was left out, and why.
    """

    fast: Predictions
    samples: tuple[Predictions, ...]
    tool: Predictions | None
    has_tool_Q: Flags
    sample_names: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.fast)

    def at(self, places: Ints) -> Asked:
        return replace(
            self,
            fast=self.fast.at(places),
            samples=tuple(it.at(places) for it in self.samples),
            tool=None if self.tool is None else self.tool.at(places),
            has_tool_Q=self.has_tool_Q[places],
        )

    @property
    def known_Q(self) -> Flags:
        """Where the answer is known."""
        return self.fast.answer_Q >= 0

    @property
    def usable_Q(self) -> Flags:
        """Where a gate can be fitted and scored: the answer is known, and the tool has one."""
        return self.known_Q & self.has_tool_Q

    @property
    def fast_right_Q(self) -> Flags:
        return self.fast.choice_Q == self.fast.answer_Q

    @property
    def tool_right_Q(self) -> Flags:
        assert self.tool is not None
        return self.tool.choice_Q == self.fast.answer_Q

    def hard_Q(self, easy_at: float) -> Flags:
        """Questions of which the fast model gets less than this share right, samples included."""
        right_AQ = [it.choice_Q == self.fast.answer_Q for it in (self.fast, *self.samples)]
        return np.mean(right_AQ, axis=0) < easy_at - 1e-9


COMPARED = ("subject", "skill", "num_options", "answer")


def gather(fast: str, tool: str | None, samples: Sequence[str]) -> Asked:
    """Read the files and match their questions by id; those that a sample lacks are left out.

    Raises:
        ClipstemError: if a file is none, has perturbed questions where it may not, contradicts
            another, or if the fast model and its samples share no question.
    """
    first = _unperturbed(fast, "fast")
    others = [(Path(path), prediction.read(Path(path))) for path in samples]
    for path, found in others:
        _refuse_another_models(path, found, Path(fast), first)
    ids = set(first.columns["id"]).intersection(*(it.columns["id"] for _, it in others))
    if not ids:
        raise ClipstemError(
            f"{', '.join([fast, *samples])}: share no question; give answers to the same split"
        )
    places_Q = np.array([row for row, id in enumerate(first.columns["id"]) if id in ids])
    notes = []
    for name, found in ((fast, first), *((str(path), found) for path, found in others)):
        if left_out := len(found) - len(ids):
            notes.append(f"{name}: {left_out:,} questions that another file does not have")
    asked = first.at(places_Q)
    aligned = []
    for path, found in others:
        place_Q = _places(found, asked)
        prediction.refuse_other_questions(found, path, place_Q, _compared(asked), fast)
        aligned.append(found.at(place_Q))
    answered, has_tool_Q = None, np.zeros(len(asked), bool)
    if tool is not None:
        answered, has_tool_Q = _of_tool(Path(tool), _unperturbed(tool, "tool"), Path(fast), asked)
        if missing := int((~has_tool_Q).sum()):
            notes.append(f"{tool}: {missing:,} of the {len(asked):,} questions are not in it")
    unread = [it for it in (first, *(found for _, found in others)) if it.unread]
    notes += [f"columns that were not read: {', '.join(it.unread)}" for it in unread]
    names = tuple(_sample_name(found) for _, found in others)
    return Asked(asked, tuple(aligned), answered, has_tool_Q, names, tuple(notes))


def _unperturbed(path: str, key: str) -> Predictions:
    found = prediction.read(Path(path))
    if (change := found.perturbation) is not None:
        raise ClipstemError(
            f"{path}: holds answers to perturbed questions ({change['name']}), which conf key "
            f"'{key}' cannot be; expected answers to the questions as they are"
        )
    if not len(found):
        raise ClipstemError(f"{path}: has no questions")
    return found


def _refuse_another_models(path: Path, found: Predictions, fast: Path, first: Predictions) -> None:
    """Answers to perturbed questions say something of the model that gave them, and no other."""
    ours, theirs = (it.provenance.get("weights_sha256") for it in (first, found))
    if found.perturbation is not None and ours and theirs and ours != theirs:
        raise ClipstemError(
            f"{path}: is of the weights {theirs[:12]}, but {fast} of {ours[:12]}; expected "
            "the same model's answers to the perturbed questions"
        )


def _sample_name(found: Predictions) -> str:
    """What a gate remembers of a sample, to be asked for the same again."""
    if (change := found.perturbation) is not None:
        strength = change.get("strength")
        return change["name"] if strength is None else f"{change['name']} {strength:g}"
    weights = found.provenance.get("weights_sha256")
    return "other answers" if weights is None else f"weights {weights[:12]}"


def _places(found: Predictions, asked: Predictions) -> Ints:
    """The place of each of the questions in a file, −1 where it is not there."""
    place_of = {id: place for place, id in enumerate(found.columns["id"])}
    return np.array([place_of.get(id, -1) for id in asked.columns["id"]], np.int64)


def _compared(asked: Predictions) -> dict[str, Sequence[Any]]:
    return {name: asked.columns[name] for name in COMPARED}


def _of_tool(
    path: Path, found: Predictions, fast: Path, asked: Predictions
) -> tuple[Predictions, Flags]:
    """The tool's answers to the questions, and where it has any."""
    place_Q = _places(found, asked)
    has_Q = place_Q >= 0
    if not has_Q.any():
        raise ClipstemError(f"{path}: has none of the questions of {fast}; expected some of them")
    prediction.refuse_other_questions(found, path, place_Q, _compared(asked), str(fast))
    both = prediction.joined([replace(it, provenance={}) for it in (asked, found)])
    row_Q = np.where(has_Q, len(asked) + place_Q, np.arange(len(asked)))
    return replace(both.at(row_Q), provenance=found.provenance), has_Q

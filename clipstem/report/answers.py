"""What the report reads: predictions files of one or several models, over the same questions.

Q questions, K most options. Columns become arrays at once: four files of STEM's test split are held
in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipstem import prediction
from clipstem.prediction import COLUMNS
from clipstem.question import YOUNGEST, ClipstemError, natural
from clipstem.report.published import SUBJECTS
from clipstem.storage import file_sha256

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NO_NAME = "(no name)"


@dataclass(frozen=True)
class Labels:
    """A word for each question: the different words in order, and each question's number."""

    names: tuple[str, ...]
    number_Q: Ints

    @classmethod
    def of(cls, words: Sequence[str] | pa.Array, first: Sequence[str] = ()) -> Labels:
        """Words, those of `first` before others; an empty one is shown as `NO_NAME`."""
        coded = pa.array(words, pa.string()).dictionary_encode()
        found = [name or NO_NAME for name in coded.dictionary.to_pylist()]
        order = sorted(range(len(found)), key=lambda number: natural(found[number], first))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        codes = coded.indices.to_numpy(zero_copy_only=False)
        return cls(tuple(found[number] for number in order), rank[codes])

    @property
    def counts(self) -> Ints:
        return np.bincount(self.number_Q, minlength=len(self.names))

    def means(self, values_Q: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of a value over each word's questions; NaN where it has none."""
        sums = np.bincount(self.number_Q, values_Q.astype(np.float64), len(self.names))
        return np.divide(sums, self.counts, out=np.full(len(sums), np.nan), where=self.counts > 0)


@dataclass(frozen=True)
class Questions:
    """The questions that every model answered and whose answer is known."""

    id: pa.Array
    subject: Labels
    grade: Labels
    skill: Labels  # "subject/skill": two subjects may use one name
    slug_S: tuple[str, ...]  # that name alone
    kind: Labels
    num_options_Q: Ints
    words_Q: Ints
    answer_Q: Ints

    def __len__(self) -> int:
        return len(self.answer_Q)

    @property
    def chance_Q(self) -> NDArray[np.float64]:
        return 1 / self.num_options_Q


@dataclass(frozen=True)
class Variant:
    """The same model's answers to perturbed questions, where it gave any."""

    name: str
    strength: float | None
    seed: int | None
    path: Path
    sha256: str
    answered_Q: Flags
    right_Q: Flags
    credit_Q: NDArray[np.float64]  # see `credit`

    @property
    def title(self) -> str:
        words = self.name.replace("_", " ")
        return words if self.strength is None else f"{words} {self.strength:g}"


@dataclass(frozen=True)
class Model:
    """One predictions file in the order of the report's questions."""

    name: str
    path: Path
    sha256: str
    provenance: dict[str, Any]
    rows: int
    probs_QK: NDArray[np.float64]
    logits_QK: NDArray[np.float32]
    has_logits: bool  # else the logarithm of the probabilities stands for them
    truncated_Q: Ints
    answer_Q: Ints
    variants: tuple[Variant, ...] = ()

    @cached_property
    def choice_Q(self) -> Ints:
        return self.probs_QK.argmax(axis=1)

    @cached_property
    def right_Q(self) -> Flags:
        return self.choice_Q == self.answer_Q

    @cached_property
    def credit_Q(self) -> NDArray[np.float64]:
        return credit(self.probs_QK, self.answer_Q)


def credit(probs_QK: NDArray[np.float64], answer_Q: Ints) -> NDArray[np.float64]:
    """1 where the most probable option is right, and 1/n where it is one of n exactly equal ones.

    Options that look the same have the same probability: the choice among them is the lowest index,
    so that its accuracy would say how often the first option is right.
    """
    largest_QK = probs_QK == probs_QK.max(axis=1, keepdims=True)
    share_Q: NDArray[np.float64] = largest_QK[np.arange(len(answer_Q)), answer_Q] / largest_QK.sum(
        axis=1
    )
    return share_Q


@dataclass(frozen=True)
class Answers:
    """All that a report is about; `excluded` says in sentences what was left out."""

    questions: Questions
    models: tuple[Model, ...]
    excluded: tuple[str, ...]


def gather(paths: Sequence[Path], names: Sequence[str] = ()) -> Answers:
    """Read predictions files and bring them to common questions.

    Files of perturbed questions become variants of the model that they are of. `names` are for the
    others, in their order; without them the run's or model's name is taken.

    Raises:
        ClipstemError: if a file is none, has no known answer, or contradicts another; or if the
            files share no question.
    """
    read = [_File.read(path) for path in paths]
    plain = [file for file in read if file.perturbation is None]
    if not plain:
        raise ClipstemError(
            "predictions: all are of perturbed questions; give the model's plain predictions too"
        )
    ids, excluded = _shared_ids(plain)
    excluded += [line for file in plain for line in file.left_out()]
    excluded += [
        f"{file.path}: columns that were not read: {', '.join(file.unread)}."
        for file in read
        if file.unread
    ]
    first = plain[0].at(ids)
    questions = _questions(plain[0], first, ids)
    models = []
    for file, name in zip(plain, _names(plain, names), strict=True):
        place_Q = file.at(ids)
        _refuse_other_questions(file, place_Q, plain[0], first)
        models.append(_model(file, place_Q, name, questions.answer_Q))
    for file in read:
        if file.perturbation is not None:
            _add_variant(file, plain, models, questions)
    return Answers(questions, tuple(models), tuple(excluded))


@dataclass(frozen=True)
class _File:
    """A predictions file as read."""

    path: Path
    sha256: str
    columns: dict[str, pa.Array]  # lists of Python objects would take eight times the memory
    probs_QK: NDArray[np.float64]
    logits_QK: NDArray[np.float32]
    provenance: dict[str, Any]
    has_logits: bool
    unread: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> _File:
        found = prediction.read(path)
        if not (found.answer_Q >= 0).any():
            raise ClipstemError(
                f"{path}: none of its {len(found):,} questions has a known answer (STEM's test "
                "withholds them), so there is nothing to report; give predictions for valid"
            )
        columns = {name: pa.array(values, COLUMNS[name]) for name, values in found.columns.items()}
        return cls(
            path,
            file_sha256(path),
            columns,
            found.probs_QK,
            found.logits_QK,
            found.provenance,
            found.has_logits,
            found.unread,
        )

    def __len__(self) -> int:
        return len(self.probs_QK)

    @property
    def perturbation(self) -> dict[str, Any] | None:
        """How the questions differ from those that the model was trained on, if they do."""
        return prediction.perturbation(self.provenance)

    def numbers(self, name: str) -> Ints:
        return np.asarray(self.columns[name].to_numpy(zero_copy_only=False), np.int64)

    def known_ids(self) -> pa.Array:
        return self.columns["id"].filter(pc.greater_equal(self.columns["answer"], 0))

    def skills(self, known: bool) -> list[str]:
        """ "subject/skill" of the questions whose answer is known, or is not."""
        names = pc.binary_join_element_wise(self.columns["subject"], self.columns["skill"], "/")
        here_Q = pa.array((self.numbers("answer") >= 0) == known)
        found: list[str] = pc.unique(names.filter(here_Q)).to_pylist()
        return found

    def at(self, ids: pa.Array) -> Ints:
        """The place of each id in this file, −1 where it is not there."""
        places = pc.fill_null(pc.index_in(ids, self.columns["id"]), -1)
        return places.to_numpy(zero_copy_only=False).astype(np.int64)

    def left_out(self) -> list[str]:
        """What cannot be judged in this file."""
        lines = []
        if unknown := int((self.numbers("answer") < 0).sum()):
            lines.append(f"{self.path}: {unknown:,} questions without a known answer.")
        if silent := sorted(set(self.skills(known=False)) - set(self.skills(known=True))):
            lines.append(f"{self.path}: no question with a known answer in {', '.join(silent)}.")
        if skipped := self.provenance.get("without_picture"):
            lines.append(f"{self.path}: {skipped:,} questions have no picture and were not scored.")
        return lines


def _shared_ids(files: Sequence[_File]) -> tuple[pa.Array, list[str]]:
    """The ids of known answer that all files have, in the first one's order."""
    ids = files[0].known_ids()
    for file in files[1:]:
        ids = ids.filter(pc.is_in(ids, file.known_ids()))
    if not len(ids):
        raise ClipstemError(
            f"{', '.join(str(file.path) for file in files)}: share no question, so they cannot be "
            "compared; give predictions for the same data and split"
        )
    others = [(file, len(file.known_ids()) - len(ids)) for file in files]
    return ids, [
        f"{file.path}: {count:,} questions that another file does not have."
        for file, count in others
        if count
    ]


COMPARED = ("subject", "skill", "num_options", "answer")


def _refuse_other_questions(file: _File, place_Q: Ints, first: _File, first_Q: Ints) -> None:
    """The same id must mean the same question in both files."""
    for name in COMPARED:
        ours = file.columns[name].take(pa.array(place_Q))
        theirs = first.columns[name].take(pa.array(first_Q))
        different = np.flatnonzero(~pc.equal(ours, theirs).to_numpy(zero_copy_only=False))
        if len(different):
            place = int(different[0])
            raise ClipstemError(
                f"{file.path}: question '{file.columns['id'][int(place_Q[place])]}' has {name} "
                f"{ours[place]}, but {theirs[place]} in {first.path} ({len(different):,} such "
                "questions); these are predictions for different data and cannot be compared"
            )


def _questions(file: _File, place_Q: Ints, ids: pa.Array) -> Questions:
    def column(name: str) -> pa.Array:
        return file.columns[name].take(pa.array(place_Q))

    skill = Labels.of(pc.binary_join_element_wise(column("subject"), column("skill"), "/"))
    first_S = np.unique(skill.number_Q, return_index=True)[1]
    return Questions(
        id=ids,
        subject=Labels.of(column("subject"), SUBJECTS),
        grade=Labels.of(column("grade"), YOUNGEST),
        skill=skill,
        slug_S=tuple(column("skill").take(pa.array(first_S)).to_pylist()),
        kind=Labels.of(column("kind")),
        num_options_Q=file.numbers("num_options")[place_Q],
        words_Q=file.numbers("question_words")[place_Q],
        answer_Q=file.numbers("answer")[place_Q],
    )


def _model(file: _File, place_Q: Ints, name: str, answer_Q: Ints) -> Model:
    return Model(
        name=name,
        path=file.path,
        sha256=file.sha256,
        provenance=file.provenance,
        rows=len(file),
        probs_QK=file.probs_QK[place_Q],
        logits_QK=file.logits_QK[place_Q],
        has_logits=file.has_logits,
        truncated_Q=file.numbers("truncated_tokens")[place_Q],
        answer_Q=answer_Q,
    )


def _names(files: Sequence[_File], given: Sequence[str]) -> list[str]:
    """What the models are called: as given, else by run or model, else by file."""
    if given:
        if len(given) != len(files) or len(set(given)) != len(given):
            raise ClipstemError(
                f"conf key 'names': {', '.join(given)} are not {len(files)} different names, one "
                "for each file of unperturbed questions"
            )
        return list(given)
    paths = [str(file.path.with_suffix("")) for file in files]
    facts = [file.provenance for file in files]
    runs = [Path(fact["run"]).name if fact.get("run") else fact.get("model") for fact in facts]
    for names in (runs, [Path(path).name for path in paths], paths):
        if all(names) and len(set(names)) == len(names):
            return [str(name) for name in names]
    raise ClipstemError(f"predictions: {', '.join(paths)}: a file is given twice")


def _add_variant(
    file: _File, plain: Sequence[_File], models: list[Model], questions: Questions
) -> None:
    """Put answers to perturbed questions to the model that gave them.

    Raises:
        ClipstemError: if the file does not name its weights, no or several of the plain files
            are of the same, or the questions are others.
    """
    assert file.perturbation is not None

    def weights(candidate: _File) -> Any:
        return candidate.provenance.get("weights_sha256")

    if weights(file) is None:
        raise ClipstemError(
            f"{file.path}: is of perturbed questions, but does not say of which weights "
            "(weights_sha256), so that no model can be found for it; give one that does"
        )
    same = [number for number, other in enumerate(plain) if weights(other) == weights(file)]
    if len(same) != 1:
        raise ClipstemError(
            f"{file.path}: is of perturbed questions, and {len(same)} of the plain files are of "
            "the same weights (weights_sha256); give exactly one"
        )
    place_Q = file.at(questions.id)
    answered_Q = place_Q >= 0
    if not answered_Q.any():
        raise ClipstemError(
            f"{file.path}: has none of the questions of {plain[same[0]].path}; perturb the same "
            "split"
        )
    here = np.flatnonzero(answered_Q)
    first = plain[same[0]]
    _refuse_other_questions(file, place_Q[here], first, first.at(questions.id.take(here)))
    probs_QK, answer_Q = file.probs_QK[place_Q[here]], questions.answer_Q[here]
    right_Q, credit_Q = np.zeros(len(questions), bool), np.zeros(len(questions))
    right_Q[here] = probs_QK.argmax(axis=1) == answer_Q
    credit_Q[here] = credit(probs_QK, answer_Q)
    model = models[same[0]]
    variant = Variant(
        name=file.perturbation["name"],
        strength=file.perturbation.get("strength"),
        seed=file.perturbation.get("seed"),
        path=file.path,
        sha256=file.sha256,
        answered_Q=answered_Q,
        right_Q=right_Q,
        credit_Q=credit_Q,
    )
    models[same[0]] = replace(model, variants=(*model.variants, variant))

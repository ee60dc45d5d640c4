"""What each training question is learnt from: its label, teachers' probabilities, and its weight.

N questions of `train`, K most options of one. NumPy only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipstem import metrics, prediction, weights
from clipstem.config import TrainConfig
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.shards import Dataset
from clipstem.storage import file_sha256

log = logging.getLogger(__name__)

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Supervision:
    """By a question's number within `train`; a function of the data, the files and the seed alone.

    Attributes:
        labelled_N: whether its answer is known and may be used.
        weight_N: float64, what it counts among the others of a batch.
        teacher_NK: float32, the mean of the teachers' probabilities at the temperature of
            `distill`; all 0 where no teacher has answered. None where there are no teachers.
        facts: what a run says of it: files with their hashes, counts of questions.
    """

    labelled_N: Flags
    weight_N: NDArray[np.float64]
    teacher_NK: NDArray[np.float32] | None
    facts: dict[str, Any]

    @property
    def taught_N(self) -> Flags:
        """Whether a teacher has answered it."""
        if self.teacher_NK is None:
            return np.zeros_like(self.labelled_N)
        return np.asarray(self.teacher_NK.max(axis=1) > 0)

    @property
    def learns_N(self) -> Flags:
        """Whether there is anything to learn from it."""
        return (self.labelled_N | self.taught_N) & (self.weight_N > 0)


def supervision(config: TrainConfig, dataset: Dataset, usable_N: Flags) -> Supervision | None:
    """What the settings say of the questions of `train`; None if they leave them as they are.

    `usable_N` are those that the model can score.

    Raises:
        ClipstemError: if a file is not as expected, or is of other questions.
    """
    distill = config.distill
    if not distill.teachers and config.weights is None and config.labelled_fraction == 1:
        return None
    index = dataset.index("train")
    answered_N = usable_N & (index["answer"].to_numpy() >= 0)
    skills = list(zip(index["subject"].to_pylist(), index["skill"].to_pylist(), strict=True))
    labelled_N = labelled(skills, answered_N, config.labelled_fraction, config.seed)
    facts: dict[str, Any] = {"answered": int(answered_N.sum()), "labelled": int(labelled_N.sum())}
    weight_N = np.ones(len(index))
    if config.weights is not None:
        weight_N = _weights(Path(config.weights), index, dataset)
        facts["weights"] = {"file": config.weights, "sha256": file_sha256(Path(config.weights))}
    teacher_NK = None
    if distill.teachers:
        teacher_NK, facts["teachers"] = _taught(distill.teachers, distill.temperature, dataset)
        teacher_NK[~usable_N] = 0
    found = Supervision(labelled_N, weight_N, teacher_NK, facts)
    _count(found)
    return found


def _count(found: Supervision) -> None:
    """Say of how many questions what is learnt, on the terminal and in the run's facts."""
    learns_N, labelled_N, taught_N = found.learns_N, found.labelled_N, found.taught_N
    counts = {
        "label_and_teachers": int((learns_N & labelled_N & taught_N).sum()),
        "label_alone": int((learns_N & labelled_N & ~taught_N).sum()),
        "teachers_alone": int((learns_N & ~labelled_N).sum()),
        "neither": int((~learns_N).sum()),
    }
    found.facts.update(counts)
    log.info(
        "%d of %d questions are learnt from: %d by label and teachers, %d by their label alone, "
        "%d by teachers alone; %d labels may be used, of %d",
        *(int(learns_N.sum()), len(learns_N)),
        *(counts[name] for name in ("label_and_teachers", "label_alone", "teachers_alone")),
        *(found.facts["labelled"], found.facts["answered"]),
    )


def labelled(skill_N: Sequence[Any], answered_N: Flags, fraction: float, seed: int) -> Flags:
    """Which answers may be used: so large a share of each skill's answered questions, drawn.

    At least one of each skill; with the same seed a smaller share is part of a larger one.
    """
    if fraction == 1:
        return answered_N
    number_of = {skill: number for number, skill in enumerate(dict.fromkeys(skill_N))}
    number_N = np.fromiter((number_of[skill] for skill in skill_N), np.int64, len(skill_N))
    # Named, so that it is not the stream that orders the questions.
    drawn_N = np.random.default_rng([seed, *b"labels"]).permutation(len(number_N))
    candidates = np.flatnonzero(answered_N)
    candidates = candidates[np.lexsort((drawn_N[candidates], number_N[candidates]))]
    size_S = np.bincount(number_N[candidates], minlength=len(number_of))
    place = np.arange(len(candidates)) - (np.cumsum(size_S) - size_S)[number_N[candidates]]
    wanted_S = np.maximum(1, np.floor(fraction * size_S + 0.5))
    may = np.zeros_like(answered_N)
    may[candidates[place < wanted_S[number_N[candidates]]]] = True
    return may


def _weights(path: Path, index: pa.Table, dataset: Dataset) -> NDArray[np.float64]:
    known = weights.read(path)
    of = f"'train' of {dataset.location}"
    numbers = prediction.numbers_of(list(known), index["id"].to_pylist(), path, "weights", of)
    weight_N = np.ones(len(index))
    weight_N[numbers] = list(known.values())
    if not weight_N.any():
        raise ClipstemError(
            f"conf key 'weights': {path} gives each of the {len(index):,} questions of 'train' "
            "the weight 0; expected some above 0"
        )
    return weight_N


def _taught(
    paths: Sequence[str], temperature: float, dataset: Dataset
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """The mean of the teachers' probabilities, each question's over those that answered it."""
    index = dataset.index("train")
    num_options_N = index["num_options"].to_numpy()
    teacher_NK = np.zeros((len(index), num_options_N.max(initial=1)), np.float32)
    teachers_N = np.zeros(len(index), np.int64)
    facts = []
    for path in map(Path, paths):
        found = prediction.read(path)
        numbers = train_numbers(found, path, "distill.teachers", dataset)
        probs_QK = softened(found, temperature)
        teacher_NK[numbers, : probs_QK.shape[1]] += probs_QK
        teachers_N[numbers] += 1
        said = {name: found.provenance.get(name) for name in ("run", "model", "weights_sha256")}
        facts.append(
            {"file": str(path), "sha256": file_sha256(path), "questions": len(found), **said}
        )
    teacher_NK /= np.maximum(teachers_N, 1)[:, None]
    return teacher_NK, facts


def softened(found: Predictions, temperature: float) -> NDArray[np.float64]:
    """A teacher's probabilities at a temperature, [Q, K]; at 1 they are those of its file.

    The temperature divides the logits as the file's own one has calibrated them, so that teachers
    whose logits are of different sizes can be averaged. Where they are not known the logarithm of
    the probabilities is the same, but for what has underflowed.
    """
    logits_QK = np.log(np.maximum(found.probs_QK, np.finfo(np.float64).tiny))
    own = found.provenance.get("temperature")
    if found.has_logits and own is not None and metrics.COLDEST <= own <= metrics.HOTTEST:
        is_known_Q1 = np.isfinite(found.logits_QK).all(axis=1, keepdims=True)
        logits_QK = np.where(is_known_Q1, found.logits_QK.astype(np.float64) / own, logits_QK)
    return metrics.probabilities(logits_QK, found.num_options_Q, temperature)


def train_numbers(found: Predictions, path: Path, key: str, dataset: Dataset) -> NDArray[np.int64]:
    """The number within `train` of each question of a predictions file.

    Raises:
        ClipstemError: naming the conf key `key`, if the file is of other questions.
    """
    index, of = dataset.index("train"), f"'train' of {dataset.location}"
    sha256 = dataset.manifest.data_sha256
    prediction.refuse_other_split(found, path, key, "train", dataset.location, sha256)
    numbers = prediction.numbers_of(found.columns["id"], index["id"].to_pylist(), path, key, of)
    known = {name: index[name].to_numpy()[numbers] for name in ("num_options", "answer")}
    prediction.refuse_other_questions(found, path, np.arange(len(found)), known, of)
    return numbers

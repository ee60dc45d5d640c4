"""Predictions of runs for questions that they have not seen, and the folds that make such runs.

A question that a run has learnt from says little about its label: the run remembers it. So of every
predictions file only the questions are taken that its run's file of weights left out, after both
are checked. N questions of `train`, K most options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipstem import facts, prediction, weights
from clipstem.curate.fingerprints import Ints
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.run import ASSEMBLED, MAX_BYTES, Run
from clipstem.shards import Dataset
from clipstem.storage import file_sha256
from clipstem.supervision import train_numbers

HOW = (
    "train runs with weights=<a file of python -m clipstem.curate folds=…> and predict split=train "
    "with each, or say unseen=true for models that have seen none of the questions"
)


@dataclass(frozen=True)
class Unseen:
    """What models say of questions that they have not seen.

    Attributes:
        mean_NK: the mean of the probabilities over the models that answered the question.
        spread_N: the standard deviation of the answer's probability over them.
        right_N: share of them whose choice is the answer.
        answered_N: how many they are; where it is 0 the rest means nothing.
        files: of each predictions file its path, sha256 and how many of its questions were taken.
    """

    mean_NK: NDArray[np.float64]
    spread_N: NDArray[np.float64]
    right_N: NDArray[np.float64]
    answered_N: Ints
    files: tuple[tuple[str, str, int], ...]


def deal(group_N: Ints, skill_N: NDArray[np.object_], folds: int, seed: int) -> Ints:
    """A fold for each question, int64 [N]: groups stay together, skills are spread evenly.

    The groups of a skill are dealt one after the other, in random order; a group that is in
    several skills counts to the first by name.
    """
    order = np.lexsort((np.random.default_rng(seed).permutation(len(group_N)), skill_N.astype(str)))
    fold_of: dict[int, int] = {}
    for number in order.tolist():
        fold_of.setdefault(int(group_N[number]), len(fold_of) % folds)
    return np.array([fold_of[int(group)] for group in group_N], np.int64)


def write_folds(folder: Path, ids: Sequence[str], fold_N: Ints, folds: int) -> list[Path]:
    """Write a file of weights for each fold, in which its questions have the weight 0.

    Raises:
        ClipstemError: if a fold has no question, or has all of them.
    """
    counts = np.bincount(fold_N, minlength=folds)
    if (counts == 0).any():
        raise ClipstemError(
            f"conf key 'folds': {folds} folds of the {len(ids):,} questions of 'train' that are "
            f"not the same leave one empty; give {max(2, int((counts > 0).sum()))} or fewer"
        )
    paths = []
    for fold in range(folds):
        paths.append(folder / f"fold-{fold + 1}.parquet")
        weight_N = (fold_N != fold).astype(np.float64)
        weights.write(paths[-1], pa.table({"id": pa.array(ids, pa.string()), "weight": weight_N}))
    return paths


def gather(paths: Sequence[str], dataset: Dataset, unseen: bool) -> Unseen:
    """Read predictions for `train` and keep what each run said of questions it has not seen.

    With `unseen` every prediction is kept.

    Raises:
        ClipstemError: if a file is not of this data's `train`, or its run has seen the questions or
            cannot be shown not to have.
    """
    index = dataset.index("train")
    answer_N, num_options_N = index["answer"].to_numpy(), index["num_options"].to_numpy()
    count = len(index)
    sum_NK = np.zeros((count, int(num_options_N.max(initial=1))))
    answered_N = np.zeros(count, np.int64)
    own_N, square_N, right_N = np.zeros(count), np.zeros(count), np.zeros(count)
    files = []
    for path in map(Path, paths):
        found = prediction.read(path)
        places = train_numbers(found, path, "predictions", dataset)
        rows = np.arange(len(found))
        if not unseen:
            left_out = _left_out(found, path, dataset)
            rows = np.flatnonzero([id in left_out for id in found.columns["id"]])
            if not len(rows):
                raise ClipstemError(f"{path}: its run has seen every question of it; {HOW}")
        places = places[rows]
        probs_QK = found.probs_QK[rows]
        sum_NK[places, : probs_QK.shape[1]] += probs_QK
        own_Q = probs_QK[np.arange(len(rows)), np.maximum(answer_N[places], 0)]
        own_N[places] += own_Q
        square_N[places] += own_Q**2
        right_N[places] += probs_QK.argmax(axis=1) == answer_N[places]
        answered_N[places] += 1
        files.append((str(path), file_sha256(path), len(rows)))
    times_N = np.maximum(answered_N, 1)
    variance_N = np.maximum(square_N / times_N - (own_N / times_N) ** 2, 0)
    return Unseen(
        mean_NK=sum_NK / times_N[:, None],
        spread_N=np.sqrt(variance_N),
        right_N=right_N / times_N,
        answered_N=answered_N,
        files=tuple(files),
    )


@dataclass(frozen=True)
class _File:
    file: str
    sha256: str


@dataclass(frozen=True)
class _Supervision:
    weights: _File | None
    teachers: tuple[Any, ...] | None


@dataclass(frozen=True)
class _RunFacts:
    """What is believed of a `run.json`, after the weights' hash says that it is the file's run."""

    weights_sha256: str
    data_sha256: str
    start: tuple[str, ...] | None  # files and folders of this machine; older runs do not say
    supervision: dict[str, Any] | None


def _left_out(found: Predictions, path: Path, dataset: Dataset) -> set[str]:
    """Ids of the questions that the run of a predictions file did not see.

    Raises:
        ClipstemError: if that cannot be shown.
    """
    if not (run := found.provenance.get("run")):
        raise ClipstemError(f"{path}: does not say of which run it is; {HOW}")
    try:
        made = Run(Path(run)).facts_as(_RunFacts, start=None, supervision=None)
        values = {"weights": None, "teachers": None, **(made.supervision or {})}
        supervision = facts.of_type(_Supervision, values, f"{run}: supervision")
    except ClipstemError as error:
        raise ClipstemError(
            f"{path}: what its run has seen is not known: {error} (a relative path counts from the "
            f"folder that curation is started in); {HOW}"
        ) from None
    if made.weights_sha256 != found.provenance.get("weights_sha256"):
        raise ClipstemError(
            f"{path}: is not of the weights that {run} has now; predict split=train again"
        )
    if made.data_sha256 != dataset.manifest.data_sha256:
        raise ClipstemError(
            f"{path}: {run} was trained on other data, so that what it has seen of "
            f"{dataset.location} is not known; {HOW}"
        )
    _refuse_tuned_start(made.start, path, str(run))
    if supervision.teachers:
        raise ClipstemError(f"{path}: {run} has teachers, which may have seen the questions; {HOW}")
    if (given := supervision.weights) is None:
        raise ClipstemError(f"{path}: {run} has seen every question of 'train'; {HOW}")
    if not Path(given.file).is_file() or file_sha256(Path(given.file)) != given.sha256:
        raise ClipstemError(
            f"{path}: {run} was trained with the weights {given.file}, which are not there any "
            "more or are others now, so that what it has seen is not known; put the file back"
        )
    return {id for id, weight in weights.read(Path(given.file)).items() if weight == 0}


def _refuse_tuned_start(starts: tuple[str, ...] | None, path: Path, run: str) -> None:
    """Weights that were trained know what they were trained on, wherever they were copied to."""
    if starts is None:
        raise ClipstemError(
            f"{path}: {run} does not say with which weights it began, because an older clipstem "
            f"made it, so that what it has seen is not known; {HOW}"
        )
    for start in map(Path, starts):
        if not start.exists():
            raise ClipstemError(
                f"{path}: {run} began with the weights {start}, which is not there any more, so "
                f"that what it has seen is not known; put it back, or {HOW}"
            )
        if not _is_assembled(start):
            raise ClipstemError(
                f"{path}: {run} began with the weights {start}, which may have seen the questions; "
                "runs may begin with none, with those of a tag or of the Hub, or with what this "
                f"clipstem's assemble wrote; {HOW}"
            )


def _is_assembled(start: Path) -> bool:
    """Whether a file or folder of weights is, byte for byte, what `assemble` wrote."""
    folder = start if start.is_dir() else start.parent
    try:
        made = facts.of_type(_File, facts.load(folder / ASSEMBLED, MAX_BYTES))
        return file_sha256(folder / made.file if start.is_dir() else start) == made.sha256
    except (ClipstemError, OSError):
        return False

"""Teachers' files and files of weights for short trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from training import an_epoch

from clipstem import metrics, prediction, weights
from clipstem.batches import usable
from clipstem.config import DistillConfig, TrainConfig
from clipstem.prediction import Predictions
from clipstem.shards import Dataset
from clipstem.supervision import Supervision, supervision


@dataclass(frozen=True)
class Teacher:
    """A predictions file and what it says of each question: {id: logits}."""

    path: Path
    logits_of: dict[str, list[float]]
    temperature: float

    def probabilities(self, id: str, temperature: float) -> list[float]:
        """By hand."""
        values = [math.exp(it / (self.temperature * temperature)) for it in self.logits_of[id]]
        return [value / sum(values) for value in values]


def teacher(
    path: Path, dataset: Dataset, rows: Sequence[int], seed: int, is_ours: bool = True, **said: Any
) -> Teacher:
    """Random answers to some of the training questions, as our file or as anybody's."""
    index = dataset.index("train").take(list(rows))
    num_options_Q = index["num_options"].to_numpy()
    shape = len(index), int(num_options_Q.max())
    logits_QK = (4 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    temperature = 0.7 if is_ours else 1.0
    probs_QK = metrics.probabilities(logits_QK, num_options_Q, temperature)
    columns = {
        name: index[name].to_pylist() for name in prediction.COLUMNS if name in index.schema.names
    }
    columns["truncated_tokens"] = [0] * len(index)
    found = Predictions(
        columns,
        probs_QK,
        logits_QK,
        {
            "temperature": temperature,
            "split": "train",
            "data_sha256": dataset.manifest.data_sha256,
            "perturbation": None,
            "model": "teacher",
            **said,
        },
    )
    found.write(path)
    if not is_ours:
        table = pq.read_table(path).select(list(prediction.REQUIRED))
        unknown = pa.array([-1] * len(table))
        table = table.set_column(table.column_names.index("answer"), "answer", unknown)
        pq.write_table(table.replace_schema_metadata(None), path)
    rows_of = dict(zip(columns["id"], zip(logits_QK, num_options_Q, strict=True), strict=True))
    logits_of = {id: row[:count].tolist() for id, (row, count) in rows_of.items()}
    return Teacher(path, logits_of, temperature)


def write_weights(path: Path, weight_of: dict[str, float]) -> str:
    weights.write(path, pa.table({"id": list(weight_of), "weight": list(weight_of.values())}))
    return str(path)


def found_for(config: TrainConfig, dataset: Dataset) -> Supervision:
    found = supervision(config, dataset, usable(dataset, "train", answered=False))
    assert found is not None
    return found


@dataclass(frozen=True)
class Case:
    config: TrainConfig
    teachers: tuple[Teacher, ...]
    weight_of: dict[str, float]


def case_of(drawn_data: Path, dataset: Dataset, folder: Path) -> Case:
    """Two teachers who share some questions, others have none; half of the labels; weights."""
    size = dataset.size("train")
    rng = np.random.default_rng(5)
    teachers = (
        teacher(folder / "a.parquet", dataset, np.flatnonzero(rng.random(size) < 0.5).tolist(), 1),
        teacher(
            folder / "b.parquet",
            dataset,
            np.flatnonzero(rng.random(size) < 0.4).tolist(),
            2,
            is_ours=False,
        ),
    )
    ids = dataset.index("train")["id"].to_pylist()
    weight_of = {id: float(rng.choice([0.0, 0.3, 2.5, 1e-3])) for id in ids[::3]}
    distill = DistillConfig([str(it.path) for it in teachers], temperature=2.5, weight=0.3)
    config = an_epoch(
        drawn_data,
        folder / "run",
        distill=distill,
        labelled_fraction=0.5,
        weights=write_weights(folder / "w.parquet", weight_of),
        batch_size=12,
    )
    return Case(config, teachers, weight_of)

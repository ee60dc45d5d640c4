"""What the tests of curation share: sets of a few questions, and what came of curating them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from preparing import prepared, write_jsonl

from clipstem.config import CurateConfig
from clipstem.curate import fingerprints
from clipstem.curate.__main__ import curate
from clipstem.curate.fingerprints import Fingerprints
from clipstem.prediction import Predictions
from clipstem.report.curate import Curated
from clipstem.shards import Dataset
from clipstem.workers import Workers


def read(dataset: Dataset) -> Fingerprints:
    return fingerprints.read(dataset, Workers(1), lambda done: None)


def data(folder: Path, rows: list[dict[str, Any]], pictures: dict[str, bytes] = {}) -> Dataset:  # noqa: B006
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return prepared(folder, write_jsonl(folder, rows), tune_fraction=0)


EMPTY = np.zeros(0, np.int64)
NOTHING = Fingerprints(
    index=pa.table({"id": pa.array([], pa.string())}),
    text_N=EMPTY,
    picture_N=EMPTY,
    start_N=np.zeros(1, np.int64),
    option_O=EMPTY,
    length_O=EMPTY,
    number_O=EMPTY.astype(np.float64),
    named_O=EMPTY.astype(np.bool_),
    small_PHWC=np.zeros((0, fingerprints.SIDE, fingerprints.SIDE, 3), np.uint8),
    size_P2=np.zeros((0, 2), np.int64),
    bytes_P=EMPTY,
    broken=(),
)


def ids_of(dataset: Dataset) -> list[str]:
    found: list[str] = dataset.index("train")["id"].to_pylist()
    return found


def predicted(
    dataset: Dataset, path: Path, sure: float = 0.9, wrong: int = 0, **facts: Any
) -> Predictions:
    """Predictions for `train` that choose the answer, but another option for the first `wrong`."""
    index = dataset.index("train")
    answer_Q = index["answer"].to_numpy().copy()
    answer_Q[:wrong] = (answer_Q[:wrong] + 1) % 3
    probs_QK = np.where(np.arange(3) == answer_Q[:, None], sure, (1 - sure) / 2)
    columns = {
        name: index[name].to_pylist()
        for name in ("id", "row", "subject", "grade", "skill", "kind", "num_options", "answer")
    }
    columns |= {"question_words": index["question_words"].to_pylist()}
    columns |= {"truncated_tokens": [0] * len(index)}
    provenance = {
        "data": dataset.location,
        "data_sha256": dataset.manifest.data_sha256,
        "split": "train",
        **facts,
    }
    made = Predictions(columns, probs_QK, np.log(probs_QK).astype(np.float32), provenance)
    made.write(path)
    return made


def with_folds(dataset: Dataset, folder: Path, folds: int = 3) -> list[Path]:
    made = curate(
        CurateConfig(data=dataset.location, out=str(folder / "folds"), folds=folds, workers=1)
    )
    assert isinstance(made, list)
    return made


def curated(dataset: Dataset, out: Path, **changes: Any) -> Curated:
    values = {"data": dataset.location, "out": str(out), "workers": 1, **changes}
    made = curate(CurateConfig(**values))
    assert isinstance(made, Curated)
    return made


def table_of(out: Path) -> dict[str, dict[str, Any]]:
    return {it["id"]: it for it in pq.read_table(out / "weights.parquet").to_pylist()}

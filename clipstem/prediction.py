"""Predictions: answered questions with the probability of each option. After the model,
everything reads and writes these files and never a network.

Q questions, K most options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipstem.atomic import new_file
from clipstem.question import ClipstemError

METADATA_KEY = b"clipstem"
COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "row": pa.int64(),  # the question's place in its source
    "subject": pa.string(),
    "grade": pa.string(),
    "skill": pa.string(),
    "kind": pa.string(),
    "num_options": pa.int64(),
    "question_words": pa.int64(),
    "truncated_tokens": pa.int64(),  # the most that an option's text lost
    "answer": pa.int64(),  # 0-based, or -1 unknown
    "choice": pa.int64(),  # the most probable option, the lowest index among equals
    "probs": pa.list_(pa.float64()),  # after the temperature
    "logits": pa.list_(pa.float32()),  # before the temperature
}
"""The schema of a predictions file."""


@dataclass(frozen=True)
class Predictions:
    """A predictions file in memory.

    Attributes:
        columns: every column of `COLUMNS` but choice, probs and logits.
        probs_QK: float64, 0 where the question has fewer options than K.
        logits_QK: float32, the dtype's minimum there.
        provenance: what made them: model, run, hashes, temperature, split, timing …
    """

    columns: dict[str, Sequence[Any]]
    probs_QK: NDArray[np.float64]
    logits_QK: NDArray[np.float32]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.probs_QK)

    @property
    def choice_Q(self) -> NDArray[np.int64]:
        return self.probs_QK.argmax(axis=1)

    @property
    def answer_Q(self) -> NDArray[np.int64]:
        return np.asarray(self.columns["answer"], np.int64)

    @property
    def num_options_Q(self) -> NDArray[np.int64]:
        return np.asarray(self.columns["num_options"], np.int64)

    def write(self, path: Path, replace: bool = False) -> None:
        """Write a predictions file.

        Raises:
            ClipstemError: if `path` exists, unless it is to be replaced.
        """
        arrays = {
            **self.columns,
            "choice": self.choice_Q,
            "probs": _ragged(self.probs_QK, self.num_options_Q),
            "logits": _ragged(self.logits_QK, self.num_options_Q),
        }
        schema = pa.schema(list(COLUMNS.items()), {METADATA_KEY: json.dumps(self.provenance)})
        table = pa.table(
            [pa.array(arrays[name], type_) for name, type_ in COLUMNS.items()], schema=schema
        )
        with new_file(path, replace) as partial:
            pq.write_table(table, partial, compression="zstd")

    def write_choices(self, path: Path, source_rows: int) -> int:
        """Write the leaderboard's `preds.txt`: one 0-based choice a line for every source row.

        Rows that have no prediction are answered 0; returns how many they are. Source: the
        submission rule of stemdataset/STEM (row order, no header, no trailing newline).
        """
        row_Q = np.asarray(self.columns["row"], np.int64)
        if len(np.unique(row_Q)) < len(row_Q) or not ((row_Q >= 0) & (row_Q < source_rows)).all():
            raise ClipstemError(
                f"the predictions' rows are not {len(row_Q):,} different ones below "
                f"{source_rows:,}, so there is no line for each source row"
            )
        choice_of_row = np.zeros(source_rows, np.int64)
        choice_of_row[row_Q] = self.choice_Q
        with new_file(path) as partial:
            partial.write_text("\n".join(map(str, choice_of_row)))
        return source_rows - len(self)


def read(path: Path) -> Predictions:
    """Read a predictions file.

    Raises:
        ClipstemError: if it is missing, is no parquet file, or a column is missing or wrong.
    """
    if not path.is_file():
        raise ClipstemError(f"{path}: there is no such predictions file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ClipstemError(f"{path}: is not a predictions file: {error}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ClipstemError(
            f"{path}: is not a predictions file: it lacks the columns {', '.join(missing)}"
        )
    typed = {name: _typed(table[name], name, path) for name in COLUMNS}
    columns = {
        name: column.to_pylist()
        for name, column in typed.items()
        if name not in ("probs", "logits")
    }
    num_options_Q = np.asarray(columns["num_options"], np.int64)
    del columns["choice"]
    return Predictions(
        columns=columns,
        probs_QK=_padded(typed["probs"], num_options_Q, path, 0.0, np.float64),
        logits_QK=_padded(
            typed["logits"], num_options_Q, path, float(np.finfo(np.float32).min), np.float32
        ),
        provenance=json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}")),
    )


def _typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """The column in the type that `COLUMNS` gives it, without gaps."""
    try:
        typed = column.cast(COLUMNS[name])
    except pa.ArrowException:
        typed = None
    if typed is None or typed.null_count:
        found = f"{column.type} with {column.null_count} nulls"
        raise ClipstemError(f"{path}: column '{name}' is {found}; expected {COLUMNS[name]}")
    return typed


def _options_QK(num_options_Q: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a question has an option."""
    return np.arange(num_options_Q.max(initial=1)) < num_options_Q[:, None]


def _ragged(values_QK: NDArray[Any], num_options_Q: NDArray[np.int64]) -> pa.ListArray:
    mask_QK = _options_QK(num_options_Q)
    offsets = np.concatenate([[0], np.cumsum(num_options_Q)])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(values_QK[:, : mask_QK.shape[1]][mask_QK])
    )


def _padded(
    column: pa.ChunkedArray,
    num_options_Q: NDArray[np.int64],
    path: Path,
    empty: float,
    dtype: type[np.floating],
) -> NDArray[Any]:
    lengths = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != num_options_Q)).size:
        first = int(wrong[0])
        raise ClipstemError(
            f"{path}: row {first} has {lengths[first]} values for {num_options_Q[first]} options"
        )
    mask_QK = _options_QK(num_options_Q)
    values_QK = np.full(mask_QK.shape, empty, dtype)
    values_QK[mask_QK] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values_QK

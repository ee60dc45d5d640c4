"""What each training question counts in the loss: a parquet file of ids and weights.

`curate` writes such files and `train weights=<file>` reads them. A file may have other columns, for
people who review it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipstem import parquet
from clipstem.atomic import new_file
from clipstem.question import ClipstemError

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),  # of a question of `train`, each once
    "weight": pa.float64(),  # finite; 0 leaves the question out, a question without a row has 1
}
"""What a weights file must have; its other columns are not read."""


def write(path: Path, table: pa.Table) -> None:
    """Write a table that has the columns of `COLUMNS`, and any others.

    Raises:
        ClipstemError: if `read` would refuse it, or `path` exists.
    """
    _checked(table, path)
    with new_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read(path: Path) -> dict[str, float]:
    """The weight of each question of the file, by its id.

    Raises:
        ClipstemError: if it is missing, is no parquet file, a column is missing or of another type,
            an id comes twice, or a weight is below 0 or not finite.
    """
    if not path.is_file():
        raise ClipstemError(f"{path}: there is no such file of weights")
    try:
        table, _ = parquet.read(path, path.stat().st_size, COLUMNS)
    except ClipstemError as error:
        raise ClipstemError(f"{path}: is not a file of weights: {error}") from None
    return _checked(table, path)


def _checked(table: pa.Table, path: Path) -> dict[str, float]:
    """The weights by id.

    Raises:
        ClipstemError: naming the column, or the first row, that is wrong.
    """
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ClipstemError(
            f"{path}: is not a file of weights: it lacks the columns {', '.join(missing)}; "
            "expected id and weight"
        )
    ids = _typed(table["id"], "id", path).to_pylist()
    weight_N = _typed(table["weight"], "weight", path).to_numpy()
    wrong_N = ~((weight_N >= 0) & (weight_N < np.inf))  # so that a NaN is wrong too
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise ClipstemError(
            f"{path}: row {row}: question '{ids[row]}' has the weight {weight_N[row]:g}; expected "
            "a finite number, 0 or more"
        )
    weights = dict(zip(ids, weight_N.tolist(), strict=True))
    if len(weights) < len(ids):
        ((twice, count),) = Counter(ids).most_common(1)
        raise ClipstemError(
            f"{path}: the id '{twice}' stands in {count} rows; expected one row a question"
        )
    return weights


def _typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """The column in the type that `COLUMNS` gives it, without gaps; a text is no number."""
    expected = COLUMNS[name]
    try:
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        typed = column.cast(expected) if is_text == (expected == pa.string()) else None
    except pa.ArrowException:
        typed = None
    if typed is None or typed.null_count:
        found = f"{column.type} with {column.null_count} nulls"
        raise ClipstemError(f"{path}: column '{name}' is {found}; expected {expected}")
    return typed

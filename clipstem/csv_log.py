"""`metrics.csv`: what a run logs, as a table that any tool reads."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from clipstem.atomic import new_file


class CsvLog(Logger):
    """`metrics.csv`: a row for each logging, appended.

    A resumed run keeps the rows up to its checkpoint's step. `others` are columns besides the usual
    ones.
    """

    COLUMNS = (
        *("step", "listwise", "contrast", "accuracy", "scale", "lr"),
        *("tune_macro", "tune_micro", "tune_nll"),
    )

    def __init__(self, path: Path, steps_done: int, others: Sequence[str] = ()) -> None:
        super().__init__()
        self.path = path
        self.columns = (*self.COLUMNS, *others)
        if path.exists() and path.stat().st_size:
            # A row that a killed process began has no end: it is none.
            header, *rows = path.read_text().rpartition("\n")[0].splitlines()
            kept = [row for row in rows if int(row.split(",")[0]) <= steps_done]
            with new_file(path, replace=True) as partial:
                partial.write_text("\n".join([header, *kept]) + "\n")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        is_new = not (self.path.exists() and self.path.stat().st_size)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow({**metrics, "step": step})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Nothing: `config.yaml` has them."""

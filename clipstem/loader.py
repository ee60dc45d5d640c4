"""Batches as tensors, read, decoded and packed in worker processes ahead of need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from clipstem.batches import AHEAD, Batches
from clipstem.images import warm_up
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError


@dataclass(frozen=True)
class _From(Sampler[int]):
    """0 … length − 1, of which the ones before `start` are passed over without being read."""

    start: int
    length: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.length))

    def __len__(self) -> int:
        return self.length


class _Loader(DataLoader[PairBatch]):
    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except ClipstemError as error:
            # From a worker, torch gives the message a traceback in front: back to one line.
            raise ClipstemError(str(error).rpartition("ClipstemError: ")[2].strip()) from None


def load(
    batches: Batches, workers: int, start: int = 0, pin: bool = False
) -> DataLoader[PairBatch]:
    """The batches in order, from number `start` on, made by `workers` processes."""
    if workers:
        warm_up()
    return _Loader(
        batches,  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        sampler=_From(start, len(batches)),
        num_workers=workers,
        collate_fn=_tensors,
        pin_memory=pin,
        prefetch_factor=AHEAD if workers else None,
    )


def _tensors(batch: Any) -> Any:
    return batch.map(torch.from_numpy)

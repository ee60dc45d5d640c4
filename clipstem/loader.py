"""Batches as tensors, read, decoded and packed ahead of need."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler

from clipstem.batches import AHEAD, Batches, read_ahead
from clipstem.images import warm_up
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.stopping import SIGNALS

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of GNU's mallopt, malloc.h


@dataclass(frozen=True)
class _These(Sampler[int]):
    """Given numbers of batches; whoever counts them also counts the ones passed over before."""

    numbers: Sequence[int]
    passed: int

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return self.passed + len(self.numbers)


@dataclass(frozen=True)
class _ByThreads:
    batches: Batches
    numbers: Sequence[int]
    passed: int
    threads: int

    def __iter__(self) -> Iterator[PairBatch]:
        return map(_tensors, read_ahead(self.batches, self.numbers, self.threads))

    def __len__(self) -> int:
        return self.passed + len(self.numbers)


class _ByProcesses(DataLoader[PairBatch]):
    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        # Workers inherit that the signals wait: torch's own handler would end one that is new.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            given = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from given
        except ClipstemError as error:
            # From a worker, torch gives the message a traceback in front: back to one line.
            raise ClipstemError(str(error).rpartition("ClipstemError: ")[2].strip()) from None


class Loaded(Protocol):
    """Batches in their order, any number of times."""

    def __iter__(self) -> Iterator[PairBatch]: ...
    def __len__(self) -> int: ...


def load(
    batches: Batches,
    workers: int,
    device: torch.device,
    numbers: Sequence[int] | None = None,
    passed: int = 0,
) -> Loaded:
    """The batches of these numbers, or all, made in order by `workers` ahead of need.

    Those that are `passed` over, because an earlier process has had them, are never read.

    For a GPU the workers are processes, and what they make lies where it is copied from soonest. On
    a CPU they are threads: they share its cores with the model in any case, and a process that has
    forked has to copy each page that it writes to, of weights and moments gigabytes.
    """
    numbers = range(len(batches)) if numbers is None else numbers
    if device.type != "cuda":
        return _ByThreads(batches, numbers, passed, workers)
    if workers:
        warm_up()
    return _ByProcesses(
        batches,  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        sampler=_These(numbers, passed),
        num_workers=workers,
        collate_fn=_tensors,
        pin_memory=True,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_outlive_signals,
    )


def keep_memory() -> None:
    """Let this process keep what it frees, for what it takes next.

    A step on a CPU frees and takes gigabytes; by default each large tensor is given back to the
    system, which has to make its pages anew and empty: a fifth of ViT-B/32's step.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library than GNU's
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, -1)


def _outlive_signals(worker: int) -> None:
    """A cluster sends them to every process, but a step that is to be finished needs its data: so
    only the process that has started a worker ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def _tensors(batch: Any) -> Any:
    return batch.map(torch.from_numpy)

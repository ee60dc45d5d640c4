"""The same function over many tasks, on several cores, with results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from clipstem.question import ClipstemError

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """The cores this process may run on, which a container or SLURM may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """`count` processes (None: one for each usable core); 1 is this process alone.

    The processes start with the first `map` that has two tasks, and end with the `with` block: at
    once when it is left by an exception, Ctrl-C included.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count or usable_cores()
        self._pool: ProcessPoolExecutor | None = None
        self._strangers = set(multiprocessing.active_children())

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """`function(task)` of each task, in order; `function` and tasks must be picklable.

        Raises:
            ClipstemError: when a worker process was killed from outside.
        """
        if self.count == 1 or (self._pool is None and len(tasks) < 2):
            yield from map(function, tasks)
            return
        try:
            yield from self._started(len(tasks)).map(function, tasks)
        except BrokenProcessPool:
            raise ClipstemError(
                f"one of {self.count} worker processes was killed, most likely for lack of memory: "
                f"try again with fewer, workers={max(1, self.count // 2)}; or it could not start, "
                "because the script that calls this does it outside of `if __name__ == "
                '"__main__":`, which every worker reads again'
            ) from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            for child in set(multiprocessing.active_children()) - self._strangers:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _started(self, tasks: int) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawn, not fork: pyarrow and torch have threads, which a fork would leave half alive.
            self._pool = ProcessPoolExecutor(
                min(self.count, tasks), multiprocessing.get_context("spawn"), _start_worker
            )
        return self._pool


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # An idle worker would wait for ever on its queue if its parent was killed with -9.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

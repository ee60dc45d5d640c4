"""A cluster asks before it takes a machine away: then a run stops in good order, to go on later."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPED = os.EX_TEMPFAIL
"""The exit status of a run that stopped because it was asked to: go on with resume=true."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SLURM sends the first before it pre-empts or ends a job; `--signal=USR1@<seconds>` the second."""


class StopRequest:
    """Listens to the signals, as a context; puts the handlers that were there back at its end.

    Attributes:
        signal: the name of the signal that came; None before.
        is_awaited: a signal is only noted, because somebody looks at `signal` after each step.
            Otherwise it ends the process at once, with the status `STOPPED`.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.is_awaited = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows no other to listen
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.listen()
        return self

    def __exit__(self, *args: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (back), from whoever has them."""
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if not self.is_awaited:
            raise SystemExit(STOPPED)

from __future__ import annotations

import os
import signal
import threading

import pytest

from clipstem.stopping import SIGNALS, STOPPED, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_nobody_waits_for_ends_the_process(number: signal.Signals) -> None:
    with StopRequest() as stop, pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == STOPPED == 75
    assert stop.signal == number.name


def test_a_signal_that_is_awaited_is_noted_even_if_it_comes_twice() -> None:
    with StopRequest() as stop:
        stop.is_awaited = True
        assert stop.signal is None
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal == "SIGUSR1"


def test_handlers_are_put_back_and_may_be_taken_again() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.listen()
        stop.is_awaited = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen() -> None:
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]

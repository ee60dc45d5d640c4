"""The verb serve, a real process: it ends well, and says what it cannot use."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cluster import wait_for
from serving import LOCAL, ONE, server

from clipstem.question import ClipstemError
from clipstem.serve.__main__ import listen


def test_a_server_that_is_told_to_end_answers_what_it_has_accepted(tiny_bundle: Path) -> None:
    # A request that never comes whole, for whose company the other waits.
    begun = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    begun += b"Content-Length: 100\r\n\r\n{"
    with server(tiny_bundle, "max_wait_ms=20000") as (process, address):
        port = int(address.rpartition(":")[2])
        with ThreadPoolExecutor(1) as thread, socket.create_connection((LOCAL, port)) as other:
            other.sendall(begun)
            answer = thread.submit(httpx.post, f"{address}/v1/score", json=ONE, timeout=30)

            def it_waits() -> bool:
                metrics = httpx.get(f"{address}/metrics", timeout=30).text
                return "clipstem_waiting_questions 1.0" in metrics

            wait_for(it_waits, "a question that waits", seconds=60)
            process.send_signal(signal.SIGTERM)
            other.close()
            assert answer.result().status_code == 200
        process.wait(30)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/ready")


def test_what_the_server_cannot_use_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipstem.serve", f"bundle={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"clipstem serve: {tmp_path}: there is no bundle here")
    assert len(done.stderr.splitlines()) == 1


def test_an_answer_does_not_wait_for_the_clients_acknowledgement() -> None:
    with listen(LOCAL, 0) as listening:
        with socket.create_connection(listening.getsockname()[:2]):
            accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken_is_said() -> None:
    with listen(LOCAL, 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ClipstemError, match=rf"^{LOCAL}:{port} cannot be listened to \("):
            listen(LOCAL, port)

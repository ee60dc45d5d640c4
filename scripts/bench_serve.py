"""How many questions the server answers, with batching and without, and among hostile requests.

    python scripts/bench_serve.py bundles/first
    python scripts/bench_serve.py bundles/first --clients 64 --seconds 60

Drawn questions, each asked by a client that waits for its answer before it asks again. In turns: a
server that scores together what arrives together, and one that scores each question alone; then the
first again, with one request in ten hostile. Every answer must be the one to its question. What
comes out is `benchmarks/serve-<model>.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import BENCHMARKS, machine

from clipstem import run
from clipstem.bank import SKILLS, draw
from clipstem.question import Picture, Question

LONE_REQUESTS = 200
TURNS = 2
HOSTILE = (
    b'{"question": "?", "picture": "AAAA", "options": ["a"]}',
    b'{"question": ',
    b'{"question": "?", "options": ' + json.dumps(["a"] * 100_000).encode() + b"}",
    b'{"question": "a\\u0000", "picture": "AAAA", "options": ["a"]}',
    b"[" * 10_000,
)
Body = tuple[bytes, bytes]  # before the question's id, and behind it


@dataclass
class Heard:
    """What the clients were told."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0  # answers to another question, or none
    refused: int = 0  # hostile requests that got a 4xx


def body_of(question: Question) -> Body:
    def text(picture: Picture) -> str:
        return base64.b64encode(picture.data).decode()

    asked: dict[str, Any] = {
        "question": question.problem,
        "options": [
            it if isinstance(it, str) else {"picture": text(it)} for it in question.options
        ],
    }
    if question.picture is not None:
        asked["picture"] = text(question.picture)
    return b'{"id": "', b'", ' + json.dumps(asked).encode()[1:]


@contextlib.contextmanager
def server(bundle: Path, *overrides: str) -> Iterator[tuple[psutil.Process, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clipstem.serve", f"bundle={bundle}", f"port={port}"]
    process = psutil.Popen([*command, *overrides], stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").read()
                break
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)}: exit {process.returncode}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, bytes]:
    """One request on an open connection: its status and what was answered."""
    head = (
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    )
    writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = next(int(it[15:]) for it in lines if it.lower().startswith(b"content-length:"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


async def client(
    port: int, name: int, bodies: list[Body], until: float, hostile: bool, heard: Heard
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while time.perf_counter() < until:
        number += 1
        if hostile and number % 10 == 0:
            status, _ = await ask(reader, writer, HOSTILE[number // 10 % len(HOSTILE)])
            heard.refused += 400 <= status < 500
            heard.wrong += not 400 <= status < 500
            continue
        identity = f"{name}-{number}".encode()
        before, behind = bodies[(name + number) % len(bodies)]
        started = time.perf_counter()
        status, answer = await ask(reader, writer, before + identity + behind)
        heard.seconds.append(time.perf_counter() - started)
        heard.wrong += status != 200 or json.loads(answer)["answers"][0]["id"] != identity.decode()
    writer.close()


async def all_clients(
    port: int, bodies: list[Body], clients: int, seconds: float, hostile: bool
) -> Heard:
    heard, until = Heard(), time.perf_counter() + seconds
    await asyncio.gather(
        *(client(port, name, bodies, until, hostile, heard) for name in range(clients))
    )
    return heard


async def alone(port: int, bodies: list[Body]) -> float:
    """The median milliseconds of a client that nobody is beside."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for number in range(LONE_REQUESTS):
        before, behind = bodies[number % len(bodies)]
        started = time.perf_counter()
        await ask(reader, writer, before + b"lone" + behind)
        seconds.append(time.perf_counter() - started)
    writer.close()
    return round(1000 * float(np.median(seconds)), 2)


def measured(
    bundle: Path, bodies: list[Body], clients: int, seconds: float, hostile: bool, *overrides: str
) -> dict[str, Any]:
    with server(bundle, *overrides) as (process, port):
        lone_ms = asyncio.run(alone(port, bodies))
        heard = asyncio.run(all_clients(port, bodies, clients, seconds, hostile))
        memory_mib = round(process.memory_info().rss / 2**20)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
            is_ready = json.load(answer)["ready"]
    p50_ms, p99_ms = 1000 * np.quantile(heard.seconds, [0.5, 0.99])
    return {
        "questions_per_second": round(len(heard.seconds) / seconds, 1),
        "answered": len(heard.seconds),
        "wrong": heard.wrong,
        "refused": heard.refused,
        "p50_ms": round(float(p50_ms), 1),
        "p99_ms": round(float(p99_ms), 1),
        "lone_ms": lone_ms,
        "memory_mib": memory_mib,
        "ready_afterwards": is_ready,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each turn")
    given = parser.parse_args()
    bodies = [body_of(draw(skill, 0, index)) for skill in SKILLS.values() for index in range(4)]
    ways = {"together": (), "alone": ("max_batch=1", "max_wait_ms=0")}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in (*ways, "hostile")}
    for _ in range(TURNS):
        for name, overrides in ways.items():
            turns[name].append(
                measured(given.bundle, bodies, given.clients, given.seconds, False, *overrides)
            )
            print(name, json.dumps(turns[name][-1]), file=sys.stderr)
    turns["hostile"].append(measured(given.bundle, bodies, given.clients, given.seconds, True))
    rates = {
        name: float(np.median([it["questions_per_second"] for it in found]))
        for name, found in turns.items()
    }
    facts = json.loads((given.bundle / "bundle.json").read_text())
    figures = {
        **run.environment(),
        "command": " ".join(["python scripts/bench_serve.py", *sys.argv[1:]]),
        "machine": machine(),
        "model": facts["provenance"]["model"],
        "parameters": facts["parameters"],
        "clients": given.clients,
        "turns": turns,
        "batching": round(rates["together"] / rates["alone"], 2),
    }
    name = Path(str(figures["model"]).removeprefix("local-dir:")).name.lower()
    (BENCHMARKS / f"serve-{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["turns"], indent=1), f"batching: × {figures['batching']}")


if __name__ == "__main__":
    main()

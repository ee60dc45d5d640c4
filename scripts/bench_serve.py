"""How many questions the server answers, with batching and without, and among hostile requests.

    python scripts/bench_serve.py bundles/first
    python scripts/bench_serve.py bundles/first --clients 64 --seconds 60
    python scripts/bench_serve.py bundles/first --one-picture

Drawn questions, or those of them with text options, which have one picture each, asked by clients
that wait for an answer before they ask again; no picture comes twice, texts do, as in an exam. In
turns: a server that scores together what arrives together, and one that scores each question alone;
then the first again, one request in ten hostile. Every answer must have the probabilities that the
Python API gives. What comes out is `benchmarks/serve-<model>.json`, or `…-one-picture.json`.
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
from measure import facts, publish

from clipstem.bank import SKILLS, draw
from clipstem.config import TrainerConfig, Variant
from clipstem.onnx_scorer import OnnxScorer
from clipstem.question import Kind, Picture, Question

LONE_REQUESTS = 200
TURNS = 2
HOSTILE = (
    b'{"question": "?", "picture": "AAAA", "options": ["a"]}',
    b'{"question": ',
    b'{"question": "?", "options": ' + json.dumps(["a"] * 100_000).encode() + b"}",
    b'{"question": "a\\u0000", "picture": "AAAA", "options": ["a"]}',
    b"[" * 10_000,
)
UNIQUE_BYTES = 9  # behind a picture's end, where nothing reads them: the picture is another one
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Body:
    """A request in pieces: between them come an id, and in every picture some unique bytes."""

    pieces: tuple[bytes, ...]
    expected_K: np.ndarray

    def of(self, identity: str) -> bytes:
        unique = base64.b64encode(identity.encode().rjust(UNIQUE_BYTES, b"."))
        return self.pieces[0] + identity.encode() + self.pieces[1] + unique.join(self.pieces[2:])


@dataclass
class Heard:
    """What the clients were told."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0  # another question's answer, or none
    refused: int = 0  # hostile requests that got a 4xx


def body_of(question: Question, engine: OnnxScorer) -> Body:
    def text(picture: Picture) -> str:
        data = picture.data + bytes(-len(picture.data) % 3)  # so that base64 can be added to
        return base64.b64encode(data).decode() + "UNIQUE"

    asked: dict[str, Any] = {
        "question": question.problem,
        "options": [
            it if isinstance(it, str) else {"picture": text(it)} for it in question.options
        ],
    }
    if question.picture is not None:
        asked["picture"] = text(question.picture)
    pieces = json.dumps(asked).encode()[1:].split(b"UNIQUE")
    (expected_K,) = engine.score_questions([question])
    return Body((b'{"id": "', b'", ', *pieces), expected_K)


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
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
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
        identity = f"{name}-{number}"
        body = bodies[(name + number) % len(bodies)]
        started = time.perf_counter()
        status, answer = await ask(reader, writer, body.of(identity))
        if status != 200:
            heard.wrong += 1
            continue
        heard.seconds.append(time.perf_counter() - started)
        (found,) = json.loads(answer)["answers"]
        is_right = np.allclose(found["probabilities"], body.expected_K, rtol=0, atol=TOLERANCE)
        heard.wrong += found["id"] != identity or not is_right
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
        body = bodies[number % len(bodies)].of(f"x{number}")
        started = time.perf_counter()
        await ask(reader, writer, body)
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
    parser.add_argument("--one-picture", action="store_true", help="questions with text options")
    given = parser.parse_args()
    made_by = facts()
    engine = OnnxScorer(given.bundle, TrainerConfig("cpu"), Variant.fp32)
    drawn = [draw(skill, 0, index) for skill in SKILLS.values() for index in range(4)]
    questions = [it for it in drawn if it.kind is Kind.TEXT_OPTIONS or not given.one_picture]
    bodies = [body_of(question, engine) for question in questions]
    del engine  # its threads would wait beside the server's
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
    bundle = json.loads((given.bundle / "bundle.json").read_text())
    figures = {
        **made_by,
        "command": " ".join(["python scripts/bench_serve.py", *sys.argv[1:]]),
        "model": bundle["provenance"]["model"],
        "parameters": bundle["parameters"],
        "one_picture": given.one_picture,
        "clients": given.clients,
        "turns": turns,
        "batching": round(rates["together"] / rates["alone"], 2),
    }
    name = Path(str(figures["model"]).removeprefix("local-dir:")).name.lower()
    publish(f"serve-{name}{'-one-picture' if given.one_picture else ''}", figures)
    print(json.dumps(figures["turns"], indent=1), f"batching: × {figures['batching']}")


if __name__ == "__main__":
    main()

"""What the tests of the server share: a question, the app in this process, and a real server."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from samples import encoded

from clipstem.config import ServeConfig
from clipstem.onnx_scorer import OnnxScorer
from clipstem.serve.app import make_app
from clipstem.serve.sittings import Drawn

LOCAL = "127.0.0.1"
PNG = encoded(Image.effect_noise((60, 40), 90))
OTHER = encoded(Image.radial_gradient("L"))
SETTINGS = {
    "max_pixels": 1_000_000,
    "max_body_bytes": 300_000,
    "max_questions": 8,
    "max_text_characters": 500,
}
JSON = {"content-type": "application/json"}


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ONE = {"question": "Which shape?", "picture": text_of(PNG), "options": ["circle", "square"]}


def app_of(engine: OnnxScorer, **settings: Any) -> FastAPI:
    given: dict[str, Any] = {**SETTINGS, **settings}
    return make_app(engine, ServeConfig(bundle="", **given), Drawn())


def probabilities(client: TestClient, body: Any) -> list[list[float]]:
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return [it["probabilities"] for it in answer.json()["answers"]]


@contextlib.contextmanager
def server(bundle: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m clipstem.serve` on a free port, and its address."""
    command = [sys.executable, "-m", "clipstem.serve", f"bundle={bundle}", "port=0", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            said = process.stdout.readline().decode()  # "the exam: http://127.0.0.1:1234/"
            address = said.removeprefix("the exam: ").split("/#")[0].strip().rstrip("/")
            while process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{address}/ready", timeout=30).status_code == 200:
                        break
                time.sleep(0.1)
            yield process, address
        finally:
            process.kill()

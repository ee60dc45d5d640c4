"""Batches: who comes together is scored together, and nobody is harmed by others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from samples import encoded
from serving import ONE, app_of, probabilities

from clipstem.onnx_scorer import OnnxScorer
from clipstem.question import Picture, Question
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import ApiError, Asked, decoded


def noise(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    return Picture.of(encoded(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))))


def some_asked(engine: OnnxScorer, seed: int) -> Asked:
    question = Question(f"q{seed}", "", "", "", "Which?", noise(seed), ("a", "b", "c"))
    return decoded(question, engine.spec)


def test_questions_that_arrive_together_are_scored_together(engine: OnnxScorer) -> None:
    sizes: list[int] = []

    async def all_at_once() -> list[np.ndarray]:
        batcher = Batcher(engine, 8, 0.05, 100, lambda questions, _: sizes.append(questions))
        running = asyncio.create_task(batcher.run())
        asked = [some_asked(engine, seed) for seed in range(20)]
        found = await asyncio.gather(*(batcher.score([it]) for it in asked))
        running.cancel()
        return [probs for (probs,) in found]

    found = asyncio.run(all_at_once())
    assert sizes == [8, 8, 4]
    for seed, probs in enumerate(found):
        expected = engine.score(noise(seed).data, "Which?", ["a", "b", "c"])
        np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_a_bad_question_harms_nobody_else_in_its_batch(engine: OnnxScorer) -> None:
    async def together() -> list[Any]:
        batcher = Batcher(engine, 8, 0.05, 100)
        running = asyncio.create_task(batcher.run())
        asked = [some_asked(engine, seed) for seed in range(3)]
        asked[1] = Asked(asked[1].question, {})  # its pixels are lost
        found = await asyncio.gather(*(batcher.score([it]) for it in asked), return_exceptions=True)
        running.cancel()
        return found

    good, bad, other = asyncio.run(together())
    assert isinstance(bad, ApiError) and bad.status_code == 500
    assert len(good[0]) == len(other[0]) == 3


def test_a_full_queue_says_when_to_ask_again(engine: OnnxScorer) -> None:
    async def too_many() -> tuple[ApiError, int]:
        batcher = Batcher(engine, 8, 0.0, max_queue=3)  # nothing runs: all wait
        waiting = asyncio.create_task(batcher.score([some_asked(engine, 0)] * 3))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as error:
            await batcher.score([some_asked(engine, 1)])
        probe = asyncio.create_task(batcher.probe(some_asked(engine, 2)))
        await asyncio.sleep(0)
        left = batcher.waiting
        for task in (waiting, probe):
            task.cancel()
        return error.value, left

    error, waiting = asyncio.run(too_many())
    assert error.status_code == 429 and error.headers == {"Retry-After": "1"}
    assert error.detail == "3 questions are waiting, at most 3 may; ask again"
    assert waiting == 3  # a probe is let in and does not count


def test_nobody_waits_longer_than_allowed(
    engine: OnnxScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(engine, timeout_seconds=1.0)
    with TestClient(app, "http://localhost") as client:
        assert client.post("/v1/score", json=ONE).status_code == 200
        score, is_over = engine.score_questions, threading.Event()

        def slow(*args: Any) -> Any:
            is_over.wait(60)
            return score(*args)

        monkeypatch.setattr(engine, "score_questions", slow)
        answer = client.post("/v1/score", json=ONE)
        is_over.set()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"] == "it took more than 1 seconds; ask again"


def test_who_is_alone_waits_for_nobody(engine: OnnxScorer) -> None:
    app = app_of(engine, max_wait_ms=3_600_000.0)
    with TestClient(app, "http://localhost") as client:
        assert len(probabilities(client, ONE)) == 1

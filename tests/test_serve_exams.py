"""Exams that people sit: scored by the rule, and no answer is told before its time."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import JSON, app_of

from clipstem.onnx_scorer import OnnxScorer
from clipstem.question import Picture, Question
from clipstem.serve.exams import data_url
from clipstem.serve.sittings import Drawn


def unit_of(skill: str = "weather") -> dict[str, str]:
    unit = next(it for it in Drawn().units if it.skill == skill)
    return {"subject": unit.subject, "grade": unit.grade, "skill": unit.skill}


def test_an_exam_is_scored_by_the_rule_and_tells_no_answer_before(
    client: TestClient, engine: OnnxScorer
) -> None:
    offered = client.get("/v1/exam").json()
    assert (offered["rule"], offered["length"], len(offered["units"])) == ("regular", 100, 69)
    begun = client.post("/v1/exam", json={**unit_of(), "seed": 5})
    assert begun.status_code == 201
    here = f"/v1/exam/{begun.json()['id']}"
    assert begun.json()["seed"] is None
    score = 0
    for number in range(24):
        asked = client.get(f"{here}/question")
        assert asked.json().keys() == {"number", "question", "picture", "options"}
        question = _drawn("weather", 5, number)
        said = client.post(
            f"{here}/answer", json={"choice": question.answer, "number": number}
        ).json()
        assert said["answer"] == said["choice"] == question.answer
        shown_K = [it.data if isinstance(it, Picture) else it for it in question.options]
        first = None if question.picture is None else question.picture.data
        np.testing.assert_allclose(
            said["probabilities"], engine.score(first, question.problem, shown_K), atol=1e-6
        )
        assert said["score"] > score
        score = said["score"]
    assert (score, said["done"]) == (100, True)  # a perfect run takes 24 questions
    run = client.get(here).json()
    assert run["done"] and run["seed"] == 5 and len(run["steps"]) == 24
    assert run["steps"][3]["id"] == _drawn("weather", 5, 3).id
    assert client.get(f"{here}/question").status_code == 409
    late = client.post(f"{here}/answer", json={"choice": 0, "number": 24})
    assert (late.status_code, late.json()["error"][:36]) == (
        409,
        "this question is not the next one, o",
    )


def _drawn(skill: str, seed: int, number: int) -> Question:
    drawn = Drawn()
    return drawn.question(next(it for it in drawn.units if it.skill == skill), number, seed)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"choice": 9, "number": 0}, 422, "choice: is 9; there are "),
        ({"choice": -1, "number": 0}, 422, "choice: Input should be greater than or equal to 0"),
        ({"choice": 0, "number": 1}, 409, "this question is not the next one, or the exam is over"),
        ({"choice": "a", "number": 0}, 422, "choice: Input should be a valid integer"),
        ({"choice": 0}, 422, "number: Field required"),
    ],
)
def test_an_answer_that_is_none_is_not_taken(
    client: TestClient, body: dict[str, Any], status: int, message: str
) -> None:
    here = f"/v1/exam/{client.post('/v1/exam', json=unit_of()).json()['id']}"
    answer = client.post(f"{here}/answer", json=body)
    assert answer.status_code == status and answer.json()["error"].startswith(message)
    assert client.get(here).json()["steps"] == []


def test_answers_that_come_together_are_not_all_taken(engine: OnnxScorer) -> None:
    app = app_of(engine)

    async def together() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            here = f"/v1/exam/{(await client.post('/v1/exam', json=unit_of())).json()['id']}"
            answers = await asyncio.gather(
                *(
                    client.post(f"{here}/answer", json={"choice": 0, "number": number})
                    for number in (0, 0, 1, 2, 3)
                )
            )
            assert len((await client.get(here)).json()["steps"]) == 1
            return [answer.status_code for answer in answers]

    assert sorted(asyncio.run(together())) == [200, 409, 409, 409, 409]


def test_a_tiff_is_sent_as_what_browsers_show() -> None:
    image = Image.effect_noise((20, 10), 50).convert("RGB")
    for name in ("TIFF", "PNG", "BMP"):
        buffer = io.BytesIO()
        image.save(buffer, name)
        head, _, body = data_url(Picture.of(buffer.getvalue())).partition(",")
        assert head == ("data:image/bmp;base64" if name == "BMP" else "data:image/png;base64")
        sent = Image.open(io.BytesIO(base64.b64decode(body)))
        assert sent.tobytes() == image.tobytes()


def test_a_request_about_an_exam_is_small(client: TestClient) -> None:
    answer = client.post("/v1/exam", content=b" " * 5000, headers=JSON)
    assert answer.json() == {"error": "the request has more than 4,096 bytes"}


def test_an_exam_that_is_not_there_is_said(client: TestClient) -> None:
    assert client.get("/v1/exam/none").json()["error"].startswith("there is no such exam")
    answer = client.post("/v1/exam", json={**unit_of(), "skill": "juggling"})
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "there is no such skill; GET /v1/exam lists them",
    )

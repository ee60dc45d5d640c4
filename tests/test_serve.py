"""The server: right answers, one clear line for whatever is wrong, and nobody harmed by others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from samples import encoded

from clipstem import shards
from clipstem.config import ServeConfig, TrainerConfig, Variant
from clipstem.onnx_scorer import OnnxScorer
from clipstem.question import ClipstemError, Picture, Question
from clipstem.serve.__main__ import listen
from clipstem.serve.app import decoded, make_app
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import ApiError, Asked
from clipstem.serve.sittings import MOST_SITTINGS, Drawn, Prepared, Sittings

LOCAL = "127.0.0.1"
PNG = encoded(Image.effect_noise((60, 40), 90))
OTHER = encoded(Image.radial_gradient("L"))
SETTINGS = {
    "max_pixels": 1_000_000,
    "max_body_bytes": 300_000,
    "max_questions": 8,
    "max_text_characters": 500,
}


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ONE = {"question": "Which shape?", "picture": text_of(PNG), "options": ["circle", "square"]}


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> OnnxScorer:
    return OnnxScorer(tiny_bundle, TrainerConfig("cpu", workers=0), Variant.fp32)


def app_of(engine: OnnxScorer, **settings: Any) -> FastAPI:
    given: dict[str, Any] = {**SETTINGS, **settings}
    return make_app(engine, ServeConfig(bundle="", **given), Drawn())


@pytest.fixture(scope="module")
def client(engine: OnnxScorer) -> Iterator[TestClient]:
    with TestClient(app_of(engine), "http://localhost") as client:
        yield client


def probabilities(client: TestClient, body: Any) -> list[list[float]]:
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return [it["probabilities"] for it in answer.json()["answers"]]


# ---------------------------------------------------------------------------- scoring


def test_a_question_gets_the_python_apis_probabilities(
    client: TestClient, engine: OnnxScorer
) -> None:
    expected = engine.score(PNG, "Which shape?", ["circle", "square"])
    answer = client.post("/v1/score", json={"id": "q7", **ONE}).json()["answers"]
    np.testing.assert_allclose(answer[0]["probabilities"], expected, atol=1e-6)
    assert (answer[0]["id"], answer[0]["choice"]) == ("q7", int(expected.argmax()))


def test_many_questions_of_all_kinds_come_back_in_order(
    client: TestClient, engine: OnnxScorer
) -> None:
    pictures = [{"picture": text_of(PNG)}, {"picture": text_of(OTHER)}]
    asked = [
        ONE,
        {"question": "Which is noise?", "options": pictures},
        {"question": "Which is like this?", "picture": text_of(OTHER), "options": pictures},
        {**ONE, "options": ["one", "two", "three"]},
    ]
    found = probabilities(client, {"questions": asked})
    expected = [
        engine.score(PNG, "Which shape?", ["circle", "square"]),
        engine.score(None, "Which is noise?", [PNG, OTHER]),
        engine.score(OTHER, "Which is like this?", [PNG, OTHER]),
        engine.score(PNG, "Which shape?", ["one", "two", "three"]),
    ]
    for probs, expected_K in zip(found, expected, strict=True):
        np.testing.assert_allclose(probs, expected_K, atol=1e-6)


def test_a_form_is_the_same_as_json(client: TestClient) -> None:
    form = {"question": "Which shape?", "option": ["circle", "square"]}
    answer = client.post("/v1/score", data=form, files={"picture": ("../a.png", PNG)})
    np.testing.assert_allclose(
        answer.json()["answers"][0]["probabilities"], probabilities(client, ONE)[0], atol=1e-6
    )
    files = [("option_picture", ("a.png", it)) for it in (PNG, OTHER)]
    answer = client.post("/v1/score", data={"question": "Which?"}, files=files)
    assert len(answer.json()["answers"][0]["probabilities"]) == 2


# ---------------------------------------------------------------------------- hostile requests


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def shown(data: bytes) -> dict[str, Any]:
    return {**ONE, "picture": text_of(data)}


HOSTILE: dict[str, tuple[Any, int, str]] = {
    "a bomb": (shown(bomb(30_000, 30_000)), 422, r"picture: has 900,000,000 pixels; at most 1,0"),
    "a wide bomb": (shown(bomb(2_000_000, 1)), 422, r"picture: has 2,000,000 pixels"),
    "a thread that grows": (
        shown(encoded(Image.new("RGBA", (20, 25_000)))), 422, r"too narrow: its shorter side scaled"
    ),
    "no pixels": (shown(bomb(0, 0)), 422, r"picture: "),
    "a truncated picture": (shown(PNG[:-200]), 422, r"picture: is truncated"),
    "half a header": (shown(PNG[:20]), 422, r"picture: "),
    "a picture of garbage": (shown(PNG[:60] + b"x" * 300), 422, r"picture: "),
    "SVG": (shown(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, r"picture: is not a picture"),
    "HTML": (shown(b"<!doctype html><script>alert(1)</script>"), 422, r"is not a picture \(starts"),
    "a pickle": (shown(b"\x80\x04\x95cposix\nsystem\n"), 422, r"is not a picture"),
    "PDF": (shown(b"%PDF-1.7\n"), 422, r"is not a picture"),
    "PostScript": (shown(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422, r"is not a p"),
    "a zip": (shown(b"PK\x03\x04" + bytes(40)), 422, r"is not a picture"),
    "a path for a picture": ({**ONE, "picture": "/etc/passwd"}, 422, r"picture: is not"),
    "a URL for a picture": ({**ONE, "picture": "http://localhost/a.png"}, 422, r"is not base64"),
    "a data URL": ({**ONE, "picture": "data:image/png;base64,AAAA"}, 422, r"picture: is not base6"),
    "wrong base64": ({**ONE, "picture": "%%%"}, 422, r"picture: is not base64"),
    "wrong padding": ({**ONE, "picture": "AAAAA"}, 422, r"picture: is not base64"),
    "base64 that is not ASCII": ({**ONE, "picture": "ÄÖÜ="}, 422, r"picture: is not base64"),
    "an empty picture": ({**ONE, "picture": ""}, 422, r"picture: String should have at least 1"),
    "a number for a picture": ({**ONE, "picture": 7}, 422, r"picture: Input should be a valid str"),
    "a list for a picture": ({**ONE, "picture": ["a"]}, 422, r"picture: Input should be a valid"),
    "nothing": ({}, 422, r"question: Field required"),
    "a list": ([ONE], 422, r"the body is no object; exp"),
    "a text": ("question", 422, r"the body is no object"),
    "no question": ({"picture": ONE["picture"], "options": ["a"]}, 422, r"question: Field require"),
    "an empty question": ({**ONE, "question": ""}, 422, r"question: String should have at least"),
    "a blank question": ({**ONE, "question": " \n "}, 422, r"problem: is empty; expected the ques"),
    "a number for a question": ({**ONE, "question": 1}, 422, r"question: Input should be a valid"),
    "no options": ({**ONE, "options": []}, 422, r"options: List should have at least 1 item"),
    "options that are a text": ({**ONE, "options": "ab"}, 422, r"options: Input should be a valid"),
    "an empty option": ({**ONE, "options": ["a", ""]}, 422, r"options\[1\]: is empty; expected a"),
    "an option of null": ({**ONE, "options": ["a", None]}, 422, r"options\[1\]: Input should be"),
    "numbers for options": ({**ONE, "options": [1, 2]}, 422, r"options\[0\]: Input should be a va"),
    "nested options": ({**ONE, "options": [["a"]]}, 422, r"options\[0\]: Input should be"),
    "mixed options": (
        {**ONE, "options": ["a", {"picture": text_of(PNG)}]}, 422, r"options: 1 texts are mixed wit"
    ),
    "an option called questions": (
        {**ONE, "options": ["questions", ""]}, 422, r"options\[1\]: is empty"
    ),
    "too many options": ({**ONE, "options": ["a"] * 17}, 413, r"options: there are 17; at most 16"),
    "50,000 options": ({**ONE, "options": ["a"] * 50_000}, 413, r"options: there are 50,000; at m"),
    "too many questions": ({"questions": [ONE] * 9}, 413, r"questions: there are 9; at most 8"),
    "no questions": ({"questions": []}, 422, r"questions: List should have at least 1 item"),
    "a huge question": ({**ONE, "question": "a" * 501}, 413, r"question: has 501 characters; at m"),
    "a huge option": ({**ONE, "options": ["a", "b" * 501]}, 413, r"options\[1\]: has 501 characte"),
    "a huge id": ({**ONE, "id": "i" * 201}, 422, r"id: String should have at most 200 characters"),
    "a NUL": ({**ONE, "question": "a\0b"}, 422, r"question: character 1 is U\+0000, no text"),
    "an escape code": ({**ONE, "options": ["\x1b[31m", "b"]}, 422, r"options\[0\]: character 0 is"),
    "a field that is no field": ({**ONE, "answer": 1}, 422, r"answer: Extra inputs are not permit"),
    "a question without a picture": (
        {"question": "?", "options": ["a"]}, 422, r"picture: is missing; CLIP scores pictures"
    ),
    "a bad one among good ones": (
        {"questions": [ONE, shown(b"GIF89a"), ONE]}, 422, r"questions\[1\]\.picture: "
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_one_clear_line(client: TestClient, name: str) -> None:
    body, status, message = HOSTILE[name]
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == status
    assert re.match(message, answer.json()["error"]) or re.search(message, answer.json()["error"])
    assert answer.json().keys() == {"error"} and len(answer.json()["error"]) < 300
    assert client.get("/ready").json()["ready"] is True


JSON = {"content-type": "application/json"}
RAW: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "broken JSON": (b'{"question": ', JSON, 422, r"the body is no JSON: EOF"),
    "null": (b"null", JSON, 422, r"the body is no object"),
    "no body": (b"", JSON, 422, r"the body is no JSON"),
    "not UTF-8": (b'{"question": "\xff"}', JSON, 422, r"the body is no JSON"),
    "half a surrogate pair": (
        b'{"question": "\\ud800", "picture": "AA==", "options": ["a"]}', JSON, 422, r"JSON|question"
    ),
    "deep nesting": (b"[" * 100_000, JSON, 422, r"recursion limit"),
    "a list of a hundred thousand": (
        b'{"question": "?", "options": [' + b"1," * 100_000 + b"1]}", JSON, 413, r"100,001"
    ),
    "as many fields": (
        b"{" + b",".join(b'"k%d": 1' % it for it in range(9000)) + b"}", JSON, 413, r"9,000 fields"
    ),
    "a form in another alphabet": (
        b"a", {"content-type": "multipart/form-data; boundary=x; charset=punycode"}, 415, r"utf-8"
    ),
    "too many bytes": (b" " * 300_001, JSON, 413, r"the request has more than 300,000 bytes"),
    "another content type": (b"a=1", {"content-type": "text/plain"}, 415, r"type is 'text/plain';"),
    "no content type": (b"a=1", {}, 415, r"the content type is ''; expected application/json or m"),
    "a form without a boundary": (b"a", {"content-type": "multipart/form-data"}, 400, r"boundary"),
    "a form of garbage": (
        b"garbage", {"content-type": "multipart/form-data; boundary=x"}, 4, r"."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_get_one_clear_line(client: TestClient, name: str) -> None:
    body, headers, status, message = RAW[name]
    answer = client.post("/v1/score", content=body, headers=headers)
    assert str(answer.status_code).startswith(str(status))
    assert re.search(message, answer.json()["error"])
    assert client.get("/ready").json()["ready"] is True


def test_a_body_without_a_length_is_cut_off(client: TestClient) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 10_000

    answer = client.post("/v1/score", content=stream(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"] == "the request has more than 300,000 bytes"


@pytest.mark.parametrize(
    ("form", "files", "message"),
    [
        ({}, {"picture": PNG}, "question: is missing"),
        ({"question": "?"}, {"picture": PNG}, "option: is missing; expected a text or an"),
        ({"question": "?", "option": "a", "x": "1"}, {"picture": PNG}, "x: is no field; expected"),
        ({"question": "?", "option": "a", "picture": "a.png"}, {}, "picture: is a text; expected"),
        ({"question": "?", "option": "a"}, {"picture": b""}, "picture: is empty; expected an enco"),
        ({"question": "?", "option": ["a"] * 30}, {"picture": PNG}, "Too many fields"),
        ({"question": "?", "option": "a"}, {"picture": b"<svg/>"}, "picture: is not a picture"),
        ({"question": "?", "option": "a", "id": "i" * 201}, {"picture": PNG}, "id: expected a"),
        ({"question": "?"}, {"picture": PNG, "option": PNG}, "option: is a file; expected a text"),
        ({"question": "?" * 9000, "option": "a"}, {"picture": PNG}, "Part exceeded maximum size"),
    ],
)  # fmt: skip
def test_a_form_that_is_wrong_gets_one_clear_line(
    client: TestClient, form: dict[str, Any], files: dict[str, bytes], message: str
) -> None:
    given = files or {"other": b"x"}
    answer = client.post("/v1/score", data=form, files=given if files else {"option_picture": PNG})
    assert 400 <= answer.status_code < 500
    assert message in answer.json()["error"]


def test_strange_pictures_that_are_pictures_are_scored(client: TestClient) -> None:
    for image in (Image.new("L", (1, 1)), Image.new("CMYK", (9, 3)), Image.new("RGBA", (3, 200))):
        data = encoded(image, "JPEG" if image.mode == "CMYK" else "PNG")
        (found,) = probabilities(client, shown(data))
        assert sum(found) == pytest.approx(1)


# ---------------------------------------------------------------------------- batches


def noise(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    return Picture.of(encoded(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))))


def some_asked(engine: OnnxScorer, seed: int) -> Asked:
    question = Question(f"q{seed}", "", "", "", "Which?", noise(seed), ("a", "b", "c"))
    return decoded(question, engine)


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
    app = app_of(engine, timeout_seconds=0.2)
    with TestClient(app, "http://localhost") as client:
        assert client.post("/v1/score", json=ONE).status_code == 200
        score = engine.score_questions

        def slow(*args: Any) -> Any:
            time.sleep(1.0)
            return score(*args)

        monkeypatch.setattr(engine, "score_questions", slow)
        answer = client.post("/v1/score", json=ONE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"] == "it took more than 0.2 seconds; ask again"


# ---------------------------------------------------------------------------- for who runs it


def test_ready_answers_a_real_question(engine: OnnxScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(app_of(engine), "http://localhost") as client:
        said = client.get("/ready").json()
        assert said["ready"] is True and said["weights_sha256"] == engine.bundle.weights_sha256
        runs: list[int] = []
        scored = engine.pictures

        def counted(*given: Any) -> Any:
            runs.append(1)
            return scored(*given)

        monkeypatch.setattr(engine, "pictures", counted)
        assert client.get("/ready").json()["ready"] is True
        assert client.get("/ready").json()["ready"] is True
        assert len(runs) == 2  # nothing remembered answers for the model
        monkeypatch.setattr(
            engine, "score_questions", lambda questions, *_: [np.eye(4)[0]] * len(questions)
        )
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["error"] == "a question that is known got another answer"


def test_metrics_count_requests_and_batches(engine: OnnxScorer) -> None:
    with TestClient(app_of(engine), "http://localhost") as client:
        client.post("/v1/score", json=ONE)
        client.post("/v1/score", json={})
        client.get("/nowhere/at/all")
        text = client.get("/metrics").text
    assert 'clipstem_requests_total{path="/v1/score",status="200"} 1.0' in text
    assert 'clipstem_requests_total{path="/v1/score",status="422"} 1.0' in text
    assert 'clipstem_requests_total{path="other",status="404"} 1.0' in text
    assert "clipstem_batch_questions_count 1.0" in text
    assert "clipstem_waiting_questions 0.0" in text


def test_a_token_guards_everything_where_questions_are(engine: OnnxScorer) -> None:
    with TestClient(app_of(engine, token="secret"), "http://localhost") as client:
        assert client.get("/openapi.json").json()["security"] == [{"bearer": []}]
        for path in ("/metrics", "/v1/exam", "/v1/exam/x"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/v1/score", json=ONE).status_code == 401
        wrong = client.post("/v1/score", json=ONE, headers={"authorization": "Bearer secre"})
        assert wrong.json()["error"].startswith(
            "the token is missing or wrong; send Authorization:"
        )
        right = client.post("/v1/score", json=ONE, headers={"authorization": "Bearer secret"})
        assert right.status_code == 200
        assert [client.get(path).status_code for path in ("/ready", "/", "/page/exam.js")] == [
            200
        ] * 3


def test_pages_need_no_network_and_run_no_strange_code(client: TestClient) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        links = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert links and all(link.startswith("/") for link in links)
        assert all(client.get(link).status_code == 200 for link in links)


def test_what_is_not_there_is_said_in_one_line(client: TestClient) -> None:
    for path in ("/nowhere", "/page/../app.py", "/page/%2e%2e/app.py"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
    assert client.get("/v1/score").json() == {"error": "Method Not Allowed"}


def test_a_finished_answer_is_sent_though_the_server_ends(engine: OnnxScorer) -> None:
    with TestClient(app_of(engine), "http://localhost") as client:
        assert len(probabilities(client, ONE)) == 1  # and leaving the block hangs on nothing


# ---------------------------------------------------------------------------- exams


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


def test_a_page_with_another_name_is_not_let_in(client: TestClient) -> None:
    answer = client.get("/v1/exam", headers={"host": "evil.example"})
    assert answer.status_code == 400


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


def test_prepared_questions_all_come_before_any_comes_again(drawn_data: Path) -> None:
    prepared = Prepared(shards.open_dataset(str(drawn_data)), "valid")
    assert [unit.questions for unit in prepared.units] == [10] * 4
    unit = prepared.units[0]
    ids = [prepared.question(unit, number, 3).id for number in range(20)]
    assert len(set(ids[:10])) == 10 and ids[:10] == ids[10:]
    assert ids != [prepared.question(unit, number, 4).id for number in range(20)]
    with pytest.raises(ClipstemError, match="exam"):
        Prepared(shards.open_dataset(str(drawn_data)), "exam")


def test_old_sittings_are_forgotten() -> None:
    from clipstem.config import Rule

    sittings = Sittings(Drawn(), Rule.regular, 10)
    first = sittings.begin(sittings.questions.units[0])
    for _ in range(MOST_SITTINGS):
        last = sittings.begin(sittings.questions.units[0])
    assert sittings[last.id] is last
    with pytest.raises(KeyError):
        sittings[first.id]


# ---------------------------------------------------------------------------- a real process


@contextlib.contextmanager
def server(bundle: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m clipstem.serve` on a free port, and its address."""
    with socket.socket() as free:
        free.bind((LOCAL, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clipstem.serve", f"bundle={bundle}", f"port={port}"]
    process = subprocess.Popen([*command, *overrides], stdout=subprocess.DEVNULL)
    address = f"http://{LOCAL}:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/ready", timeout=30).status_code == 200:
                    break
            time.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait()


def test_a_server_that_is_told_to_end_answers_what_it_has_accepted(tiny_bundle: Path) -> None:
    # A request that never comes whole, for whose company the other waits.
    begun = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    begun += b"Content-Length: 100\r\n\r\n{"
    with server(tiny_bundle, "max_wait_ms=1500") as (process, address):
        port = int(address.rpartition(":")[2])
        with ThreadPoolExecutor(1) as thread, socket.create_connection((LOCAL, port)) as other:
            other.sendall(begun)
            answer = thread.submit(httpx.post, f"{address}/v1/score", json=ONE, timeout=30)
            while "clipstem_waiting_questions 1.0" not in httpx.get(f"{address}/metrics").text:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
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


# ---------------------------------------------------------------------------- description


def test_the_description_names_what_score_takes(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    for example in content["application/json"]["examples"].values():
        assert client.post("/v1/score", json=example["value"]).status_code == 200
    text = client.get("/openapi.json").text
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in described["components"]["schemas"]


@pytest.mark.filterwarnings("ignore")  # of the tool, about itself
def test_no_request_that_fits_the_description_breaks_the_server(engine: OnnxScorer) -> None:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
    )

    schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(engine, host="0.0.0.0"))
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    found = []
    for operation in schema.get_all_operations():
        made: Any = operation
        path = made.ok()
        found.append(f"{path.method.upper()} {path.path}")

        @settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)
        @given(case=path.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=checks)

        ask()
    assert "POST /v1/score" in found and len(found) == 8


def test_who_is_alone_waits_for_nobody(engine: OnnxScorer) -> None:
    app = app_of(engine, max_wait_ms=3_600_000.0)
    with TestClient(app, "http://localhost") as client:
        assert len(probabilities(client, ONE)) == 1


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

"""The HTTP side: right answers, what its owner sees, and its own description."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from serving import ONE, OTHER, PNG, app_of, probabilities, text_of

from clipstem.onnx_scorer import OnnxScorer

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


def test_a_page_with_another_name_is_not_let_in(client: TestClient) -> None:
    answer = client.get("/v1/exam", headers={"host": "evil.example"})
    assert answer.status_code == 400


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

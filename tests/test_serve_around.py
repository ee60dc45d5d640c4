"""What every request meets: the token, the headers, and the metrics."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient
from serving import ONE, app_of

from clipstem.onnx_scorer import OnnxScorer


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


def test_a_page_with_another_name_is_not_let_in(client: TestClient) -> None:
    answer = client.get("/v1/exam", headers={"host": "evil.example"})
    assert answer.status_code == 400

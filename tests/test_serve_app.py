"""The whole application: readiness, what is not there, and whatever its description allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from serving import ONE, app_of, probabilities

from clipstem.onnx_scorer import OnnxScorer


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


def test_what_is_not_there_is_said_in_one_line(client: TestClient) -> None:
    for path in ("/nowhere", "/page/../app.py", "/page/%2e%2e/app.py"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
    assert client.get("/v1/score").json() == {"error": "Method Not Allowed"}


def test_a_finished_answer_is_sent_though_the_server_ends(engine: OnnxScorer) -> None:
    with TestClient(app_of(engine), "http://localhost") as client:
        assert len(probabilities(client, ONE)) == 1  # and leaving the block hangs on nothing


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

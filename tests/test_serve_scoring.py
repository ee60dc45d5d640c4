"""Scoring over HTTP: the answers of the Python API, and a description that is true."""

from __future__ import annotations

import re

import numpy as np
from fastapi.testclient import TestClient
from serving import ONE, OTHER, PNG, probabilities, text_of

from clipstem.onnx_scorer import OnnxScorer


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


def test_the_description_names_what_score_takes(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    for example in content["application/json"]["examples"].values():
        assert client.post("/v1/score", json=example["value"]).status_code == 200
    text = client.get("/openapi.json").text
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in described["components"]["schemas"]

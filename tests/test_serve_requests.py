"""Requests, hostile ones too: one clear line for whatever is wrong."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from samples import encoded
from serving import JSON, ONE, OTHER, PNG, probabilities, text_of


def test_a_form_is_the_same_as_json(client: TestClient) -> None:
    form = {"question": "Which shape?", "option": ["circle", "square"]}
    answer = client.post("/v1/score", data=form, files={"picture": ("../a.png", PNG)})
    np.testing.assert_allclose(
        answer.json()["answers"][0]["probabilities"], probabilities(client, ONE)[0], atol=1e-6
    )
    files = [("option_picture", ("a.png", it)) for it in (PNG, OTHER)]
    answer = client.post("/v1/score", data={"question": "Which?"}, files=files)
    assert len(answer.json()["answers"][0]["probabilities"]) == 2


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

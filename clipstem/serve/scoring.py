"""The call that scores, `/v1/score`, and what the API's description says that it takes."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request
from python_multipart.multipart import parse_options_header

from clipstem.config import ServeConfig
from clipstem.images import PictureSpec
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import (
    AnswerOut,
    AnswersOut,
    ApiError,
    Asked,
    QuestionIn,
    asked,
    check_texts,
    of_form,
    of_json,
)
from clipstem.workers import usable_cores


def score_route(batcher: Batcher, spec: PictureSpec, config: ServeConfig) -> APIRouter:
    """Scoring for clients; their pictures are decoded on threads."""
    router = APIRouter()
    # Of its own: who has given up leaves no more threads behind than there are cores.
    decoding = ThreadPoolExecutor(usable_cores(), "decode")

    async def made_ready(given: list[QuestionIn]) -> list[Asked]:
        loop, until = asyncio.get_running_loop(), time.monotonic() + config.timeout_seconds
        ready = []
        for number, one in enumerate(given):
            place = f"questions[{number}]." if len(given) > 1 else ""
            ready.append(
                await loop.run_in_executor(decoding, asked, one, place, spec, config, until)
            )
        return ready

    async def read(request: Request) -> list[QuestionIn]:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind == b"application/json":
            return await asyncio.to_thread(of_json, await request.body(), config)
        if kind == b"multipart/form-data":
            if options.get(b"charset", b"utf-8").lower() != b"utf-8":
                raise ApiError(415, "the form's charset is not utf-8")
            most = config.max_options + 1
            parts = {"max_files": most, "max_fields": most + 3}
            text_bytes = 4 * config.max_text_characters  # UTF-8's most
            async with request.form(**parts, max_part_size=text_bytes) as form:
                return [await of_form(form)]
        raise ApiError(
            415,
            f"the content type is '{kind.decode('latin-1')[:80]}'; expected application/json "
            "or multipart/form-data",
        )

    @router.post("/v1/score", response_model=AnswersOut, openapi_extra={"requestBody": BODY})
    async def score(request: Request) -> AnswersOut:
        """The probability of each option of one question, or of several."""
        with batcher.on_its_way():
            given = await read(request)
            check_texts(given, config)
            ready = await made_ready(given)
        found = await batcher.score(ready)
        return AnswersOut(
            answers=[
                AnswerOut(id=one.id, probabilities=probs.tolist(), choice=int(probs.argmax()))
                for one, probs in zip(given, found, strict=True)
            ]
        )

    return router


# ------------------------------------------------------------------------------ description


def _example_png() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


_ONE = {
    "question": "Which colour is this?",
    "picture": _example_png(),
    "options": ["red", "green", "blue"],
}
SCHEMAS = "#/components/schemas/"
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "oneOf": [{"$ref": f"{SCHEMAS}{it}"} for it in ("QuestionIn", "QuestionsIn")]
            },
            "examples": {
                "one question": {"value": _ONE},
                "several": {"value": {"questions": [{"id": "q1", **_ONE}, {"id": "q2", **_ONE}]}},
            },
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["question"],
                "properties": {
                    "id": {"type": "string"},
                    "question": {"type": "string"},
                    "picture": {"type": "string", "format": "binary"},
                    "option": {"type": "array", "items": {"type": "string"}},
                    "option_picture": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                    },
                },
            }
        },
    },
}
"""What `/v1/score` takes, told by hand: a handler that takes two types has no signature for it."""

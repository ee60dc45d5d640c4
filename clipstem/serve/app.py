"""The HTTP side: scoring, readiness, metrics, and the exam page's calls."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import io
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline  # the API page without a network
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipstem import __version__
from clipstem.bank import SKILLS, draw
from clipstem.config import ServeConfig
from clipstem.engine import Engine
from clipstem.images import check_picture, to_pixels
from clipstem.question import ClipstemError, Picture, Question
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import (
    AnswerOut,
    AnswersOut,
    ApiError,
    Asked,
    ErrorOut,
    PictureIn,
    QuestionIn,
    QuestionsIn,
    Strict,
    asked,
    check_texts,
    of_form,
    of_json,
)
from clipstem.serve.sittings import Questions, Sitting, Sittings, Step
from clipstem.workers import usable_cores

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
OPEN = ("/ready", "/", "/docs", "/openapi.json")  # what needs no token: nothing is asked there
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")
PROBE_TOLERANCE = 1e-4  # probabilities depend on a batch by rounding alone
HELD_BODIES = 16  # of the largest size, being read at a time
EXAM_BODY_BYTES = 4096  # of a request about an exam: three names, or two numbers
AGAIN = {"Retry-After": "1"}
PROBE = draw(SKILLS["name-the-shape"], 0, 0)
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
POLICY_OF_DOCS = f"{POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
MIME = {"jpg": "image/jpeg", "tiff": "image/tiff"}  # others are image/<suffix>

log = logging.getLogger(__name__)


class UnitIn(Strict):
    """The skill of an exam, in its grade."""

    subject: Annotated[str, Field(max_length=200)]
    grade: Annotated[str, Field(max_length=200)]
    skill: Annotated[str, Field(max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class ChoiceIn(Strict):
    """The place of the chosen option, from 0, and the number of the question, from 0."""

    choice: Annotated[int, Field(ge=0, lt=1000)]
    number: Annotated[int, Field(ge=0, lt=100_000)]


class Metrics:
    """What `/metrics` tells; a registry of its own, so that two apps in a process do not mix."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clipstem_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "clipstem_request_seconds",
            "Seconds from request to answer.",
            ["path"],
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )
        self.batch_questions = Histogram(
            "clipstem_batch_questions",
            "Questions scored together.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.batch_seconds = Histogram(
            "clipstem_batch_seconds",
            "Seconds to score a batch.",
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
        )
        Gauge(
            "clipstem_waiting_questions", "Questions that wait.", registry=self.registry
        ).set_function(lambda: batcher.waiting)
        batcher.observe = self.batch

    def batch(self, questions: int, seconds: float) -> None:
        self.batch_questions.observe(questions)
        self.batch_seconds.observe(seconds)


class Around:
    """Around every request: the token, seconds, bytes, headers, metrics.

    No request has more than `max_body_bytes`; all together hold `HELD_BODIES` times that.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, came, status = time.perf_counter(), 0, 0
        most = self.config.max_body_bytes
        if scope["path"].startswith("/v1/exam"):
            most = min(most, EXAM_BODY_BYTES)

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            length = len(message.get("body", b""))
            came += length
            self.held_bytes += length
            if came > most:
                raise too_large(most)
            if self.held_bytes > HELD_BODIES * self.config.max_body_bytes:
                raise ApiError(429, "too many bytes are being read; ask again", AGAIN)
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if scope["path"] == "/docs":
                    headers["Content-Security-Policy"] = POLICY_OF_DOCS
            await send(message)

        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        seconds = self.config.timeout_seconds
        try:
            if needs_token(self.config, scope["path"], headers):
                await told(no_token())(scope, receive, sent)
            elif announced.isdigit() and int(announced) > most:
                await told(too_large(most))(scope, receive, sent)
            else:
                async with asyncio.timeout(seconds):
                    await self.app(scope, counted, sent)
        except TimeoutError:
            if not status:
                late = ApiError(503, f"it took more than {seconds:g} seconds; ask again", AGAIN)
                await told(late)(scope, receive, sent)
        except ClientDisconnect:
            status = 499  # nobody is there to be told
        finally:
            self.held_bytes -= came
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status or 500).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the request has more than {most:,} bytes", {"Connection": "close"})


def no_token() -> ApiError:
    return ApiError(
        401,
        "the token is missing or wrong; send Authorization: Bearer <token>",
        {"WWW-Authenticate": "Bearer"},
    )


def needs_token(config: ServeConfig, path: str, headers: Headers) -> bool:
    """Whether a request lacks the token that it should carry."""
    if config.token is None or path in OPEN or path.startswith(OPEN_FOLDERS):
        return False
    given = headers.get("authorization", "").encode()
    return not hmac.compare_digest(given, f"Bearer {config.token}".encode())


def told(error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def make_app(engine: Engine, config: ServeConfig, questions: Questions) -> FastAPI:
    """The application for one model; nothing is scored before its lifespan has begun."""
    batcher = Batcher(engine, config.max_batch, config.max_wait_ms / 1000, config.max_queue)
    sittings = Sittings(questions, config.rule, config.questions_per_skill)
    metrics = Metrics(batcher)
    # Of its own: who has given up leaves no more threads behind than there are cores.
    decoding = ThreadPoolExecutor(usable_cores(), "decode")
    model = {"model": engine.provenance.get("model"), **engine.facts()}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    app = FastAPIOffline(
        title="clipstem",
        version=__version__,
        summary="Probabilities of the options of exam questions with pictures.",
        lifespan=lifespan,
        redoc_url=None,
        favicon_url="/page/icon.svg",
        responses={
            status: {"model": ErrorOut, "description": what}
            for status, what in {
                401: "The token is missing or wrong.",
                413: "The request is too large.",
                422: "A field is wrong.",
                429: "Too many questions are waiting; ask again after `Retry-After` seconds.",
                503: "It took too long.",
            }.items()
        },
    )

    # ---- around every request

    if config.host in LOOPBACK:  # a strange page may give its own name to this machine
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])
    app.add_middleware(Around, config=config, metrics=metrics)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return told(error)

    @app.exception_handler(ClipstemError)
    async def own_error(_: Request, error: ClipstemError) -> JSONResponse:
        log.error("%s", error)
        return told(ApiError(500, str(error)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return told(ApiError(422, f"{place}: {first['msg']}" if place else first["msg"]))

    # ---- scoring

    async def made_ready(given: list[QuestionIn]) -> list[Asked]:
        loop, until = asyncio.get_running_loop(), time.monotonic() + config.timeout_seconds
        ready = []
        for number, one in enumerate(given):
            place = f"questions[{number}]." if len(given) > 1 else ""
            ready.append(
                await loop.run_in_executor(decoding, asked, one, place, engine.spec, config, until)
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

    @app.post("/v1/score", response_model=AnswersOut, openapi_extra={"requestBody": BODY})
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

    # ---- for whoever runs it

    probe = decoded(PROBE, engine)
    (expected_K,) = engine.score_questions([PROBE])

    probing = asyncio.Lock()

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Answers a real question: it waits as all do, and runs through both towers each time."""
        async with probing:
            found = await batcher.probe(probe)
        if not np.allclose(found, expected_K, rtol=0, atol=PROBE_TOLERANCE):
            raise ApiError(503, "a question that is known got another answer")
        return {"ready": True, **model}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # ---- the exam page

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "exam.html")

    app.mount("/page", StaticFiles(directory=PAGE))

    def sitting_of(id: str) -> Sitting:
        try:
            return sittings[id]
        except KeyError:
            raise ApiError(404, "there is no such exam; it may have been forgotten") from None

    @app.get("/v1/exam")
    async def units() -> dict[str, Any]:
        """Every skill in which an exam can be taken, and the rule of the exams."""
        return {
            "rule": config.rule.value,
            "length": config.questions_per_skill,
            "units": [vars(unit) for unit in questions.units],
        }

    @app.post("/v1/exam", status_code=201)
    async def begin(given: Annotated[UnitIn, Body()]) -> dict[str, Any]:
        """Begin an exam."""
        unit = sittings.by_unit.get((given.subject, given.grade, given.skill))
        if unit is None:
            raise ApiError(404, "there is no such skill; GET /v1/exam lists them")
        return as_json(sittings.begin(unit, given.seed))

    @app.get("/v1/exam/{id}")
    async def run(id: str) -> dict[str, Any]:
        """An exam so far: every answer, the person's and the model's, and both scores."""
        return as_json(sitting_of(id))

    @app.get("/v1/exam/{id}/question")
    async def question(id: str) -> dict[str, Any]:
        """The question to be answered next, without its answer."""
        sitting = sitting_of(id)
        if sitting.is_done:
            raise ApiError(409, "the exam is over")
        number = len(sitting.steps)
        shown = await asyncio.to_thread(sittings.question, sitting, number)
        return {
            "number": number,
            "question": shown.problem,
            "picture": None if shown.picture is None else data_url(shown.picture),
            "options": [
                {"text": it} if isinstance(it, str) else {"picture": data_url(it)}
                for it in shown.options
            ],
        }

    @app.post("/v1/exam/{id}/answer")
    async def answer(id: str, given: Annotated[ChoiceIn, Body()]) -> dict[str, Any]:
        """Answer the question; only now it is told what is right and what the model says."""
        sitting = sitting_of(id)

        def refuse_a_second_answer() -> None:
            if sitting.is_done or given.number != len(sitting.steps):
                raise ApiError(409, "this question is not the next one, or the exam is over")

        refuse_a_second_answer()
        shown = await asyncio.to_thread(sittings.question, sitting, given.number)
        if given.choice >= len(shown.options):
            raise ApiError(
                422, f"choice: is {given.choice}; there are {len(shown.options)} options"
            )
        (found,) = await batcher.score([await asyncio.to_thread(decoded, shown, engine)])
        refuse_a_second_answer()  # that came meanwhile; from here on nothing waits
        step = sitting.take(shown, given.choice, found.tolist())
        return {**as_step(step, sitting), "done": sitting.is_done}

    _describe(app, config.token is not None)
    return app


def decoded(question: Question, engine: Engine) -> Asked:
    """A question of our own, with its pictures' pixels."""
    return Asked(question, {it.sha256: to_pixels(it.data, engine.spec) for it in question.pictures})


def data_url(picture: Picture) -> str:
    suffix = check_picture(picture.data, decode=False)
    mime = MIME.get(suffix, f"image/{suffix}")
    return f"data:{mime};base64,{base64.b64encode(picture.data).decode()}"


def as_json(sitting: Sitting) -> dict[str, Any]:
    return {
        "id": sitting.id,
        **vars(sitting.unit),
        "rule": sitting.rule.value,
        "length": sitting.length,
        "seed": sitting.seed if sitting.is_done else None,  # drawn questions follow from it
        "score": sitting.score,
        "model_score": sitting.model_score,
        "done": sitting.is_done,
        "steps": [as_step(step, sitting) for step in sitting.steps],
    }


def as_step(step: Step, sitting: Sitting) -> dict[str, Any]:
    """An answered question; like the seed, ids of drawn questions would tell of those to come."""
    said = {**vars(step), "model_choice": step.model_choice}
    return said if sitting.is_done else {**said, "id": None}


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
_SCHEMA = "#/components/schemas/"
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "oneOf": [{"$ref": f"{_SCHEMA}{it}"} for it in ("QuestionIn", "QuestionsIn")]
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


def _describe(app: FastAPI, has_token: bool) -> None:
    """Put the types that `BODY` names, and the token, into the OpenAPI description."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = generated()["components"]["schemas"]
            for shape in (QuestionIn, QuestionsIn, PictureIn):
                made = shape.model_json_schema(ref_template=_SCHEMA + "{model}")
                made.pop("$defs", None)
                schemas[shape.__name__] = made
            described: dict[str, Any] = app.openapi_schema or {}
            if has_token:
                bearer = {"bearer": {"type": "http", "scheme": "bearer"}}
                described["components"]["securitySchemes"] = bearer
                described["security"] = [{"bearer": []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    # FastAPI has no other way to extend its description than to put a function over its own.
    app.openapi = openapi  # type: ignore[method-assign]

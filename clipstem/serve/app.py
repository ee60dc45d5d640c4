"""The HTTP side, put together: scoring, the exam page, readiness, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline  # the API page without a network
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clipstem import __version__
from clipstem.bank import SKILLS, draw
from clipstem.config import ServeConfig
from clipstem.engine import Engine
from clipstem.question import ClipstemError
from clipstem.serve.around import Around, Metrics, told
from clipstem.serve.batching import Batcher
from clipstem.serve.exams import exam_routes
from clipstem.serve.requests import (
    ApiError,
    ErrorOut,
    PictureIn,
    QuestionIn,
    QuestionsIn,
    decoded,
)
from clipstem.serve.scoring import SCHEMAS, score_route
from clipstem.serve.sittings import Questions, Sittings

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
PROBE = draw(SKILLS["name-the-shape"], 0, 0)
PROBE_TOLERANCE = 1e-4  # probabilities depend on a batch by rounding alone

log = logging.getLogger(__name__)


def make_app(engine: Engine, config: ServeConfig, questions: Questions) -> FastAPI:
    """The application for one model; nothing is scored before its lifespan has begun."""
    batcher = Batcher(engine, config.max_batch, config.max_wait_ms / 1000, config.max_queue)
    sittings = Sittings(questions, config.rule, config.questions_per_skill)
    metrics = Metrics(batcher)
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

    app.include_router(score_route(batcher, engine.spec, config))

    # ---- for whoever runs it

    probe = decoded(PROBE, engine.spec)
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

    # ---- for everybody

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "exam.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    app.include_router(exam_routes(batcher, engine.spec, sittings))
    _describe(app, config.token is not None)
    return app


def _describe(app: FastAPI, has_token: bool) -> None:
    """Put the types that scoring's `BODY` names, and the token, into the OpenAPI description."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = generated()["components"]["schemas"]
            for shape in (QuestionIn, QuestionsIn, PictureIn):
                made = shape.model_json_schema(ref_template=SCHEMAS + "{model}")
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

"""What is around every request: its token, seconds, bytes and headers, and the metrics."""

from __future__ import annotations

import asyncio
import hmac
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipstem.config import ServeConfig
from clipstem.serve.batching import Batcher
from clipstem.serve.requests import ApiError

OPEN = ("/ready", "/", "/docs", "/openapi.json")  # what needs no token: nothing is asked there
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")
HELD_BODIES = 16  # of the largest size, being read at a time
EXAM_BODY_BYTES = 4096  # of a request about an exam: three names, or two numbers
AGAIN = {"Retry-After": "1"}
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

"""An OpenAI-compatible endpoint, asked patiently: retries, a rate, limits, and a key that stays in.

The protocol is OpenAI's "chat completions", which most servers of language models speak:
`POST <base_url>/chat/completions`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from asyncio import wait_for
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any

from clipstem import __version__, facts
from clipstem.ask.answers import Reply, reply_of
from clipstem.config import AskConfig
from clipstem.question import ClipstemError

try:
    import httpx
except ImportError:
    raise ClipstemError(
        "asking needs httpx, which is missing: pip install 'clipstem[ask]'"
    ) from None

FIRST_WAIT_SECONDS = 0.5  # before a retry; doubled with each further one
MAX_REPLY_BYTES = 8 * 2**20  # of a completion; a thousand tokens with logprobs have 2 MiB
LEAST_KEY = 8  # letters
MAX_SAID = 300  # characters of an endpoint's own words in a message

PASSING = (408, 409, 425, 429)  # and 5xx: what an endpoint says that is busy or restarts
ONE_QUESTIONS = (400, 413, 415, 422, 451)  # what it says of one request, such as a filtered one
HINTS = {
    401: "is the key right?",
    402: "is there credit?",
    403: "may the key use this model?",
    404: "are base_url and model_name right?",
}


class Unanswered(ClipstemError):
    """Why one question has no answer."""


class Stopped(Exception):
    """A request was not made (again), because the run is stopping."""


class _Fault(Exception):
    """A failure that may pass.

    Attributes:
        reason: what kind it is.
        said: the endpoint's own words.
        wait_seconds: how long the endpoint asks to wait; None if it does not say.
    """

    def __init__(self, reason: str, said: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(f"{reason}: {said}" if said else reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


class Endpoint:
    """Where a language model is asked, as an asynchronous context.

    Attributes:
        url: of the requests.
        requests: how many were made, those made again included.
        on_their_way: how many of them have not come back yet.
        faults: why requests were made again, and how often.
        stopping: once it is set, no request begins, and nobody waits to make one; those on their
            way are not disturbed.
    """

    def __init__(self, config: AskConfig, key: str | None) -> None:
        self.url = f"{config.base_url.rstrip('/')}/chat/completions"
        self.requests = 0
        self.on_their_way = 0
        self.faults: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self._config = config
        # What stands in for a key where none is needed ("none", "x") is no secret, but a word.
        self._secret = key if key is not None and len(key) >= LEAST_KEY else None
        self._has_key = key is not None
        self._has_answered = False
        self._open_at = -math.inf  # when the next request may be made
        # Answers are read as they come, within a limit, so they must not be compressed.
        headers = {"User-Agent": f"clipstem/{__version__}", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            httpx.URL(self.url)
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(config.timeout_seconds, pool=None),
                limits=httpx.Limits(max_connections=config.concurrency),
                follow_redirects=False,  # the key is for this host alone
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise ClipstemError(
                f"{self.url}: cannot be asked ({error}); is base_url right, and what the "
                "environment says of a proxy?"
            ) from None

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The answer to a request, which is made again while it fails in a way that may pass.

        Raises:
            Unanswered: if this request fails for good; others may not.
            ClipstemError: if every other one would fail too.
            Stopped: if `stopping` is set before it is made, or made again.
        """
        for attempt in range(self._config.max_retries + 1):
            await self._turn()
            try:
                reply = await self._once(body)
            except _Fault as fault:
                self.faults[fault.reason] += 1
                last = str(fault)
                if attempt < self._config.max_retries:
                    await self._wait(attempt, fault.wait_seconds)
            else:
                self._has_answered = True
                return reply
        raise Unanswered(f"{self._config.max_retries + 1} tries, the last: {last}")

    async def _turn(self) -> None:
        """Wait until a request may be made, at the rate that is allowed.

        Raises:
            Stopped: if none may be made any more.
        """
        while not self.stopping.is_set() and (wait_seconds := self._open_at - monotonic()) > 0:
            await self._pause(wait_seconds)
        if self.stopping.is_set():
            raise Stopped
        if self._config.requests_per_minute is not None:
            self._open_at = monotonic() + 60 / self._config.requests_per_minute

    async def _wait(self, attempt: int, wait_seconds: float | None) -> None:
        """Wait before a retry: as long as the endpoint asks, everybody; else longer each time.

        Half of the wait is drawn, so that requests that failed together do not come again together.
        Where what the endpoint asks for was not enough, as much is drawn on top.
        """
        longest = self._config.max_wait_seconds
        ours = min(longest, FIRST_WAIT_SECONDS * 2**attempt)
        if wait_seconds is None:
            await self._pause(ours * random.uniform(0.5, 1))
            return
        if wait_seconds > longest:
            raise ClipstemError(
                f"{self.url}: asks to wait {wait_seconds:,.0f} s, longer than "
                f"max_wait_seconds={longest:g}; go on later"
            )
        self._open_at = max(self._open_at, monotonic() + wait_seconds)
        if attempt > 0:
            await self._pause(wait_seconds + ours * random.random())

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until `stopping` is set."""
        with suppress(TimeoutError):
            await wait_for(self.stopping.wait(), seconds)

    async def _once(self, body: Mapping[str, Any]) -> Reply:
        self.requests += 1
        self.on_their_way += 1
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                return await self._completion(body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Fault(f"no answer in {self._config.timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            if not self._has_answered:
                raise ClipstemError(
                    f"{self.url}: cannot be reached ({self._clean(str(error))}); is the server "
                    "running, and base_url right?"
                ) from None
            raise _Fault("cannot be reached", self._clean(str(error))) from None
        except httpx.HTTPError as error:
            raise _Fault("connection lost", self._clean(str(error))) from None
        finally:
            self.on_their_way -= 1

    async def _completion(self, body: Mapping[str, Any]) -> Reply:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = self._client.stream("POST", self.url, content=content, headers=headers)
        async with request as response:
            data = bytearray()
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > MAX_REPLY_BYTES:
                    raise _Fault(f"an answer of more than {MAX_REPLY_BYTES:,} bytes")
        whole = bytes(data)
        if self._secret is not None:
            whole = whole.replace(self._secret.encode(), b"<key>")
        if response.status_code != 200:
            self._refuse(response, whole)
        if not self._has_answered and whole.lstrip()[:1] == b"<":
            raise ClipstemError(
                f"{self.url}: answers with a page, not with JSON; expected an OpenAI-compatible "
                "endpoint: does base_url lack a /v1?"
            )
        try:
            values = facts.parse(whole)
        except ClipstemError as error:
            raise _Fault("an answer that is no JSON", str(error)) from None
        if isinstance(values, dict) and values.get("error"):
            raise _Fault("an error with status 200", self._said(whole))
        try:
            return reply_of(values)
        except ClipstemError as error:
            raise _Fault("an answer that is no chat completion", str(error)) from None

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        """Say what an answer without an answer means.

        Raises:
            _Fault: if it may pass.
            Unanswered: if it is about this request.
            ClipstemError: if it is about all.
        """
        status, said = response.status_code, self._said(body)
        told = f"{status} {response.reason_phrase}".strip()
        if 300 <= status < 400:
            target = self._clean(response.headers.get("location", "")).split("?")[0]
            raise ClipstemError(
                f"{self.url}: redirects to {target or 'nowhere'} ({told}), which is not followed: "
                "the key is for this address; give the one that answers as base_url"
            )
        if "insufficient_quota" not in said and (status in PASSING or status >= 500):
            raise _Fault(told, said, _asked_wait(response.headers))
        if status in ONE_QUESTIONS or (status == 403 and self._has_answered):
            raise Unanswered(f"{told}: {said}" if said else told)
        hint = f"; {HINTS[status]}" if status in HINTS else ""
        if status in (401, 403) and not self._has_key:
            hint = "; give api_key_env=<the environment variable that holds the key>"
        raise ClipstemError(f"{self.url}: {told}{f' ({said})' if said else ''}{hint}")

    def _said(self, body: bytes) -> str:
        """An endpoint's own words about an error, as one line."""
        text = body[:10_000].decode(errors="replace")
        try:
            values = facts.parse(text)
        except ClipstemError:
            return "" if text.lstrip().startswith("<") else self._clean(text)
        error = values.get("error", values) if isinstance(values, dict) else values
        if not isinstance(error, dict):
            return self._clean(str(error))
        words = (error.get("message") or error.get("detail"), error.get("code"))
        return self._clean(": ".join(str(word) for word in words if word))

    def _clean(self, text: str) -> str:
        """A stranger's text on one line, without the key and what would disturb a terminal."""
        if self._secret is not None:
            text = text.replace(self._secret, "<key>")
        printable = "".join(it if it.isprintable() else " " for it in text[: 2 * MAX_SAID])
        line = re.sub(r" +", " ", printable).strip()
        return line if len(line) <= MAX_SAID else f"{line[: MAX_SAID - 1]}…"


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """How many seconds the endpoint asks to wait, if it does: a number, or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d*)?", value):
            return float(value) * unit
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError):
        return None

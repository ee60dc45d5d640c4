"""The endpoint: what is tried again and when, what ends the run at once, and where the key goes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from clipstem.ask import endpoint as module
from clipstem.ask.answers import Reply
from clipstem.ask.endpoint import Endpoint, Stopped, Unanswered
from clipstem.config import AskConfig
from clipstem.question import ClipstemError

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from chat_server import FAULTS, Answer, Call, ChatServer, completion, error

KEY = "sk-very-secret-0123456789"
BODY = {"model": "m", "messages": [{"role": "user", "content": "A. one\nB. two"}]}
GOOD = Answer(completion("B"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, by a clock that only waiting moves."""
    waited: list[float] = []

    async def wait_for(stopped: Coroutine[Any, Any, bool], seconds: float) -> bool:
        stopped.close()
        waited.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(module, "wait_for", wait_for)
    monkeypatch.setattr(module, "monotonic", lambda: 1000.0 + sum(waited))
    return waited


def config_for(url: str, **values: Any) -> AskConfig:
    values = {"timeout_seconds": 30, **values}
    return AskConfig(base_url=url, model_name="m", data="d", split="valid", out="o", **values)


def asked(url: str, times: int = 1, key: str | None = None, **values: Any) -> list[Reply]:
    """The replies to the same request, one after the other."""

    async def run() -> list[Reply]:
        async with Endpoint(config_for(url, **values), key) as endpoint:
            return [await endpoint.ask(BODY) for _ in range(times)]

    return asyncio.run(run())


def in_turn(*answers: Answer) -> Callable[[Call], Answer]:
    """A script that gives each request the next answer, and the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# ---------------------------------------------------------------------------- answers


def test_an_answer_comes_back_with_what_it_cost(server: ChatServer) -> None:
    server.script = in_turn(GOOD)
    (reply,) = asked(server.url)
    assert (reply.text, reply.model, reply.finish_reason) == ("B", "stand-in", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (50, 1)
    assert server.calls[0].body == BODY
    assert "Authorization" not in server.calls[0].headers


def test_a_slash_behind_the_address_changes_nothing(server: ChatServer) -> None:
    assert Endpoint(config_for(server.url + "/"), None).url == server.url + "/chat/completions"


# ---------------------------------------------------------------------------- what may pass


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"late"}))
def test_what_may_pass_is_tried_again(name: str, server: ChatServer, waits: list[float]) -> None:
    server.script = in_turn(GOOD, FAULTS[name](), FAULTS[name](), GOOD)
    assert [it.text for it in asked(server.url, times=2)] == ["B", "B"]
    assert len(server.calls) == 4 and len(waits) == 2


def test_a_late_answer_is_asked_for_again(server: ChatServer, waits: list[float]) -> None:
    server.script = in_turn(Answer(completion("A"), delay_seconds=30), GOOD)
    assert asked(server.url, timeout_seconds=0.3)[0].text == "B"


def test_an_answer_that_drips_in_is_late_too(waits: list[float]) -> None:
    """Each byte comes in time, the whole does not."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not ended.wait(0.02):
                self.wfile.write(b" ")

        def log_message(self, *_: Any) -> None:
            pass

    ended = threading.Event()
    dripping = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=dripping.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with pytest.raises(Unanswered, match=r"1 tries, the last: no answer in 0\.3 s"):
            url = f"http://127.0.0.1:{dripping.server_address[1]}/v1"
            asked(url, timeout_seconds=0.3, max_retries=0)
    finally:
        ended.set()
        dripping.shutdown()
        dripping.server_close()


def test_waits_double_and_half_of_them_is_drawn(server: ChatServer, waits: list[float]) -> None:
    server.script = in_turn(error(500, "broken"))
    with pytest.raises(
        Unanswered, match=re.escape("6 tries, the last: 500 Internal Server Error: broken")
    ):
        asked(server.url, max_retries=5, max_wait_seconds=4)
    assert len(server.calls) == 6
    longest = [0.5, 1, 2, 4, 4]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len({wait / most for wait, most in zip(waits, longest, strict=True)}) == 5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)}, 0),
    ],
)
def test_an_endpoint_is_left_alone_as_long_as_it_asks(
    headers: dict[str, str], seconds: float, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(error(429, "slow down", **headers), GOOD)
    asked(server.url)
    assert sum(waits) == seconds


@pytest.mark.parametrize("asked_seconds", [0, 3])
def test_what_it_asks_for_is_waited_longer_where_it_was_not_enough(
    asked_seconds: int, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(error(429, "slow down", **{"Retry-After": str(asked_seconds)}))
    with pytest.raises(Unanswered, match="5 tries"):
        asked(server.url, max_retries=4, max_wait_seconds=3)
    more = [wait - asked_seconds for wait in waits if wait != asked_seconds]
    assert all(0 < it <= most for it, most in zip(more, [1, 2, 3], strict=True))
    assert sum(waits) == pytest.approx(4 * asked_seconds + sum(more))


@pytest.mark.parametrize("value", ["soon", "-3", "1e3", "nan", "Mon, 99 Foo 2020", "9" * 50, ""])
def test_a_retry_after_that_is_none_is_passed_over(
    value: str, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(error(503, "busy", **{"Retry-After": value}), GOOD)
    asked(server.url)
    assert 0.25 <= sum(waits) <= 0.5


@pytest.mark.parametrize(
    "value", ["3600", format_datetime(datetime(2999, 1, 1, tzinfo=UTC), usegmt=True)]
)
def test_too_long_a_wait_ends_the_run(value: str, server: ChatServer, waits: list[float]) -> None:
    server.script = in_turn(error(429, "come tomorrow", **{"Retry-After": value}), GOOD)
    message = r"/v1/chat/completions: asks to wait [\d,]+ s, longer than max_wait_seconds=120;"
    with pytest.raises(ClipstemError, match=message):
        asked(server.url)
    assert waits == []


def test_everybody_waits_when_one_is_told_to(server: ChatServer, waits: list[float]) -> None:
    endpoint = Endpoint(config_for(server.url), None)

    async def run() -> None:
        server.script = in_turn(error(429, "slow down", **{"Retry-After": "5"}), GOOD)
        async with endpoint:
            await endpoint.ask(BODY)
            assert waits == [5]
            await endpoint._wait(0, 3.0)  # somebody else is told
            await endpoint.ask(BODY)

    asyncio.run(run())
    assert waits == [5, 3]
    assert endpoint.faults == {"429 Too Many Requests": 1} and endpoint.requests == 3


def test_requests_keep_to_the_rate(server: ChatServer, waits: list[float]) -> None:
    asked(server.url, times=4, requests_per_minute=30)
    assert waits == [2, 2, 2]


# ---------------------------------------------------------------------------- what does not pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, "bad key"), "401 Unauthorized (bad key); is the key right?"),
        (error(403, "no"), "403 Forbidden (no); may the key use this model?"),
        (error(402, ""), "402 Payment Required; is there credit?"),
        (
            error(404, "The model `m` does not exist"),
            "404 Not Found (The model `m` does not exist); are base_url and model_name right?",
        ),
        (
            Answer(b"<html>nope</html>", 404),
            "404 Not Found; are base_url and model_name right?",
        ),
        (Answer(b"", 405), "405 Method Not Allowed"),
        (Answer(b"", 204), "204 No Content"),
        (
            Answer(b'{"error": {"message": "no more", "code": "insufficient_quota"}}', 429),
            "429 Too Many Requests (no more: insufficient_quota)",
        ),
        (Answer(b'{"detail": "Not authenticated"}', 401), "401 Unauthorized (Not authenticated)"),
        (Answer(b'{"error": "no"}', 401), "401 Unauthorized (no)"),
        (Answer(b"plain\nwords", 401), "401 Unauthorized (plain words)"),
        (
            Answer(b"<!doctype html><html><body>Welcome", headers={"Content-Type": "text/html"}),
            "answers with a page, not with JSON; expected an OpenAI-compatible endpoint: does "
            "base_url lack a /v1?",
        ),
    ],
)
def test_what_every_request_would_get_ends_the_run_at_once(
    answer: Answer, message: str, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(answer)
    with pytest.raises(ClipstemError) as refused:
        asked(server.url, key=KEY)
    assert not isinstance(refused.value, Unanswered)
    assert message in str(refused.value) and str(refused.value).startswith(server.url)
    assert len(server.calls) == 1 and waits == []


def test_a_missing_key_is_asked_for(server: ChatServer) -> None:
    server.script = in_turn(error(401, "who are you?"))
    with pytest.raises(ClipstemError, match=r"\(who are you\?\); give api_key_env=<the environ"):
        asked(server.url)


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_what_one_question_gets_is_that_questions(
    status: int, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(error(status, "flagged by a filter"), GOOD)
    with pytest.raises(Unanswered, match=rf"^{status} .*: flagged by a filter$"):
        asked(server.url)
    assert len(server.calls) == 1 and waits == []


def test_403_after_answers_is_about_the_question(server: ChatServer) -> None:
    server.script = in_turn(GOOD, error(403, "moderation"))
    with pytest.raises(Unanswered, match="403 Forbidden: moderation"):
        asked(server.url, times=2)


def test_a_server_that_is_not_there_is_said_at_once(waits: list[float]) -> None:
    with pytest.raises(
        ClipstemError, match=r"cannot be reached \(.*\); is the server running, and base_url right"
    ):
        asked("http://127.0.0.1:9/v1")
    assert waits == []


def test_a_server_that_is_restarted_is_waited_for(waits: list[float]) -> None:
    once = in_turn(Answer(completion("B"), headers={"Connection": "close"}))
    with ChatServer() as server:
        url, port = server.url, int(server.url.split(":")[2].split("/")[0])
        endpoint = Endpoint(config_for(url, max_retries=3), None)

    async def run() -> str:
        async with endpoint:
            with ChatServer(once, port):
                await endpoint.ask(BODY)
            with pytest.raises(Unanswered, match=r"4 tries, the last: cannot be reached: "):
                await endpoint.ask(BODY)
            with ChatServer(once, port):
                return (await endpoint.ask(BODY)).text

    assert asyncio.run(run()) == "B"


def test_another_host_does_not_get_the_key(server: ChatServer) -> None:
    with ChatServer(in_turn(GOOD)) as other:
        target = f"{other.url}/chat/completions?token=x"
        server.script = in_turn(Answer(b"", 307, {"Location": target}))
        message = f"redirects to {other.url}/chat/completions (307 Temporary Redirect), which is"
        with pytest.raises(ClipstemError, match=re.escape(message)) as refused:
            asked(server.url, key=KEY)
        assert other.calls == [] and "token" not in str(refused.value)


def test_tls_that_is_none_is_said(server: ChatServer, waits: list[float]) -> None:
    with pytest.raises(ClipstemError, match=r"cannot be reached \(.*SSL.*\)"):
        asked(server.url.replace("http:", "https:"))
    assert waits == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_of_nobody_is_refused(tmp_path: Path) -> None:
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    files = ["-subj", "/CN=127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*request, *files], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ChatServer(in_turn(GOOD)) as server:
        listening = server._server.socket
        server._server.socket = context.wrap_socket(listening, server_side=True)
        with pytest.raises(ClipstemError, match="certificate verify failed"):
            asked(server.url.replace("http:", "https:"), key=KEY)
        assert server.calls == []


@pytest.mark.parametrize("url", ["http://[::z]/v1", "http://exa mple/v1", "http://xn--a.b:x/v1"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ClipstemError):
        Endpoint(config_for(url), None)


# ---------------------------------------------------------------------------- hostile answers


def test_a_huge_answer_is_not_read_whole(
    server: ChatServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 2**16)
    server.script = in_turn(Answer(completion("B" * 2**20)))
    with pytest.raises(Unanswered, match="2 tries, the last: an answer of more than 65,536 bytes"):
        asked(server.url, max_retries=1)


def test_an_answer_that_expands_is_not_expanded(server: ChatServer, waits: list[float]) -> None:
    import gzip

    bomb = Answer(gzip.compress(bytes(2**24)), headers={"Content-Encoding": "gzip"})
    server.script = in_turn(bomb)
    with pytest.raises(Unanswered, match="an answer that is no JSON"):
        asked(server.url, max_retries=0)
    assert server.calls[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"7", b'"B"', b"{}", b'{"choices": null}', b'{"choices": {}}',
        b'{"choices": [7]}', b'{"choices": [{"message": null}]}', b'{"choices": [{"text": "B"}]}',
        b"\xff\xfe", b"[" * 100_000, b'{"choices": [{"message": {"content": "B"}}]', b"9" * 10_000,
        b'{"choices": [{"message": {"content": [7]}}]}',
    ],
)  # fmt: skip
def test_what_is_no_completion_is_tried_again(
    body: bytes, server: ChatServer, waits: list[float]
) -> None:
    server.script = in_turn(Answer(body), GOOD)
    assert asked(server.url)[0].text == "B"


def test_words_of_the_endpoint_disturb_no_terminal(server: ChatServer) -> None:
    server.script = in_turn(error(400, "\x1b[31mred\n\nlines\x00 " + "x" * 5000))
    with pytest.raises(Unanswered) as refused:
        asked(server.url)
    text = str(refused.value)
    assert text.isprintable() and len(text) < 400 and "[31mred lines" in text


# ---------------------------------------------------------------------------- the key


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: ChatServer, waits: list[float]
) -> None:
    """Even where the endpoint says it back."""
    echo = completion(f"B, and your key is {KEY}")
    server.script = in_turn(
        Answer(echo), error(500, f"failed for {KEY}"), error(401, f"Incorrect API key: {KEY}")
    )
    config = config_for(server.url)
    endpoint = Endpoint(config, KEY)

    async def run() -> str:
        async with endpoint:
            reply = await endpoint.ask(BODY)
            assert reply.text == "B, and your key is <key>"
            with pytest.raises(ClipstemError) as refused:
                await endpoint.ask(BODY)
            return str(refused.value)

    message = asyncio.run(run())
    assert KEY not in message and "Incorrect API key: <key>" in message
    assert KEY not in str(endpoint.faults)
    assert [call.headers["Authorization"] for call in server.calls] == [f"Bearer {KEY}"] * 3
    assert KEY not in json.dumps([call.body for call in server.calls])


def test_a_word_in_place_of_a_key_is_no_secret(server: ChatServer) -> None:
    server.script = in_turn(Answer(completion("none of these")))
    assert asked(server.url, key="none")[0].text == "none of these"
    assert server.calls[0].headers["Authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        (GOOD, {"requests_per_minute": 0.1}),
        (error(429, "slow down", **{"Retry-After": "100"}), {}),
        (error(500, "broken"), {"max_wait_seconds": 600}),
    ],
)
def test_a_stop_ends_every_wait(
    answer: Answer, values: dict[str, Any], server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 600)
    server.script = in_turn(answer)
    endpoint = Endpoint(config_for(server.url, **values), None)

    async def wait_for(stopped: Coroutine[Any, Any, bool], seconds: float) -> bool:
        assert seconds > 90
        waiting = asyncio.create_task(asyncio.wait_for(stopped, seconds))
        for _ in range(3):  # until it waits
            await asyncio.sleep(0)
        assert not waiting.done()
        endpoint.stopping.set()
        return await waiting

    monkeypatch.setattr(module, "wait_for", wait_for)

    async def run() -> None:
        async with asyncio.timeout(60), endpoint:
            for _ in range(2):
                await endpoint.ask(BODY)

    with pytest.raises(Stopped):
        asyncio.run(run())
    assert len(server.calls) == endpoint.requests == 1 and endpoint.on_their_way == 0


@pytest.mark.parametrize(
    "answer", [GOOD, error(500, "broken"), error(429, "again", **{"Retry-After": "0"})]
)
def test_a_stop_disturbs_no_request_on_its_way_and_begins_none(
    answer: Answer, server: ChatServer
) -> None:
    endpoint = Endpoint(config_for(server.url), None)
    replies: list[Reply] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def script(_: Call) -> Answer:
            loop.call_soon_threadsafe(endpoint.stopping.set)
            return answer

        server.script = script
        async with endpoint:
            replies.append(await endpoint.ask(BODY))
            await endpoint.ask(BODY)

    with pytest.raises(Stopped):
        asyncio.run(run())
    assert [it.text for it in replies] == (["B"] if answer is GOOD else [])
    assert len(server.calls) == endpoint.requests == 1 and endpoint.on_their_way == 0

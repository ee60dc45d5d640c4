"""A stand-in for a language model's endpoint: speaks chat completions, and fails as it is told.

    python scripts/chat_server.py 8000 --fail 0.2

answers each question with a letter of its options, drawn by the question's text, and lets the share
`--fail` of the requests fail in the ways that endpoints do. The tests and `measure_ask.py` script
it themselves.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What a request gets.

    Attributes:
        delay_seconds: before anything is sent.
        cut: sends only so many bytes of the body, and closes the connection.
        is_good: whether it answers; otherwise it is a way to fail.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    cut: int | None = None
    is_good: bool = True


@dataclass
class Call:
    """A request; `was_answered` once the whole of a good answer has left."""

    body: dict[str, Any]
    headers: dict[str, str]
    attempt: int  # of this same body, from 0
    was_answered: bool = False

    @property
    def prompt(self) -> str:
        content = self.body["messages"][0]["content"]
        return content if isinstance(content, str) else json.dumps(content)


def completion(text: str | None, **fields: Any) -> bytes:
    """A chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51}
    whole = {
        "object": "chat.completion",
        "model": "stand-in",
        "choices": [{**choice, "finish_reason": "stop"}],
        "usage": usage,
    }
    return json.dumps(whole | fields).encode()


def error(status: int, message: str, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message}}).encode()
    return Answer(body, status, headers, is_good=False)


def letter_for(call: Call) -> Answer:
    """A letter of the question's options, always the same for the same question."""
    letters = re.findall(r"^([A-Z])\. ", call.prompt, flags=re.M)
    return Answer(completion(random.Random(call.prompt).choice(letters or ["A"])))


FAULTS: dict[str, Callable[[], Answer]] = {
    "429": lambda: error(429, "slow down", **{"Retry-After-Ms": "20"}),
    "500": lambda: error(500, "oops"),
    "503 page": lambda: Answer(b"<html>busy</html>", 503, {"Content-Type": "text/html"}),
    "late": lambda: Answer(completion("A"), delay_seconds=60),
    "cut": lambda: Answer(completion("A"), cut=40),
    "closed": lambda: Answer(completion("A"), cut=0),
    "no JSON": lambda: Answer(b"{'model':"),
    "other JSON": lambda: Answer(b'{"choices": []}'),
    "error 200": lambda: Answer(b'{"error": {"message": "overloaded"}}'),
}
"""How a request may fail that succeeds when it is made again."""


def failing(share: float, answer: Callable[[Call], Answer] = letter_for, seed: int = 0) -> Any:
    """A script that lets a share of the requests fail: which ones, hangs on nothing but them."""

    def script(call: Call) -> Answer:
        draw = random.Random(f"{seed}/{call.attempt}/{call.prompt}")
        if draw.random() < share:
            return replace(FAULTS[draw.choice(sorted(FAULTS))](), is_good=False)
        return answer(call)

    return script


class ChatServer:
    """A server on this machine, as a context.

    Attributes:
        calls: every request so far, in the order in which they came.
    """

    def __init__(self, script: Callable[[Call], Answer] = letter_for, port: int = 0) -> None:
        self.script = script
        self.calls: list[Call] = []
        self._attempts: dict[str, int] = {}
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                owner._serve(self, data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: Any) -> None:
                """Say nothing: clients that are killed break their connections off."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def answered(self) -> list[str]:
        """The prompts that have got a good answer, as often as they have got one."""
        return [call.prompt for call in self.calls if call.was_answered]

    def _serve(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        with self._lock:
            text = data.decode()
            attempt = self._attempts.get(text, 0)
            self._attempts[text] = attempt + 1
            call = Call(json.loads(text), dict(handler.headers.items()), attempt)
            self.calls.append(call)
        answer = self.script(call)
        time.sleep(answer.delay_seconds)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        handler.send_response(answer.status)
        for name, value in (headers | answer.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        call.was_answered = answer.is_good  # before whoever asked can know of it
        try:
            handler.wfile.write(answer.body[: answer.cut])
            handler.wfile.flush()
        except OSError:
            call.was_answered = False
            raise
        if answer.cut is not None:
            handler.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--fail", type=float, default=0.0, help="share of the requests that fail")
    given = parser.parse_args()
    with ChatServer(failing(given.fail), given.port) as server:
        print(f"{server.url}; Ctrl-C ends it", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

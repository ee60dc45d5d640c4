"""Asking: what fails, what stops the run, and a run that goes on without a repeated call."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, arguments, config_of, refused
from preparing import lines, prepared, row, write_jsonl

from clipstem import prediction
from clipstem.ask import asking, endpoint
from clipstem.ask.prompts import LETTERS, render
from clipstem.shards import Dataset, open_dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import measure_ask
from chat_server import Answer, Call, ChatServer, error, failing, letter_for

# ---------------------------------------------------------------------------- failures


def test_one_request_in_five_may_fail(
    run: Callable[..., prediction.Predictions], drawn_data: Path, server: ChatServer
) -> None:
    server.script = failing(0.2)
    found = run(drawn_data, timeout_seconds=3, concurrency=16)
    assert len(server.answered) == len(set(server.answered)) == found.provenance["answers"]
    assert len(server.calls) > len(server.answered)
    letters = {}
    for call in server.calls:
        letters[call.prompt] = json.loads(letter_for(call).body)["choices"][0]["message"]["content"]
    dataset = open_dataset(str(drawn_data))
    asked = {it.id: it for it in dataset.read("valid", range(dataset.size("valid")))}
    for id, choice in zip(found.columns["id"], found.choice_Q, strict=True):
        prompt = render(asked[id], config_of(), {}).content
        assert LETTERS[choice] == letters[str(prompt)]


def test_few_questions_without_an_answer_are_left_out(
    run: Callable[..., prediction.Predictions], data: Dataset, server: ChatServer
) -> None:
    server.script = lambda call: (
        error(400, "filtered") if "is it, 3?" in call.prompt else letter_for(call)
    )
    found = run(data, max_failed_fraction=0.2)
    assert sorted(found.columns["id"]) == ["q0", "q5"]
    reasons = {it["id"]: it["reason"] for it in lines(Path("o.skipped.jsonl"))}
    assert reasons["q3"] == "no answer: 400 Bad Request: filtered"


def test_many_stop_the_run_and_the_next_one_goes_on(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda call: letter_for(call) if "legs" in call.prompt else error(422, "no")
    said = refused(run, capsys, drawn_data, concurrency=1)
    assert re.fullmatch(
        rf"{server.url}/chat/completions: 1 requests have no answer, more than "
        r"max_failed_fraction=0\.01 of all; the last, for question '\S+': 422 .*: no", said
    )  # fmt: skip
    assert not Path("o.parquet").exists()
    before = set(server.answered)
    server.script = letter_for
    found = run(drawn_data)
    assert len(server.answered) == len(set(server.answered)) == found.provenance["answers"]
    assert before < set(server.answered)


def test_an_endpoint_that_only_fails_is_not_asked_for_ever(
    run: Callable[..., prediction.Predictions],
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row(number, split="valid") for number in range(300)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "source", rows))
    server.script = lambda _: error(400, "unknown field logprobs")
    said = refused(run, capsys, dataset, max_failed_fraction=0.9)
    assert "20 requests have no answer, one after the other; the last, for question" in said
    assert "400 Bad Request: unknown field logprobs" in said
    assert len(server.calls) < 40


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, f"Incorrect API key: {KEY}"), "401 Unauthorized (Incorrect API key: <key>)"),
        (error(404, "no such model"), "404 Not Found (no such model); are base_url and model_name"),
        (Answer(b"<html>"), "answers with a page, not with JSON"),
        (Answer(b"", 302, {"Location": "http://elsewhere/"}), "redirects to http://elsewhere/"),
    ],
)
def test_what_all_would_get_stops_the_run_at_once(
    answer: Answer,
    message: str,
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    server.script = lambda _: answer
    said = refused(run, capsys, drawn_data, api_key_env="THE_KEY", concurrency=4)
    assert message in said and KEY not in said
    assert 1 <= len(server.calls) <= 4
    assert not Path("o.parquet").exists()


def test_what_stops_the_run_does_not_lose_requests_on_their_way(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    all_are_on_their_way = threading.Barrier(3)
    said: list[str] = []
    is_said = threading.Event()

    def warning(text: str, *values: Any) -> None:
        said.append(text % values)
        is_said.set()

    def script(call: Call) -> Answer:
        if all_are_on_their_way.wait(timeout=60) == 0:
            return error(401, "revoked")
        assert is_said.wait(timeout=60)
        return letter_for(call)

    monkeypatch.setattr(asking.log, "warning", warning)
    server.script = script
    refusal = refused(run, capsys, drawn_data, concurrency=3)
    assert "401 Unauthorized (revoked); " in refusal
    assert said == [
        f"stopping: {refusal}; 2 requests on their way have 20 s to be answered, and Ctrl-C gives "
        "them up"
    ]
    assert len(server.calls) == 3
    assert len(lines(Path("o.answers.jsonl"))) == 1 + len(server.answered) == 3


# ---------------------------------------------------------------------------- stopping


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from clipstem.ask.__main__ import main; "
"""Starts in a second: where torch is installed, webdataset imports it."""


class Gate:
    """A script that answers some requests, and holds the others until it is opened: those get
    what comes then."""

    def __init__(self, answered: int, waiting: int, then: Callable[[Call], Answer]) -> None:
        self.left = answered
        self.then = then
        self.waiting = threading.Semaphore(0)
        self.expected = waiting
        self.opened = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, call: Call) -> Answer:
        with self.lock:
            self.left -= 1
            is_held = self.left < 0
        if is_held and not self.opened.is_set():
            self.waiting.release()
            self.opened.wait()
            return self.then(call)
        return letter_for(call)

    def wait(self) -> None:
        """Until all that were to be answered are, and every worker waits for another answer."""
        for _ in range(self.expected):
            assert self.waiting.acquire(timeout=60)


@pytest.mark.parametrize(
    ("number", "status", "kept"),
    [
        (signal.SIGKILL, -9, 9),
        (signal.SIGINT, 130, 9),  # twice, so that nobody waits for those on their way
        (signal.SIGTERM, 75, 12),  # once, and those on their way are waited for
    ],
)
def test_a_run_that_is_stopped_goes_on_without_a_repeated_call(
    number: signal.Signals,
    status: int,
    kept: int,
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
) -> None:
    """A real process; all that was answered was kept, as each worker waits for another answer."""
    lost = Answer(b"", 500, is_good=False)
    then = letter_for if number == signal.SIGTERM else lambda _: lost
    gate = server.script = Gate(answered=9, waiting=3, then=then)
    program = [sys.executable, "-c", f"{WITHOUT_TORCH}main()"]
    words = arguments(drawn_data, server, concurrency=3)
    with subprocess.Popen(
        [*program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        gate.wait()
        process.send_signal(number)
        if number != signal.SIGKILL:
            assert process.stdout is not None
            stopping = f"stopping: {number.name}; 3 requests on their way have 20 s"
            assert any(stopping in line for line in process.stdout)
        if number == signal.SIGTERM:
            gate.opened.set()
        if number == signal.SIGINT:
            process.send_signal(number)
        printed, _ = process.communicate()
    assert process.returncode == status
    if number is not signal.SIGKILL:
        assert f"{kept} answers are kept in o.answers.jsonl: the same command goes on" in printed
        assert "Traceback" not in printed
    assert not Path("o.parquet").exists()
    gate.opened.set()
    found = run(drawn_data, concurrency=3)
    assert Counter(server.answered).most_common(1)[0][1] == 1
    assert len(server.answered) == found.provenance["answers"]
    assert found.provenance["requests"] == found.provenance["answers"] - kept


@pytest.mark.slow
def test_2000_questions_one_call_in_five_failing_and_a_kill(tmp_path: Path) -> None:
    figures = measure_ask.measure(tmp_path, questions=2000)
    assert figures["questions"] == 2000
    assert figures["predicted"] + figures["left_out"] == 2000 and figures["left_out"] <= 20
    assert figures["with_faults"]["requests"] > 2300
    assert figures["with_faults"]["answered"] == figures["without_faults"]["answered"] == 2000
    # Those whose answer was on its way when the process was killed; nobody can know of them.
    assert figures["killed"]["answered_twice"] <= figures["concurrency"]
    assert figures["killed"]["asked_again_though_kept"] == 0
    assert figures["same_as_asked_without_faults"]


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were on their way when the time that they have was over."""
    found: list[int] = []
    give_up = asking.Asking._give_up

    def noted(self: asking.Asking) -> None:
        found.append(self.endpoint.on_their_way)
        give_up(self)

    monkeypatch.setattr(asking.Asking, "_give_up", noted)
    return found


def test_a_wrong_key_ends_the_run_though_others_wait_for_their_turn(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    given_up: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda _: error(401, "bad key")
    said = refused(run, capsys, drawn_data, concurrency=32, requests_per_minute=0.1)
    assert "401 Unauthorized (bad key)" in said
    assert len(server.calls) == 1 and given_up == []


def test_ctrl_c_waits_for_nothing_where_nothing_is_on_its_way(
    run: Callable[..., prediction.Predictions],
    drawn_data: Path,
    server: ChatServer,
    given_up: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting: list[float] = []

    async def wait_for(stopped: Coroutine[Any, Any, bool], seconds: float) -> bool:
        waiting.append(seconds)
        if len(waiting) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return await asyncio.wait_for(stopped, seconds)

    monkeypatch.setattr(endpoint, "wait_for", wait_for)
    server.script = lambda _: error(429, "slow down", **{"Retry-After": "100"})
    with pytest.raises(SystemExit) as ended:
        run(drawn_data, concurrency=3)
    assert ended.value.code == 130
    assert len(server.calls) == 3 and given_up == []
    assert "stopping" not in capsys.readouterr().out

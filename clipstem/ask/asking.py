"""The questions of a split, put to an endpoint: several at a time, each request once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipstem.ask.answers import Answers, key_of
from clipstem.ask.endpoint import Endpoint, Stopped, Unanswered
from clipstem.ask.prompts import NotAsked, read_captions, render
from clipstem.config import AskConfig
from clipstem.question import ClipstemError
from clipstem.shards import Dataset
from clipstem.stopping import SIGNALS, STOPPED

log = logging.getLogger(__name__)

READ_AT_ONCE = 64  # questions
MOST_FAILED_IN_A_ROW = 20  # requests without an answer; then the endpoint is taken to be down
TOP_LOGPROBS = 20  # the most that OpenAI gives
GRACE_SECONDS = 20.0  # for requests on their way; clusters kill 30 s after they ask to stop

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """A request that has no answer yet, and the question that it is made for."""

    key: str
    question: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question as it is asked: what its options are called, and the keys of its requests."""

    id: str
    options: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass
class Asking:
    """A split's questions as a language model gets them.

    Attributes:
        total: how many of the split's questions, from its first.
        asked: those that are asked, by their place in the split.
        skipped: the id of each other one, and why it is not asked or has no answer; by its place.
        without_caption: how many are asked without their problem's picture.
    """

    config: AskConfig
    dataset: Dataset
    endpoint: Endpoint
    captions: dict[str, str]
    total: int
    asked: dict[int, Asked] = field(default_factory=dict)
    skipped: dict[int, tuple[str, str]] = field(default_factory=dict)
    without_caption: int = 0
    _reason_of: dict[str, str] = field(default_factory=dict)
    _failed_in_a_row: int = 0
    _workers: list[asyncio.Task[None]] = field(default_factory=list)
    _failure: Exception | None = None

    @classmethod
    def of(cls, config: AskConfig, dataset: Dataset, endpoint: Endpoint) -> Asking:
        """What the settings say to ask.

        Raises:
            ClipstemError: if there is no such split, or the captions are not as expected.
        """
        size = dataset.size(config.split)
        captions = {} if config.captions is None else read_captions(Path(config.captions))
        return cls(config, dataset, endpoint, captions, min(size, config.questions or size))

    async def run(self, known: Answers, progress: Progress) -> None:
        """Make every request that has no answer yet; `progress` is told of each that has one.

        Where it ends early, no request begins any more, and those on their way, which are paid for,
        have `GRACE_SECONDS` to be answered.

        Raises:
            ClipstemError: if the endpoint cannot be asked at all, or too often does not answer.
            KeyboardInterrupt, SystemExit: if a signal comes, the latter with `STOPPED`.
        """
        jobs = self._jobs(known, progress)  # which all workers take from
        async with self.endpoint:
            with self._stopped_by_signals() as came:
                self._workers = [
                    asyncio.create_task(self._work(jobs, known, progress))
                    for _ in range(self.config.concurrency)
                ]
                await asyncio.wait(self._workers)
        if self._failure is not None:
            raise self._failure
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(STOPPED)
        for place, asked in list(self.asked.items()):
            if not any(key in known for key in asked.keys):
                self.skipped[place] = (asked.id, f"no answer: {self._reason_of[asked.keys[0]]}")
                del self.asked[place]

    async def _work(self, jobs: Iterator[Job], known: Answers, progress: Progress) -> None:
        try:
            while not self.endpoint.stopping.is_set() and (job := next(jobs, None)) is not None:
                try:
                    reply = await self.endpoint.ask(job.body)
                except Unanswered as reason:
                    self._note(job, str(reason))
                else:
                    known.add(job.key, job.question, reply)
                    self._failed_in_a_row = 0
                progress(1)
        except Stopped:
            pass  # was never sent, so nothing is lost: the next run asks for it
        except Exception as error:
            if self._failure is None:
                self._failure = error
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        """Begin no further request, and give up those on their way after a while."""
        if self.endpoint.stopping.is_set():
            return
        self.endpoint.stopping.set()
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up)
        if self.endpoint.on_their_way:
            log.warning(
                "stopping: %s; %d requests on their way have %g s to be answered, and Ctrl-C gives "
                "them up",
                reason,
                self.endpoint.on_their_way,
                GRACE_SECONDS,
            )

    def _give_up(self) -> None:
        for worker in self._workers:
            worker.cancel()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[list[signal.Signals]]:
        """Let Ctrl-C and what clusters send stop it in good order, and the second one at once; the
        block is given what came."""
        came: list[signal.Signals] = []
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            came.append(number)
            if self.endpoint.stopping.is_set():
                self._give_up()
            else:
                self._stop(number.name)

        # Python allows no other thread to listen.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, *SIGNALS) if is_main else ()
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield came
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _jobs(self, known: Answers, progress: Progress) -> Iterator[Job]:
        """The requests without an answer, each once: questions that read the same share it."""
        under_way: set[str] = set()
        for start in range(0, self.total, READ_AT_ONCE):
            places = range(start, min(start + READ_AT_ONCE, self.total))
            for place, question in zip(
                places, self.dataset.read(self.config.split, places), strict=True
            ):
                try:
                    prompt = render(question, self.config, self.captions)
                except NotAsked as reason:
                    self.skipped[place] = (question.id, str(reason))
                    progress(self.config.samples)
                    continue
                body = self._body(prompt.content)
                keys = tuple(
                    key_of(self.endpoint.url, body, sample) for sample in range(self.config.samples)
                )
                self.without_caption += prompt.without_caption
                self.asked[place] = Asked(question.id, prompt.options, keys)
                for key in keys:
                    if key in known or key in under_way:
                        progress(1)
                    else:
                        under_way.add(key)
                        yield Job(key, question.id, body)

    def _body(self, content: str | list[dict[str, Any]]) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            "model": config.model_name,
            "messages": [{"role": "user", "content": content}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        if config.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        given = {name: value for name, value in body.items() if value is not None}
        return given | config.extra_body

    def _note(self, job: Job, reason: str) -> None:
        """Note that a request has no answer.

        Raises:
            ClipstemError: if there are too many.
        """
        self._reason_of[job.key] = reason
        self._failed_in_a_row += 1
        failed, most = len(self._reason_of), self.config.max_failed_fraction
        if failed > most * self.total * self.config.samples:
            said = f"more than max_failed_fraction={most:g} of all"
        elif self._failed_in_a_row >= MOST_FAILED_IN_A_ROW:
            said = "one after the other"
        else:
            return
        raise ClipstemError(
            f"{self.endpoint.url}: {failed:,} requests have no answer, {said}; the last, for "
            f"question '{job.question}': {reason}"
        )

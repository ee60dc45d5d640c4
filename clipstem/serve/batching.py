"""Questions that arrive together are scored together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clipstem.engine import Engine
from clipstem.memory import Memory
from clipstem.question import Picture
from clipstem.serve.requests import ApiError, Asked

Probabilities = NDArray[np.float64]
Waiting = tuple[Asked, "asyncio.Future[Probabilities]", float, bool]
"""A question, who waits for it, since when (the loop's clock), and whether it is a probe."""

PICTURES_A_QUESTION = 4  # in the mean of a batch, so that its memory has a bound

log = logging.getLogger(__name__)


class Batcher:
    """Scores in one batch what has arrived, and what is on its way for at most `max_wait_seconds`.

    Who is alone waits for nobody. While a batch is scored the next one collects. `run` must be
    running for `score` to end.

    Attributes:
        observe: told of each batch's questions and seconds.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch: int,
        max_wait_seconds: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda questions, seconds: None,
    ) -> None:
        self.engine = engine
        self.max_batch, self.max_queue = max_batch, max_queue
        self.max_wait_seconds = max_wait_seconds
        self.observe = observe
        self._memory = Memory()
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._on_their_way = 0

    @contextlib.contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Around reading a question: what has arrived already may wait for it."""
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1
            self._arrived.set()

    @property
    def waiting(self) -> int:
        """Questions that no batch has taken yet; probes do not count."""
        return sum(not is_probe for _, _, _, is_probe in self._queue)

    async def probe(self, asked: Asked) -> Probabilities:
        """Of a question that waits like any other, in a full queue too, and is encoded anew."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Probabilities] = loop.create_future()
        self._queue.append((asked, future, loop.time(), True))
        self._arrived.set()
        return await future

    async def score(self, asked: Sequence[Asked]) -> list[Probabilities]:
        """The probabilities of each question's options.

        Raises:
            ApiError: 429 if too many are waiting; 500 for a question that cannot be scored.
        """
        if self.waiting + len(asked) > self.max_queue:
            raise ApiError(
                429,
                f"{self.waiting} questions are waiting, at most {self.max_queue} may; ask again",
                {"Retry-After": "1"},
            )
        loop = asyncio.get_running_loop()
        waiting: list[Waiting] = [(it, loop.create_future(), loop.time(), False) for it in asked]
        self._queue.extend(waiting)
        self._arrived.set()
        return await asyncio.gather(*(future for _, future, _, _ in waiting))

    async def run(self) -> None:
        """Score what arrives, until cancelled."""
        loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()  # belongs to this loop
        with ThreadPoolExecutor(1, "score") as thread:
            while True:
                batch = await self._collected()
                if not batch:
                    continue
                started = time.perf_counter()
                asked = [it for it, _, _, _ in batch]
                # A probe is alone in its batch; what is remembered would prove nothing.
                memory = Memory() if batch[0][3] else self._memory
                made = await loop.run_in_executor(thread, self._scored, asked, memory)
                for (_, future, _, _), found in zip(batch, made, strict=True):
                    if future.done():  # nobody waits for it any more
                        continue
                    if isinstance(found, Exception):
                        future.set_exception(found)
                    else:
                        future.set_result(found)
                self.observe(len(batch), time.perf_counter() - started)

    async def _collected(self) -> list[Waiting]:
        """The next batch: full, or nobody is on the way, or its first question waited enough."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if self._queue[0][3]:
            return [self._queue.popleft()]
        loop = asyncio.get_running_loop()
        until = self._queue[0][2] + self.max_wait_seconds
        while self._on_their_way and len(self._queue) < self.max_batch:
            left = until - loop.time()
            if left <= 0:
                break
            if any(is_probe for _, _, _, is_probe in self._queue):
                break
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                break
        taken: list[Waiting] = []
        pictures = 0
        while self._queue and not self._queue[0][3] and len(taken) < self.max_batch:
            pictures += len(self._queue[0][0].pixels)
            if taken and pictures > PICTURES_A_QUESTION * self.max_batch:
                break
            taken.append(self._queue.popleft())
        return [it for it in taken if not it[1].done()]

    def _scored(self, batch: list[Asked], memory: Memory) -> list[Probabilities | Exception]:
        """Of each question its probabilities, or what is wrong with it."""
        try:
            return [*self._together(batch, memory)]
        except Exception as error:
            if len(batch) > 1:  # one of them may be at fault, the others are not
                return [it for asked in batch for it in self._scored([asked], memory)]
            log.exception("a question could not be scored")
            return [ApiError(500, f"the question could not be scored ({type(error).__name__})")]

    def _together(self, batch: list[Asked], memory: Memory) -> list[Probabilities]:
        pixels = {sha256: it for asked in batch for sha256, it in asked.pixels.items()}

        def decode(picture: Picture) -> NDArray[np.uint8]:
            return pixels[picture.sha256]

        return self.engine.score_questions([asked.question for asked in batch], decode, memory)

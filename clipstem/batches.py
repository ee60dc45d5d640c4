"""Batches for a model as NumPy arrays, of any prepared data set, for both engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from clipstem.images import PictureSpec, change_mildly, to_pixels, warm_up
from clipstem.pairs import BrokenQuestion, PairBatch, collate
from clipstem.question import ClipstemError, Kind, Picture, ProblemPicture, Question
from clipstem.shards import Dataset
from clipstem.tokens import Tokenizer

NOBODY = -1  # a place of a batch without a question
AHEAD = 4  # batches that are ready before they are asked for


@dataclass(frozen=True)
class Batches:
    """Part `n % parts` of global batch `n // parts`: a function of n alone.

    `order_SN` holds numbers of questions within the split, `NOBODY` where a batch is not full. A
    question's weight is 1 / (questions of its global batch), so that the parts' losses add up to
    the mean over the batch. A part without any question gets one of weight 0 and without an id, so
    that every part has something to run. A question with a picture that does not decode leaves its
    place empty, and the batch names it.

    Attributes:
        change_seed: pictures are changed mildly, by this seed, the step and the picture; None
            leaves them as they are.
        decodes: False gives one pixel for each picture, for a model that knows them by their keys.
    """

    dataset: Dataset
    split: str
    order_SN: NDArray[np.int64]
    tokenizer: Tokenizer
    spec: PictureSpec
    problem_picture: ProblemPicture
    parts: int = 1
    change_seed: int | None = None
    decodes: bool = True

    def __len__(self) -> int:
        return len(self.order_SN) * self.parts

    def __getitem__(self, number: int) -> PairBatch:
        warm_up()
        step = number // self.parts
        batch_N = self.order_SN[step]
        part_Q = batch_N[number % self.parts :: self.parts]
        here_Q = part_Q != NOBODY
        if not here_Q.any():
            part_Q = np.where(np.arange(len(part_Q)) == 0, batch_N[0], NOBODY)
        read = iter(self.dataset.read(self.split, part_Q[part_Q != NOBODY]))
        batch = self._whole([None if it == NOBODY else next(read) for it in part_Q], step)
        weight_Q = (here_Q / (batch_N != NOBODY).sum()).astype(np.float32)
        ids = tuple(id if here else "" for id, here in zip(batch.ids, here_Q, strict=True))
        return replace(batch, ids=ids, weight_Q=batch.weight_Q * weight_Q)

    def _whole(self, questions: list[Question | None], step: int) -> PairBatch:
        """The batch without its broken questions.

        Raises:
            ClipstemError: if there is no other.
        """
        pixels = cache(partial(self._pixels, step))  # those that are whole are decoded once
        skipped: list[tuple[str, str]] = []
        while True:
            try:
                batch = collate(questions, self.tokenizer, pixels, self.problem_picture)
            except BrokenQuestion as broken:
                question = questions[broken.place]
                assert question is not None
                skipped.append((question.id, broken.reason))
                questions[broken.place] = None
                if not any(questions):
                    # Plain: what comes from a worker is made again from its text alone.
                    raise ClipstemError(f"{broken}; its batch has no other question") from broken
            else:
                return replace(batch, skipped=tuple(skipped))

    def _pixels(self, step: int, picture: Picture) -> NDArray[np.uint8]:
        if not self.decodes:
            return np.zeros((1, 1, 3), np.uint8)
        pixels_HWC = to_pixels(picture.data, self.spec)
        if self.change_seed is None:
            return pixels_HWC
        return change_mildly(pixels_HWC, self.change_seed, step, int(picture.sha256[:16], 16))


def read_ahead(batches: Batches) -> Iterator[PairBatch]:
    """The batches in order, made by a thread while the one before is scored."""
    with ThreadPoolExecutor(1) as thread:
        made: deque[Future[PairBatch]] = deque()
        try:
            for number in range(len(batches)):
                made.append(thread.submit(batches.__getitem__, number))
                if len(made) > AHEAD:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for waiting in made:
                waiting.cancel()


def usable(dataset: Dataset, split: str, answered: bool) -> NDArray[np.bool_]:
    """Which questions of a split CLIP can score: those with a picture, and with an answer if asked.

    One flag for each question, in the split's order.
    """
    index = dataset.index(split)
    flags = np.asarray(index["kind"].to_pylist(), dtype=object) != Kind.TEXT_ONLY.value
    if answered:
        flags &= index["answer"].to_numpy() >= 0
    return flags


def has_answers(dataset: Dataset, split: str) -> bool:
    """Whether a split is there with a question that CLIP can score and whose answer is known."""
    return split in dataset.manifest.questions and bool(usable(dataset, split, answered=True).any())


def batched(numbers: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Numbers in rows of `batch_size`, [steps, batch_size], the last filled with `NOBODY`."""
    filling = np.full(-len(numbers) % batch_size, NOBODY, np.int64)
    return np.concatenate([numbers, filling]).reshape(-1, batch_size)

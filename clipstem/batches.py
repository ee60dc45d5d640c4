"""Batches for a model as NumPy arrays, of any prepared data set, for both engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from clipstem.images import PictureSpec, change_mildly, to_pixels, warm_up
from clipstem.pairs import BrokenQuestion, PairBatch, collate
from clipstem.question import (
    UNKNOWN_ANSWER,
    ClipstemError,
    Kind,
    Picture,
    ProblemPicture,
    Question,
)
from clipstem.shards import Dataset
from clipstem.supervision import Supervision
from clipstem.tokens import Tokenizer

NOBODY = -1  # a place of a batch without a question
AHEAD = 4  # batches that are ready before they are asked for


@dataclass(frozen=True)
class Batches:
    """Part `n % parts` of global batch `n // parts`: a function of n alone.

    `order_SN` holds numbers of questions within the split, `NOBODY` where a batch is not full. A
    question's weight is its share of its global batch, 1 / (the batch's questions) where
    `supervision` does not weigh them, so that the parts' losses add up to the mean over the batch.
    A question with a picture that does not decode leaves its place empty, and the batch names it.
    A part that has no question is filled with one of weight 0 and without an id, so that every part
    has something to run.

    Attributes:
        change_seed: pictures are changed mildly, by this seed, the step and the picture; None
            leaves them as they are.
        decodes: False gives one pixel for each picture, for a model that knows them by their keys.
        broken: questions, by id, that are known to have a picture which does not decode, and why.
        supervision: which labels the batches show, teachers' probabilities, and weights; None shows
            every label.
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
    broken: Mapping[str, str] = field(default_factory=dict)
    supervision: Supervision | None = None

    def __len__(self) -> int:
        return len(self.order_SN) * self.parts

    def __getitem__(self, number: int) -> PairBatch:
        warm_up()
        step = number // self.parts
        batch_N = self.order_SN[step]
        part_Q = batch_N[number % self.parts :: self.parts]
        read = iter(self.dataset.read(self.split, part_Q[part_Q != NOBODY]))
        batch, skipped = self._whole([None if it == NOBODY else next(read) for it in part_Q], step)
        if batch is None:
            batch = self._filling(step, len(part_Q), skipped)
        weight_Q = self._weights(batch_N)[number % self.parts :: self.parts]
        batch = replace(batch, weight_Q=batch.weight_Q * weight_Q, skipped=tuple(skipped))
        return batch if self.supervision is None else _supervised(batch, part_Q, self.supervision)

    def _weights(self, batch_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Each place's share of its global batch, sum 1; fp32."""
        weight_N = (batch_N != NOBODY).astype(np.float64)
        if self.supervision is not None:
            weight_N *= self.supervision.weight_N[batch_N]
            weight_N /= weight_N.max()  # so that no sum is too large for a float
        return (weight_N / weight_N.sum()).astype(np.float32)

    def _whole(
        self, questions: list[Question | None], step: int
    ) -> tuple[PairBatch | None, list[tuple[str, str]]]:
        """The batch without its broken questions, None if there is no other, and which they are."""
        pixels = cache(partial(self._pixels, step))  # those that are whole are decoded once
        skipped: list[tuple[str, str]] = []

        def leave_out(place: int, reason: str) -> None:
            question = questions[place]
            assert question is not None
            skipped.append((question.id, reason))
            questions[place] = None

        for place, question in enumerate(questions):
            if question is not None and question.id in self.broken:
                leave_out(place, self.broken[question.id])
        while any(questions):
            try:
                return collate(questions, self.tokenizer, pixels, self.problem_picture), skipped
            except BrokenQuestion as broken:
                leave_out(broken.place, broken.reason)
        return None, skipped

    def _filling(self, step: int, size: int, skipped: Sequence[tuple[str, str]]) -> PairBatch:
        """A batch of the first question at hand, of the same global batch if it may be.

        Raises:
            ClipstemError: if no question has pictures that decode.
        """
        others = np.concatenate([self.order_SN[step:], self.order_SN[:step]]).ravel()
        if self.decodes:  # else only those of the batches are known
            others = np.append(
                others, usable(self.dataset, self.split, answered=False).nonzero()[0]
            )
        for number in dict.fromkeys(others[others != NOBODY].tolist()):
            (question,) = self.dataset.read(self.split, [number])
            batch, _ = self._whole([question, *[None] * (size - 1)], step)
            if batch is not None:
                return replace(batch, ids=("",) * size, weight_Q=0 * batch.weight_Q)
        id, reason = skipped[-1]
        # Plain: what comes from a worker is made again from its text alone.
        raise ClipstemError(
            f"question '{id}': a picture {reason}; '{self.split}' has no other question that could "
            "be read"
        )

    def _pixels(self, step: int, picture: Picture) -> NDArray[np.uint8]:
        if not self.decodes:
            return np.zeros((1, 1, 3), np.uint8)
        pixels_HWC = to_pixels(picture.data, self.spec)
        if self.change_seed is None:
            return pixels_HWC
        return change_mildly(pixels_HWC, self.change_seed, step, int(picture.sha256[:16], 16))


def _supervised(
    batch: PairBatch, numbers_Q: NDArray[np.int64], supervision: Supervision
) -> PairBatch:
    """The batch with the labels that may be used and what teachers say of its questions."""
    is_there_Q = np.array([id != "" for id in batch.ids])
    answer_Q = np.where(supervision.labelled_N[numbers_Q], batch.answer_Q, UNKNOWN_ANSWER)
    if supervision.teacher_NK is None:
        return replace(batch, answer_Q=answer_Q)
    teacher_QK = supervision.teacher_NK[numbers_Q, : batch.cell_QK.shape[1]]
    return replace(batch, answer_Q=answer_Q, teacher_QK=teacher_QK * is_there_Q[:, None])


def read_ahead(batches: Batches, numbers: Sequence[int], threads: int) -> Iterator[PairBatch]:
    """The batches of these numbers in order, made by threads while those before are used."""
    if not threads:
        yield from map(batches.__getitem__, numbers)
        return
    pool = ThreadPoolExecutor(threads)
    made: deque[Future[PairBatch]] = deque()
    try:
        for number in numbers:
            made.append(pool.submit(batches.__getitem__, number))
            if len(made) > max(AHEAD, threads):
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        # Nobody waits for those that are being made: it may be one of the threads that ends this.
        pool.shutdown(wait=False, cancel_futures=True)


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

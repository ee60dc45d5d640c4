"""What every engine does with a model that scores questions: ask one, ask a split, calibrate.

Q questions, K most options.
"""

from __future__ import annotations

import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipstem import metrics
from clipstem.batches import Batches, batched, usable
from clipstem.config import TrainerConfig
from clipstem.images import PictureSpec, to_pixels
from clipstem.memory import Memory
from clipstem.packing import Array
from clipstem.pairs import LOWEST_LOGIT, PairBatch, collate
from clipstem.prediction import COLUMNS, Predictions
from clipstem.question import ClipstemError, Picture, ProblemPicture, Question
from clipstem.shards import Dataset
from clipstem.tokens import Tokenizer

PictureLike = str | Path | bytes | Image.Image
"""A picture for `Engine.score`: a file's path, an encoded file's bytes, or a PIL picture."""

Progress = Callable[[int], None]
"""Called with the number of questions that were just done."""

ALL = slice(None)


class Engine(ABC):
    """A model that scores questions, and the temperature that calibrates it.

    Attributes:
        temperature: divides the logits.
        problem_picture: what the problem's picture does where the options are pictures.
        provenance: what predictions say of where they come from.
        max_skipped_fraction: share of a split's questions that may have broken pictures.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        problem_picture: ProblemPicture = ProblemPicture.added,
        provenance: dict[str, Any] | None = None,
        max_skipped_fraction: float = TrainerConfig.max_skipped_fraction,
    ) -> None:
        self.temperature = temperature
        self.problem_picture = problem_picture
        self.provenance = provenance or {}
        self.max_skipped_fraction = max_skipped_fraction

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """How texts become tokens."""

    @property
    @abstractmethod
    def spec(self) -> PictureSpec:
        """How pictures become pixels."""

    @abstractmethod
    def scored(
        self, batches: Iterable[PairBatch], memory: Memory
    ) -> Iterator[tuple[PairBatch, Array]]:
        """Each batch with its logits_QK, fp32; what `memory` holds is not encoded again."""

    @abstractmethod
    def load(self, batches: Batches) -> Iterable[PairBatch]:
        """The batches as `scored` takes them, made ahead of need."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What predictions say of the model itself: `weights_sha256`, `parameters`, `device`."""

    def score(
        self, picture: PictureLike | None, question: str, options: Sequence[PictureLike]
    ) -> NDArray[np.float64]:
        """The probability of each option of one question, [K], sum 1.

        Strings in `options` are texts when there is a `picture`; without one, options are
        pictures. With a picture, options that are paths, bytes or PIL pictures (no strings) are
        pictures on a picture.

        Raises:
            ClipstemError: if this is no question that CLIP can score.
        """
        texts = [option for option in options if isinstance(option, str)]
        if picture is not None and len(texts) == len(options):
            answers: tuple[str, ...] | tuple[Picture, ...] = tuple(texts)
        else:
            answers = tuple(_picture(option) for option in options)
        asked = Question(
            id=question[:40],
            subject="",
            grade="",
            skill="",
            problem=question,
            picture=None if picture is None else _picture(picture),
            options=answers,
        )
        return self.score_questions([asked])[0]

    def score_questions(
        self,
        questions: Sequence[Question],
        decode: Callable[[Picture], NDArray[np.uint8]] | None = None,
        memory: Memory | None = None,
    ) -> list[NDArray[np.float64]]:
        """The probability of each option of each question, scored together.

        `decode` gives the pixels of a picture, for who has made them; a `memory` of these weights
        may know some pictures and texts.

        Raises:
            ClipstemError: naming the question that CLIP cannot score.
        """
        batch = collate(questions, self.tokenizer, decode or self._decode, self.problem_picture)
        ((_, logits_QK),) = self.scored([batch], memory or Memory())
        num_options_Q = np.array([len(question.options) for question in questions])
        probs_QK = metrics.probabilities(_on_host(logits_QK), num_options_Q, self.temperature)
        return [probs_QK[place, :count] for place, count in enumerate(num_options_Q)]

    def predict(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        progress: Progress = lambda questions: None,
        memory: Memory | None = None,
        chosen: slice = ALL,
    ) -> Predictions:
        """Predictions for every question of a split that CLIP can score, in the split's order.

        Each distinct picture and text is encoded once; a `memory` of these weights may know some.
        `chosen` are places among the questions that can be scored: the others are left out. So
        are those with a picture that does not decode, which `Predictions.skipped` names.

        Raises:
            ClipstemError: if these are more than `max_skipped_fraction`.
        """
        flags = usable(dataset, split, answered=False)
        numbers = np.flatnonzero(flags)[chosen]
        index = dataset.index(split).take(numbers)
        num_options_Q = index["num_options"].to_numpy()
        logits_QK = np.full((len(numbers), num_options_Q.max(initial=1)), LOWEST_LOGIT, np.float32)
        truncated_Q = np.zeros(len(numbers), np.int64)
        order_SN = batched(numbers, batch_size)
        batches = Batches(dataset, split, order_SN, self.tokenizer, self.spec, self.problem_picture)
        skipped: list[tuple[str, str]] = []
        started, done = time.perf_counter(), 0
        for batch, batch_logits in self.scored(self.load(batches), memory or Memory()):
            here = slice(done, min(done + batch_size, len(numbers)))
            count = here.stop - here.start
            logits_QK[here, : batch_logits.shape[1]] = _on_host(batch_logits)[:count]
            truncated_Q[here] = np.asarray(batch.truncated_Q)[:count]
            skipped += batch.skipped
            self.refuse_too_many(skipped, int(flags.sum()), split)
            done = here.stop
            progress(count)
        seconds = time.perf_counter() - started
        if skipped:
            kept = ~np.isin(index["id"].to_pylist(), [id for id, _ in skipped])
            index, num_options_Q = index.filter(kept), num_options_Q[kept]
            logits_QK, truncated_Q = logits_QK[kept], truncated_Q[kept]
        columns = {name: index[name].to_pylist() for name in COLUMNS if name in index.column_names}
        return Predictions(
            columns={**columns, "truncated_tokens": truncated_Q.tolist()},
            probs_QK=metrics.probabilities(logits_QK, num_options_Q, self.temperature),
            logits_QK=logits_QK,
            skipped=tuple(skipped),
            provenance={
                **self.provenance,
                **self.facts(),
                "data": dataset.location,
                "data_sha256": dataset.manifest.data_sha256,
                "split": split,
                "temperature": self.temperature,
                "problem_picture": self.problem_picture.value,
                "picture_fit": self.spec.fit.value,
                "perturbation": dataset.perturbation,
                "without_picture": int((~flags).sum()),
                "skipped": len(skipped),
                "max_skipped_fraction": self.max_skipped_fraction,
                "source_rows": dataset.manifest.source_rows.get(split, len(flags)),
                "seconds": round(seconds, 3),
            },
        )

    def refuse_too_many(
        self, skipped: Sequence[tuple[str, str]], questions: int, split: str
    ) -> None:
        """Refuse broken pictures that are too many of a split's questions; of few, one may be.

        Raises:
            ClipstemError: naming the last one.
        """
        if len(skipped) > self.max_skipped_fraction * max(questions, 100):
            id, reason = skipped[-1]
            raise ClipstemError(
                f"{split}: {len(skipped):,} of {questions:,} questions have broken pictures, more "
                f"than trainer.max_skipped_fraction={self.max_skipped_fraction:g}; question "
                f"'{id}': a picture {reason}; prepare the data again with verify=decode"
            )

    def calibrate(self, tune: Predictions) -> float:
        """Set the temperature to the one that fits the predictions for `tune`; returns it."""
        self.temperature = metrics.fit_temperature(tune.logits_QK, tune.answer_Q)
        return self.temperature

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        return to_pixels(picture.data, self.spec)


def _on_host(array: Array) -> NDArray[np.float32]:
    return array.cpu().numpy() if hasattr(array, "cpu") else array


def _picture(picture: PictureLike) -> Picture:
    if isinstance(picture, bytes):
        return Picture.of(picture)
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        keeps = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # PNG has no other modes
        (picture if picture.mode in keeps else picture.convert("RGB")).save(buffer, "png")
        return Picture.of(buffer.getvalue())
    try:
        return Picture.of(Path(picture).read_bytes())
    except OSError as error:
        raise ClipstemError(f"the picture {picture} cannot be read: {error.strerror}") from error

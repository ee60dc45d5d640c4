"""Scoring with torch: batches in, option probabilities out. Also behind `clipstem.load`.

Q questions, K most options.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipstem import loader, metrics, pairs, run, towers
from clipstem.config import ModelConfig, Precision, TrainerConfig, model_config
from clipstem.images import to_pixels
from clipstem.memory import Memory
from clipstem.pairs import LOWEST_LOGIT, PairBatch
from clipstem.prediction import COLUMNS, Predictions
from clipstem.question import ClipstemError, Picture, ProblemPicture, Question
from clipstem.shards import Dataset
from clipstem.towers import Towers

PictureLike = str | Path | bytes | Image.Image
"""A picture for `Scorer.score`: a file's path, an encoded file's bytes, or a PIL picture."""

Progress = Callable[[int], None]
"""Called with the number of questions that were just done."""


class Scorer:
    """A model, the temperature that calibrates it, and where it runs.

    Attributes:
        weights_sha256: the weights' hash, where it is known and they stay; else `predict` takes it.
    """

    def __init__(
        self,
        model: Towers,
        trainer: TrainerConfig,
        temperature: float = 1.0,
        problem_picture: ProblemPicture = ProblemPicture.added,
        provenance: dict[str, Any] | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        self.trainer = trainer
        self.device = device_of(trainer.device)
        if trainer.threads is not None:
            torch.set_num_threads(trainer.threads)
        self.model = model.to(self.device)
        self.temperature = temperature
        self.problem_picture = problem_picture
        self.provenance = provenance or {}
        self.weights_sha256 = weights_sha256

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
        batch = pairs.collate([asked], self.model.tokenizer, self._decode, self.problem_picture)
        logits_QK = self.logits(batch.map(torch.from_numpy)).cpu().numpy()
        probs_QK = metrics.probabilities(logits_QK, np.array([len(options)]), self.temperature)
        return probs_QK[0]

    def logits(self, batch: PairBatch) -> Tensor:
        """logits_QK of a batch of tensors, before the temperature, fp32."""
        ((_, logits_QK),) = self.scored([batch], Memory())
        return logits_QK

    def scored(
        self, batches: Iterable[PairBatch], memory: Memory
    ) -> Iterator[tuple[PairBatch, Tensor]]:
        """Each batch with its logits_QK; what `memory` holds is not encoded again.

        In bf16 the weights are cast once, here: casting them in every product made scoring on a
        CPU slower than fp32.
        """
        # Where it was trained, Lightning has left it on the host.
        model = self.model.to(self.device)
        if self.trainer.precision is Precision.bf16:
            model = copy.deepcopy(model)
            model.model.bfloat16()
        was_training = model.training
        model.eval()
        try:
            for batch in batches:
                # fp32 is computed without shortcuts, so that scores are the reference's.
                tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
                with torch.inference_mode(), tf32:
                    logits_QK = self._logits(model, batch, memory)
                yield batch, logits_QK
        finally:
            model.train(was_training)

    def _logits(self, model: Towers, batch: PairBatch, memory: Memory) -> Tensor:
        image_ID = memory.recall(batch.pictures, partial(model.embed_pictures, batch))
        texts = [text.tokens for text in batch.joined]
        text_UD = memory.recall(texts, partial(model.embed_texts, batch))
        there = replace(batch, pixels_IHWC=batch.pixels_IHWC[:0]).map(
            lambda array: array.to(self.device, non_blocking=True)
        )
        cosine_VI = pairs.cosines(there, image_ID, text_UD)
        return pairs.score(there, cosine_VI, self.model.scale.float())  # no cast has rounded it

    def predict(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        progress: Progress = lambda questions: None,
        memory: Memory | None = None,
    ) -> Predictions:
        """Predictions for every question of a split that CLIP can score, in the split's order.

        Each distinct picture and text is encoded once; a `memory` of these weights may know some.
        """
        flags = loader.usable(dataset, split, answered=False)
        numbers = np.flatnonzero(flags)
        index = dataset.index(split).take(numbers)
        num_options_Q = index["num_options"].to_numpy()
        logits_QK = np.full((len(numbers), num_options_Q.max(initial=1)), LOWEST_LOGIT, np.float32)
        truncated_Q = np.zeros(len(numbers), np.int64)
        batches = loader.Batches(
            dataset,
            split,
            loader.batched(numbers, batch_size),
            self.model.tokenizer,
            self.model.spec,
            self.problem_picture,
        )
        started, done = time.perf_counter(), 0
        made = loader.load(batches, self.trainer.workers, pin=self.device.type == "cuda")
        for batch, batch_logits in self.scored(made, memory or Memory()):
            here = slice(done, min(done + batch_size, len(numbers)))
            count = here.stop - here.start
            logits_QK[here, : batch_logits.shape[1]] = batch_logits[:count].cpu().numpy()
            truncated_Q[here] = batch.truncated_Q.numpy()[:count]
            done = here.stop
            progress(count)
        seconds = time.perf_counter() - started
        columns = {name: index[name].to_pylist() for name in COLUMNS if name in index.column_names}
        return Predictions(
            columns={**columns, "truncated_tokens": truncated_Q.tolist()},
            probs_QK=metrics.probabilities(logits_QK, num_options_Q, self.temperature),
            logits_QK=logits_QK,
            provenance={
                **self.provenance,
                "weights_sha256": self.weights_sha256 or self.model.weights_sha256(),
                "parameters": sum(weight.numel() for weight in self.model.parameters()),
                "data": dataset.location,
                "data_sha256": dataset.manifest.data_sha256,
                "split": split,
                "temperature": self.temperature,
                "problem_picture": self.problem_picture.value,
                "picture_fit": self.model.spec.fit.value,
                "perturbation": dataset.perturbation,
                "without_picture": int((~flags).sum()),
                "source_rows": dataset.manifest.source_rows.get(split, len(flags)),
                "device": device_name(self.device),
                "seconds": round(seconds, 3),
            },
        )

    def calibrate(self, tune: Predictions) -> float:
        """Set the temperature to the one that fits the predictions for `tune`; returns it."""
        self.temperature = metrics.fit_temperature(tune.logits_QK, tune.answer_Q)
        return self.temperature

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        return to_pixels(picture.data, self.model.spec)


def load(source: str | Path, device: str = "auto") -> Scorer:
    """A scorer from a finished run's folder, a folder of open_clip weights, or a model's name.

    A name is a file of `conf/model` (such as `vit_b32`) or anything that open_clip knows.

    Raises:
        ClipstemError: if there is nothing of the kind.
    """
    trainer = TrainerConfig(device=device)
    folder = Path(source)
    if (folder / "run.json").is_file():
        return of_run(folder, trainer)
    if (folder / towers.CONFIG_FILE).is_file():
        return of_model(ModelConfig(name=f"local-dir:{source}"), trainer)
    if folder.is_dir() or (len(folder.parts) > 1 and ":" not in str(source)):
        raise ClipstemError(
            f"{source}: is neither a run (run.json) nor a folder of weights ({towers.CONFIG_FILE})"
        )
    return of_model(model_config(str(source)), trainer)


def of_run(folder: Path, trainer: TrainerConfig) -> Scorer:
    """The scorer that a finished run has made: its weights, temperature and settings."""
    done = run.finished(folder)
    facts = done.facts
    model = towers.create(ModelConfig(name=f"local-dir:{done.weights}"))
    if (found := model.weights_sha256()) != facts["weights_sha256"]:
        raise ClipstemError(
            f"{done.weights}: are not the weights that the run wrote (sha256 {found[:12]}…, "
            f"expected {facts['weights_sha256'][:12]}…); copy the run again"
        )
    return Scorer(
        model,
        trainer,
        temperature=facts["temperature"],
        problem_picture=ProblemPicture(facts["problem_picture"]),
        provenance={
            "run": str(folder),
            "model": facts["model"],
            "train_questions_of_skill": facts["train_questions_of_skill"],
            "train_perturb": facts.get("perturb"),
        },
        weights_sha256=facts["weights_sha256"],
    )


def of_model(model: ModelConfig, trainer: TrainerConfig, seed: int = 0) -> Scorer:
    """A scorer for a model as it comes, with temperature 1."""
    return Scorer(
        towers.create(model, seed),
        trainer,
        problem_picture=model.problem_picture,
        provenance={"run": None, "model": model.name, "pretrained": model.pretrained},
    )


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


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        ClipstemError: for a name that torch does not know, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ClipstemError(
            f"conf key 'trainer.device': '{name}' is no device; expected auto, cpu or cuda"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise ClipstemError(
            "conf key 'trainer.device': torch sees no CUDA device here; expected auto or cpu"
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"

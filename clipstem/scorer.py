"""Scoring with torch: batches in, option probabilities out.

Q questions, K most options.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipstem import loader, pairs, prediction, ranks, run, towers
from clipstem.batches import Batches, usable
from clipstem.command import model_config
from clipstem.config import ModelConfig, Precision, TrainerConfig
from clipstem.engine import ALL, Engine, Progress
from clipstem.images import PictureSpec
from clipstem.memory import Memory
from clipstem.pairs import PairBatch
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError, ProblemPicture
from clipstem.shards import Dataset
from clipstem.tokens import Tokenizer
from clipstem.towers import Towers


class Scorer(Engine):
    """A model, the temperature that calibrates it, and where it runs.

    Attributes:
        weights_sha256: the weights' hash, where it is known and they stay; else `facts` takes it.
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
        super().__init__(temperature, problem_picture, provenance, trainer.max_skipped_fraction)
        self.trainer = trainer
        self.device = device_of(trainer.device)
        if trainer.threads is not None:
            torch.set_num_threads(trainer.threads)
        self.model = model.to(self.device)
        self.weights_sha256 = weights_sha256
        self._half: Towers | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def spec(self) -> PictureSpec:
        return self.model.spec

    def load(self, batches: Batches) -> Iterable[PairBatch]:
        return loader.load(batches, self.trainer.workers, self.device)

    def facts(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.weights_sha256 or self.model.weights_sha256(),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "device": device_name(self.device),
        }

    def predict(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        progress: Progress = lambda questions: None,
        memory: Memory | None = None,
        chosen: slice = ALL,
    ) -> Predictions:
        """As every engine does; ranks share the work, and each gets all of it."""
        if (world := ranks.world()) == 1:
            return super().predict(dataset, split, batch_size, progress, memory, chosen)
        places = range(int(usable(dataset, split, answered=False).sum()))[chosen]
        own = places[
            len(places) * ranks.rank() // world : len(places) * (ranks.rank() + 1) // world
        ]
        part = super().predict(
            dataset,
            split,
            batch_size,
            lambda questions: progress(questions * world),  # the others are as fast
            memory,
            slice(own.start, own.stop, own.step),
        )
        whole = prediction.joined(ranks.gathered(part))
        self.refuse_too_many(whole.skipped, len(places), split)
        return whole

    def logits(self, batch: PairBatch) -> Tensor:
        """logits_QK of a batch, before the temperature, fp32."""
        ((_, logits_QK),) = self.scored([batch], Memory())
        return logits_QK

    def scored(
        self, batches: Iterable[PairBatch], memory: Memory
    ) -> Iterator[tuple[PairBatch, Tensor]]:
        """Each batch with its logits_QK; what `memory` holds is not encoded again.

        In bf16 a copy computes, whose weights are prepared beforehand: casting them in every
        product made scoring on a CPU slower than fp32.
        """
        model = self._in_precision()
        was_training = model.training
        model.eval()
        try:
            for batch in batches:
                # fp32 is computed without shortcuts, so that scores are the reference's.
                tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
                with torch.inference_mode(), tf32:
                    logits_QK = self._logits(model, batch.map(torch.as_tensor), memory)
                yield batch, logits_QK
        finally:
            model.train(was_training)

    def _in_precision(self) -> Towers:
        """The model where it runs; in bf16 a copy, kept if the weights stay as they are."""
        # Where it was trained, Lightning has left it on the host.
        model = self.model.to(self.device)
        if self.trainer.precision is not Precision.bf16:
            return model
        half = self._half or model.in_bf16()
        if self.weights_sha256 is not None:
            self._half = half
        return half

    def _logits(self, model: Towers, batch: PairBatch, memory: Memory) -> Tensor:
        image_ID = memory.recall(batch.pictures, partial(model.embed_pictures, batch))
        texts = [text.tokens for text in batch.joined]
        text_UD = memory.recall(texts, partial(model.embed_texts, batch))
        there = replace(batch, pixels_IHWC=batch.pixels_IHWC[:0]).map(
            lambda array: array.to(self.device, non_blocking=True)
        )
        cosine_VI = pairs.cosines(there, image_ID, text_UD)
        return pairs.score(there, cosine_VI, self.model.scale.float())  # no cast has rounded it


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
            f"{source}: is neither a run (run.json), a bundle (bundle.json) nor a folder of "
            f"weights ({towers.CONFIG_FILE})"
        )
    return of_model(model_config(str(source)), trainer)


def of_run(folder: Path, trainer: TrainerConfig) -> Scorer:
    """The scorer that a finished run has made: its weights, temperature and settings."""
    done = run.finished(folder)
    made = _facts(done)
    model = towers.create(ModelConfig(name=f"local-dir:{done.weights}"))
    if (found := model.weights_sha256()) != made.weights_sha256:
        raise ClipstemError(
            f"{done.weights}: are not the weights that the run wrote (sha256 {found[:12]}…, "
            f"expected {made.weights_sha256[:12]}…); copy the run again"
        )
    return Scorer(
        model,
        trainer,
        temperature=made.temperature,
        problem_picture=ProblemPicture(made.problem_picture),
        provenance={
            "run": str(folder),
            "model": made.model,
            "train_questions_of_skill": made.train_questions_of_skill,
            "train_perturb": made.perturb,
        },
        weights_sha256=made.weights_sha256,
    )


@dataclass(frozen=True)
class _Facts:
    """What scoring needs of `run.json`."""

    weights_sha256: str
    temperature: float
    problem_picture: str
    model: str
    train_questions_of_skill: dict[str, int]
    perturb: str | None


def _facts(done: run.Run) -> _Facts:
    made = done.facts_as(_Facts, perturb=None)
    if not made.temperature > 0 or made.problem_picture not in ProblemPicture.__members__:
        raise done.broken("temperature or problem_picture are none")
    return made


def of_model(model: ModelConfig, trainer: TrainerConfig, seed: int = 0) -> Scorer:
    """A scorer for a model as it comes, with temperature 1."""
    return Scorer(
        towers.create(model, seed),
        trainer,
        problem_picture=model.problem_picture,
        provenance={"run": None, "model": model.name, "pretrained": model.pretrained},
    )


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

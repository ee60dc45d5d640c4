"""Short trainings that tell step by step what they were given and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from clipstem import console, ranks
from clipstem.config import ModelConfig, OptimizerConfig, TrainConfig, TrainerConfig
from clipstem.learner import Learner
from clipstem.pairs import PairBatch
from clipstem.train import train

ON_CPU = TrainerConfig(device="cpu", workers=0)
SMALL = ModelConfig(
    name="small",
    architecture={
        "embed_dim": 32,
        "vision_cfg": {
            **{"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
        },
        "text_cfg": {
            **{"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
        },
    },
)
"""A third of `tiny_vit`: for tests that ask how a training goes, not how well."""


def an_epoch(data: Path, out: Path, model: ModelConfig = SMALL, **settings: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "batch_size": 24,
        "eval_every_steps": 2,
        "optimizer": OptimizerConfig(lr=1e-3),
        "trainer": ON_CPU,
    }
    return TrainConfig(data=str(data), out=str(out), model=model, **{**given, **settings})


def train_and_tell(config: TrainConfig) -> None:
    """Train; each rank writes beside the run its questions of each step and the batch's losses."""
    folder = Path(config.out).parent
    step_of, mean_of = Learner.training_step, ranks.mean
    steps: list[int] = []
    console.show_log_lines()

    def step(self: Learner, batch: PairBatch, number: int) -> Tensor:
        steps.append(self.global_step)
        with (folder / f"ids-{ranks.rank()}.jsonl").open("a") as file:
            print(json.dumps([self.global_step, *filter(None, batch.ids)]), file=file)
        return step_of(self, batch, number)

    def mean(mine: dict[str, Tensor]) -> dict[str, Tensor]:
        found = mean_of(mine)
        with (folder / f"losses-{ranks.rank()}.jsonl").open("a") as file:
            losses = {name: float(value) for name, value in found.items()}
            print(json.dumps([steps[-1], losses]), file=file)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "training_step", step)
        patch.setattr(ranks, "mean", mean)
        train(config)


def told(folder: Path, name: str) -> list[Any]:
    """What was written, rank by rank; a line that a kill cut off is none."""
    paths = sorted(folder.glob(f"{name}-*.jsonl"))
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("]")]


def ids_by_step(folder: Path) -> dict[int, list[str]]:
    """The questions of all ranks."""
    found: dict[int, list[str]] = {}
    for step, *ids in told(folder, "ids"):
        found.setdefault(step, []).extend(ids)
    return {step: sorted(ids) for step, ids in sorted(found.items())}

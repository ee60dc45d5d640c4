"""Which model, on which device."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from clipstem.config.checks import require_at_least, require_fraction
from clipstem.question import ProblemPicture


class PictureFit(Enum):
    """What happens to a picture that is not square."""

    crop = "crop"  # cut off what sticks out in the middle's square: CLIP's own way
    pad = "pad"  # keep all of it, with a border
    squash = "squash"  # keep all of it, without its proportions


class Precision(Enum):
    """How numbers are kept on the device while computing."""

    auto = "auto"  # bf16 for training on CUDA, else fp32: scores are exact unless asked otherwise
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ModelConfig:
    """Which CLIP model, and how questions are shown to it."""

    name: str = MISSING
    """An open_clip model's name, `hf-hub:<owner>/<name>`, or `local-dir:<folder>`."""
    pretrained: str | None = None
    """A pretrained tag of open_clip or a file of weights; null draws them from the seed."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """An own architecture, as open_clip's `model_cfg`; it then replaces what `name` stands for."""
    image_size: int | None = None
    """Side of the pictures that the model sees, px; null keeps the model's own."""
    picture_fit: PictureFit | None = None
    """What happens to a picture that is not square; null keeps the model's own."""
    problem_picture: ProblemPicture = ProblemPicture.added
    """What the problem's picture does where the options are pictures too."""


@dataclass
class TrainerConfig:
    """Where it runs."""

    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA where there is one."""
    precision: Precision = Precision.auto
    """Arithmetic of the towers; logits, softmax and losses are fp32 always."""
    workers: int = 1
    """How many read, decode and pack ahead of the model: processes where torch has a GPU, threads
    on a CPU and for bundles; 0 does it in between."""
    threads: int | None = None
    """CPU threads that torch uses; null leaves it to torch."""
    devices: int | None = 1
    """`train`: GPUs of a machine that train together, or with `device=cpu` processes; null takes
    every GPU. Where torchrun or srun start the processes, they say how many."""

    max_skipped_fraction: float = 0.01
    """Share of questions that are skipped because a picture of theirs does not decode, which only
    `prepare verify=header` lets through; more stop the run."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "workers")
        require_at_least(self, 1, "threads", "devices")
        require_fraction(self, "max_skipped_fraction")

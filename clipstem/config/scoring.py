"""How questions are answered: predictions and bundles."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import require_positive, require_seed, require_split
from clipstem.config.model import ModelConfig, Precision, TrainerConfig
from clipstem.config.training import Perturbation
from clipstem.question import SPLITS, ClipstemError, ProblemPicture


class Variant(Enum):
    """The precision of a bundle's graphs."""

    fp32 = "fp32"
    int8 = "int8"  # weights of matrix products in 8 bits, activations quantised as they come


@dataclass
class PredictConfig:
    """`python -m clipstem.predict`: the probability of every option, for a split of a data set."""

    data: str = MISSING
    """A prepared folder, or its URL."""
    run: str | None = None
    """A finished run's folder: its weights, temperature and settings."""
    model: ModelConfig | None = None
    """Or a model as it comes, for zero-shot; one of `run`, `bundle` and `model` is needed."""
    bundle: str | None = None
    """Or an exported bundle's folder, scored with ONNX Runtime: needs no torch."""
    variant: Variant = Variant.fp32
    """Of a bundle: `fp32` or `int8`."""
    split: str = MISSING
    """`train`, `tune`, `valid`, `test`, or `all`."""
    out: str | None = None
    """The predictions file; null: `<run>/predictions/<split>[-<perturb>][-<part>].parquet`."""
    preds_txt: str | None = None
    """Also write the leaderboard's file of choices here."""
    problem_picture: ProblemPicture | None = None
    """What the problem's picture does where the options are pictures; null: as in training."""
    temperature: float | None = None
    """Divides the logits; null takes the run's, or for `model=` fits it on `tune` if there."""
    perturb: Perturbation | None = None
    """Ask changed questions: a name of `Perturbation`, such as `blank_picture` or `blur`."""
    perturb_strength: float | None = None
    """How strongly, in the unit that `clipstem.perturb` states; null: as strongly as it states."""
    part: int | None = None
    """Which of `parts` to score, from 1; their files are joined by `clipstem.submit merge`."""
    parts: int | None = None
    """Contiguous parts of almost equal size that a split's questions are cut into."""
    batch_size: int = 32
    """Questions scored together; changes the speed, never the answers."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    """Seed of perturbations, and of the weights of a model without pretrained ones."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "temperature")
        require_seed(self.seed)
        require_split("split", self.split, (*SPLITS, "all"))
        if [self.run, self.model, self.bundle].count(None) != 2:
            raise ClipstemError(
                "give one of run=<folder of a finished run>, bundle=<an exported folder> and "
                "model=<a file of conf/model>"
            )
        if self.run is None and self.out is None:
            with_key = "model" if self.bundle is None else "bundle"
            raise ClipstemError(
                f"conf key 'out' is missing; with {with_key}= give out=<file>.parquet"
            )
        if self.bundle is None and self.variant is not Variant.fp32:
            raise ClipstemError("conf key 'variant': needs bundle=<an exported folder> beside it")
        if self.preds_txt is not None and self.split == "all":
            raise ClipstemError(
                "conf key 'preds_txt': is one file for one split; give split=test instead of all"
            )
        if self.perturb_strength is not None and self.perturb is None:
            raise ClipstemError("conf key 'perturb_strength': needs perturb=<name> beside it")
        self._check_part()

    def _check_part(self) -> None:
        if (self.part is None) != (self.parts is None):
            raise ClipstemError("conf keys 'part', 'parts': one needs the other beside it")
        if self.part is None or self.parts is None:
            return
        if not 1 <= self.part <= self.parts:
            raise ClipstemError(f"conf key 'part': {self.part} is not from 1 to {self.parts}")
        if self.preds_txt is not None:
            raise ClipstemError("conf key 'preds_txt': has a line for each row, not for a part's")


@dataclass
class ExportConfig:
    """`python -m clipstem.export`: a model as a bundle of ONNX graphs that need no torch."""

    out: str = MISSING
    """The bundle's folder, which must not exist yet."""
    run: str | None = None
    """A finished run's folder: its weights, temperature and settings."""
    model: ModelConfig | None = None
    """Or a model as it comes; one of `run` and `model` is needed."""
    data: str | None = None
    """A prepared folder with the questions to check the bundle on; null takes the run's."""
    split: str = "valid"
    """Of that folder: `train`, `tune`, `valid` or `test`; its answers must be known."""
    questions: int = 2000
    """The most questions to check on."""
    int8: bool = True
    """Also make a variant with weights of 8 bits."""
    max_accuracy_drop: float = 0.5
    """A variant is not written if its accuracy may be this many points lower (95 % interval)."""
    temperature: float | None = None
    """Divides the logits; null takes the run's, or 1 for `model=`."""
    batch_size: int = 32
    """Questions scored together."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    """Seed of the weights of a model without pretrained ones."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "questions", "max_accuracy_drop", "temperature")
        require_seed(self.seed)
        if (self.run is None) == (self.model is None):
            raise ClipstemError(
                "give one of run=<folder of a finished run> and model=<a file of conf/model>"
            )
        if self.trainer.precision is Precision.bf16:
            raise ClipstemError(
                "conf key 'trainer.precision': a bundle is checked against torch in fp32; leave it "
                "out"
            )
        if self.run is None and self.data is None:
            raise ClipstemError(
                "conf key 'data' is missing; with model= give data=<a prepared folder> with the "
                "questions to check the bundle on"
            )

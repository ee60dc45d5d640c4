"""How a model learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import (
    require_at_least,
    require_fraction,
    require_positive,
    require_seed,
)
from clipstem.config.model import ModelConfig, TrainerConfig
from clipstem.question import ClipstemError, ProblemPicture


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine to zero; no decay on norms, biases, logit scale."""

    lr: float = 1e-5
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's two averaging rates (CLIP's own second one, arXiv 2103.00020)."""
    weight_decay: float = 0.05
    """Decay of matrices, per step in units of the learning rate."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip_norm")
        require_at_least(self, 0, "weight_decay")
        require_fraction(self, "warmup_fraction")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ClipstemError(
                f"conf key 'betas': {list(self.betas)} are not two numbers from 0 to below 1"
            )


class TuneMode(Enum):
    """Which parameters learn."""

    full = "full"  # all of them
    last_blocks = "last_blocks"  # of both towers the last blocks and the projection; logit scale
    head = "head"  # the projections and the logit scale
    zero_shot = "zero_shot"  # none: the model as it comes is calibrated and scored


class Augment(Enum):
    """How training pictures are changed so that the answer stays true: no flips, no colours."""

    mild = "mild"  # up to a tenth of the area cut off, brightness and contrast within a tenth


@dataclass
class TuneConfig:
    """What learns, and what keeps it from overfitting and forgetting; a file of `conf/tune`."""

    mode: TuneMode = TuneMode.full
    """Which parameters learn; `tune=head` is short for `tune.mode=head`."""
    blocks: int = 2
    """`last_blocks`: transformer blocks (of a convolutional tower: stages) that learn in each
    tower; more than a tower has are all of it."""
    layer_decay: float = 1.0
    """The learning rate's factor for each layer further from a tower's end (its projection has the
    full rate, its embeddings the lowest); 1.0 is none."""
    ema_decay: float | None = None
    """Share of the weights' moving average that a step keeps; the average is then what is
    evaluated and saved. One more copy of the weights in memory; null is none."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over a question's own options."""
    drop_path: float = 0.0
    """Chance that a residual branch of a timm picture tower is left out in the last block, growing
    linearly from 0 in the first; only in training."""
    patch_dropout: float = 0.0
    """Share of a picture's patches that a vision transformer does not see; only in training."""
    augment: Augment | None = None
    """How training pictures are changed; null leaves them as they are."""
    gradient_checkpointing: bool = False
    """Compute a block's activations again in the backward pass: less memory, a third more work."""
    reuse_features: bool = True
    """`head`: encode each distinct picture and text once before the first step, and keep what goes
    into the projections in the host's memory: 4 bytes times a tower's width for each (a 1,024-wide
    tower: 4 GB a million; the maps before a ResNet's attention pool are a hundred times larger).
    Pictures are not kept where `augment` changes them."""
    soup: int = 0
    """Best evaluations whose weights are averaged greedily after training, by macro accuracy on
    `tune` (arXiv 2203.05482); 0 is none."""
    wise_ft: bool = False
    """Interpolate between the starting and the tuned weights after training (arXiv 2109.01903), at
    the cost of eleven evaluations on `tune`; the curve is written to `wise_ft.csv` and `.svg`."""
    wise_ft_keeps: float = 0.98
    """Share of the gain in macro accuracy on `tune`, from the starting to the tuned weights, that
    the interpolation must keep: α is the smallest of 0, 0.1 … 1 that does. What fine-tuning forgets
    cannot be seen on `tune`, but it grows with α, while the gain is mostly there long before α = 1:
    so the criterion is not the best α, which is blind to forgetting, but the least that is good
    enough."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "blocks")
        require_at_least(self, 0, "soup")
        require_fraction(self, "ema_decay", "label_smoothing", "drop_path", "patch_dropout")
        for name in ("layer_decay", "wise_ft_keeps"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ClipstemError(f"conf key '{name}': {value} is not above 0 and at most 1")
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """A setting that would silently do nothing, because what it acts on does not learn."""
        default = TuneConfig.__dataclass_fields__
        of_layers = ["layer_decay", "drop_path", "patch_dropout", "gradient_checkpointing"]
        of_steps = ["ema_decay", "label_smoothing", "augment", "soup", "wise_ft"]
        idle = {TuneMode.head: of_layers, TuneMode.zero_shot: of_layers + of_steps}
        for name in idle.get(self.mode, []):
            if getattr(self, name) != default[name].default:
                raise ClipstemError(
                    f"conf key 'tune.{name}': has no effect with tune.mode={self.mode.value}; "
                    "leave it out"
                )


@dataclass
class DistillConfig:
    """Teachers whose probabilities are learnt from (Hinton et al., arXiv 1503.02531)."""

    teachers: list[str] = field(default_factory=list)
    """Predictions files for `train` of the same data; where several have a question, their
    probabilities are averaged. A question without a row is learnt from its label alone, one without
    a label from the teachers alone."""
    temperature: float = 2.0
    """Divides the student's logits, and those of the teachers behind their own temperature: above
    1 shows more of how likely wrong options are. The loss is multiplied with its square."""
    weight: float = 0.5
    """Share of the teachers, from 0 to 1, where a question has a label too."""

    def __post_init__(self) -> None:
        require_positive(self, "temperature")
        if not 0 <= self.weight <= 1:
            raise ClipstemError(f"conf key 'distill.weight': {self.weight} is not from 0 to 1")
        if len(set(self.teachers)) < len(self.teachers):
            raise ClipstemError(
                f"conf key 'distill.teachers': a file stands twice in {self.teachers}"
            )
        default = DistillConfig.__dataclass_fields__
        for name in ("temperature", "weight"):
            if not self.teachers and getattr(self, name) != default[name].default:
                raise ClipstemError(
                    f"conf key 'distill.{name}': has no effect without distill.teachers=[<file>]; "
                    "leave it out"
                )


@dataclass
class LoggerConfig:
    """Where metrics go besides `metrics.csv` and TensorBoard."""

    wandb_project: str | None = None
    """A project of Weights & Biases, which needs `pip install wandb`; null leaves it out."""


class Perturbation(Enum):
    """A change to a question that leaves its answer true; `clipstem.perturb` has the strengths."""

    blank_picture = "blank_picture"  # every picture is the same grey square
    shuffled_pictures = "shuffled_pictures"  # the pictures of another question of the same kind
    options_only = "options_only"  # no question, and its picture blank
    typos = "typos"  # neighbouring letters change places in words of the question
    case = "case"  # words of the question in capitals
    word_drops = "word_drops"  # small words of the question are left out
    blur = "blur"
    noise = "noise"
    jpeg = "jpeg"  # the traces of strong compression
    greyscale = "greyscale"
    crop = "crop"  # the border is cut off
    rotation = "rotation"  # a little to the left or to the right


@dataclass
class TrainConfig:
    """`python -m clipstem.train`: fine-tune a model on a prepared data set."""

    data: str = MISSING
    """A prepared folder, or its URL."""
    out: str = MISSING
    """The run's folder, which must not exist yet, or an unfinished run with `resume=true`."""
    resume: bool = False
    """Go on from the last checkpoint of an unfinished run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    epochs: float = 1.0
    """How often every question is seen; ignored where `steps` is given."""
    steps: int | None = None
    """Optimiser steps."""
    batch_size: int = 64
    """Questions per optimiser step."""
    accumulate: int = 1
    """Parts that a step's questions are computed in; each part sees only its own negatives."""
    contrast_weight: float = 1.0
    """Weight of the in-batch contrast beside the cross-entropy over a question's options."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    labelled_fraction: float = 1.0
    """Share of each skill's training questions whose answers may be used, drawn by the seed. The
    others are learnt from teachers if there are any, and left out if not."""
    weights: str | None = None
    """A parquet file with the columns `id` and `weight`, such as `curate` writes: what questions
    count in the loss; 0 leaves one out, one without a row counts 1."""
    perturb: Perturbation | None = None
    """Change every question of the run, of `train`, `tune` and `valid` alike, at the strength that
    `clipstem.perturb` states: `blank_picture` trains a model that never sees a picture."""
    eval_every_steps: int = 200
    """Steps between two evaluations on `tune`; each also writes a checkpoint."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints besides those; null writes no others."""
    max_nonfinite_steps: int = 10
    """Steps whose gradient is not finite are skipped and listed in `nonfinite.jsonl`; more than
    this many stop the run."""
    patience: int | None = 5
    """Evaluations without a better macro accuracy on `tune` before stopping; null never stops."""
    seed: int = 0
    """Seed of drawn weights, of the order of questions, of dropout and of changed pictures."""

    @property
    def at_once(self) -> int:
        """Questions that are on the device together."""
        return self.batch_size // self.accumulate

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "accumulate", "eval_every_steps", "epochs")
        require_at_least(self, 1, "steps", "patience", "checkpoint_every_steps")
        require_at_least(self, 0, "contrast_weight", "max_nonfinite_steps")
        require_seed(self.seed)
        if not 0 < self.labelled_fraction <= 1:
            raise ClipstemError(
                f"conf key 'labelled_fraction': {self.labelled_fraction} is not above 0 and at "
                "most 1"
            )
        self._refuse_without_effect()
        if self.batch_size % self.accumulate:
            raise ClipstemError(
                f"conf key 'accumulate': {self.accumulate} does not divide "
                f"batch_size={self.batch_size}; choose a divisor of it"
            )
        if self.model.problem_picture is ProblemPicture.reference:
            raise ClipstemError(
                "conf key 'model.problem_picture': 'reference' always answers 0, so there is "
                "nothing to train; expected 'added' or 'ignored'"
            )

    def _refuse_without_effect(self) -> None:
        """What says how to learn, where nothing learns."""
        asked = {
            "distill.teachers": bool(self.distill.teachers),
            "labelled_fraction": self.labelled_fraction < 1,
            "weights": self.weights is not None,
        }
        for name, is_asked in asked.items():
            if is_asked and self.tune.mode is TuneMode.zero_shot:
                raise ClipstemError(
                    f"conf key '{name}': has no effect with tune.mode=zero_shot; leave it out"
                )


@dataclass
class TowerConfig:
    """Where a tower's architecture and weights come from, for `AssembleConfig`.

    A place is a path, or `package:<module>/<path>` for a file inside an installed Python package.
    """

    name: str = MISSING
    """Picture tower: a timm model's name. Text tower: a Hugging Face folder, with its tokenizer, or
    the name of one at the Hub."""
    weights: str | None = None
    """Picture tower: a file of weights, read as weights only; null draws them from the seed."""
    sha256: str | None = None
    """The weights file's hash, which is then checked; of a text tower its `model.safetensors`."""


@dataclass
class AssembleConfig:
    """`python -m clipstem.assemble`: an open_clip model of a timm picture tower and a Hugging Face
    text tower, with projections between them that are yet to learn."""

    out: str = MISSING
    """The folder of weights, in open_clip's layout, which must not exist yet."""
    picture: TowerConfig = field(default_factory=TowerConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    embed_dim: int = 256
    """Width of the embeddings."""
    projection: str = "mlp"
    """What stands behind each tower: `mlp` (one hidden layer) or `linear`."""
    dropout: float = 0.0
    """Of the picture tower's projection, in training."""
    image_size: int = 224
    """Side of the square that the picture tower sees, px."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What is subtracted from each channel's values, which go from 0 to 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What each channel is then divided by."""
    fill: int = 0
    """Grey value, 0 to 255, of the border that `picture_fit=pad` adds."""
    context_length: int = 77
    """Longest text, tokens, with its marks."""
    pooler: str = "mean_pooler"
    """How the text tower's tokens become one vector: one of open_clip's poolers."""
    seed: int = 0
    """Seed of the weights that nobody gives."""

    def __post_init__(self) -> None:
        require_positive(self, "embed_dim", "image_size", "context_length")
        require_seed(self.seed)
        require_fraction(self, "dropout")
        if self.projection not in ("mlp", "linear"):
            raise ClipstemError(
                f"conf key 'projection': '{self.projection}' is unknown; expected mlp or linear"
            )
        if not 0 <= self.fill <= 255:
            raise ClipstemError(f"conf key 'fill': {self.fill} is not from 0 to 255")

"""Every setting, its default and its unit, once; `command` is the door they come in by.

The dataclasses below are the schema. YAML files under `conf/` hold only what differs from them.
Members of enums are lower-case because their names are what people type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from clipstem.question import SPLITS, ClipstemError, ProblemPicture


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


class Variant(Enum):
    """The precision of a bundle's graphs."""

    fp32 = "fp32"
    int8 = "int8"  # weights of matrix products in 8 bits, activations quantised as they come


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
    """Processes that read, decode and pack; 0 does it in the main process."""
    threads: int | None = None
    """CPU threads that torch uses; null leaves it to torch."""
    devices: int | None = 1
    """`train`: GPUs of a machine that train together, or with `device=cpu` processes; null takes
    every GPU. Where torchrun or srun start the processes, they say how many."""

    max_skipped_fraction: float = 0.01
    """Share of questions that are skipped because a picture of theirs does not decode, which only
    `prepare verify=header` lets through; more stop the run."""

    def __post_init__(self) -> None:
        _require_at_least(self, 0, "workers")
        _require_at_least(self, 1, "threads", "devices")
        _require_fraction(self, "max_skipped_fraction")


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
        _require_positive(self, "lr", "clip_norm")
        _require_at_least(self, 0, "weight_decay")
        _require_fraction(self, "warmup_fraction")
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
        _require_at_least(self, 1, "blocks")
        _require_at_least(self, 0, "soup")
        _require_fraction(self, "ema_decay", "label_smoothing", "drop_path", "patch_dropout")
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
        _require_positive(self, "batch_size", "accumulate", "eval_every_steps", "epochs")
        _require_at_least(self, 1, "steps", "patience", "checkpoint_every_steps")
        _require_at_least(self, 0, "seed", "contrast_weight", "max_nonfinite_steps")
        _require_seed(self.seed)
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
        _require_positive(self, "batch_size")
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
        if self.split not in (*SPLITS, "all", MISSING):
            raise ClipstemError(
                f"conf key 'split': there is no split '{self.split}'; "
                f"expected one of {', '.join(SPLITS)}, all"
            )
        if self.preds_txt is not None and self.split == "all":
            raise ClipstemError(
                "conf key 'preds_txt': is one file for one split; give split=test instead of all"
            )
        if self.temperature is not None:
            _require_positive(self, "temperature")
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
        _require_positive(self, "batch_size", "questions", "max_accuracy_drop")
        if self.temperature is not None:
            _require_positive(self, "temperature")
        if (self.run is None) == (self.model is None):
            raise ClipstemError(
                "give one of run=<folder of a finished run> and model=<a file of conf/model>"
            )
        if self.run is None and self.data is None:
            raise ClipstemError(
                "conf key 'data' is missing; with model= give data=<a prepared folder> with the "
                "questions to check the bundle on"
            )


class Source(Enum):
    """Where questions come from."""

    drawn = "drawn"  # by the code of `clipstem.bank`
    stem = "stem"  # parquet files in STEM's schema
    jsonl = "jsonl"  # one JSON object a line, pictures as files beside it


class Verify(Enum):
    """How closely each picture is looked at while preparing."""

    decode = "decode"  # decode it, which finds truncated ones
    header = "header"  # read its header only


@dataclass
class PrepareConfig:
    """`python -m clipstem.prepare`: turn a source of questions into shards."""

    out: str = MISSING
    """The prepared folder, which must not exist yet."""
    source: Source = Source.drawn
    """Where the questions come from: `drawn`, `stem` or `jsonl`."""
    path: str | None = None
    """`stem`: a folder, or a Hub data set `owner/name`; `jsonl`: a file; nothing for `drawn`."""
    skills: list[str] = field(default_factory=list)
    """`drawn`: names of the bank's skills to draw from; empty takes all."""
    questions_per_skill: dict[str, int] = field(
        default_factory=lambda: {"train": 500, "valid": 50, "test": 50}
    )
    """`drawn`: questions a skill, by split; 0 leaves a split out."""
    split: str | None = None
    """`jsonl`: the split of every line; null takes each line's own `split`."""
    split_fractions: dict[str, float] = field(
        default_factory=lambda: {"train": 0.0, "valid": 0.0, "test": 0.0}
    )
    """`jsonl` without splits: shares such as {train: 0.8, valid: 0.2}; no picture is in two."""
    tune_fraction: float = 0.05
    """Share of train's questions held out as `tune`, which then has no picture of train's."""
    seed: int = 0
    """Seed of the drawn questions, of made splits and of the order in the shards."""
    verify: Verify = Verify.decode
    """How closely each picture is looked at: `decode` or `header`."""
    max_image_side: int | None = None
    """Longest side of a picture, px: larger ones are encoded again, lossily; null keeps all."""
    max_skipped_fraction: float = 0.01
    """Share of bad rows that are skipped; more stop the run."""
    shard_bytes: int = 128 * 2**20
    """Size of a shard, bytes."""
    workers: int | None = None
    """Processes; null is one for each usable core, 1 is none beside this one."""

    def __post_init__(self) -> None:
        _require_positive(self, "shard_bytes")
        _require_at_least(self, 1, "workers", "max_image_side")
        _require_at_least(self, 0, "seed")
        _require_fraction(self, "tune_fraction", "max_skipped_fraction")
        _require_counts(self.questions_per_skill)
        # All names stand in the default because Hydra adds no key to a mapping.
        shares = self.split_fractions.items()
        self.split_fractions = {split: share for split, share in shares if share}
        if (self.source is Source.drawn) != (self.path is None):
            expected = {
                Source.drawn: "no path, because nothing is read",
                Source.stem: "a folder of parquet files, or a Hub data set owner/name",
                Source.jsonl: "a file with one JSON object a line",
            }[self.source]
            raise ClipstemError(
                f"conf key 'path': is {self.path or 'missing'}; "
                f"source={self.source.value} expects {expected}"
            )
        self._check_splits()

    def _check_splits(self) -> None:
        named = ([self.split] if self.split else []) + list(self.split_fractions)
        if named and self.source is not Source.jsonl:
            raise ClipstemError(
                f"conf keys 'split', 'split_fractions': source={self.source.value} has its own "
                "splits; these are for source=jsonl"
            )
        if self.split and self.split_fractions:
            raise ClipstemError("conf keys 'split', 'split_fractions': give one of them, not both")
        for split in named:
            _require_source_split("split_fractions" if self.split_fractions else "split", split)
        shares = self.split_fractions.values()
        if shares and (min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6):
            raise ClipstemError(
                f"conf key 'split_fractions': {self.split_fractions} are not all above 0 with sum 1"
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
        _require_positive(self, "embed_dim", "image_size", "context_length")
        _require_at_least(self, 0, "seed")
        _require_seed(self.seed)
        _require_fraction(self, "dropout")
        if self.projection not in ("mlp", "linear"):
            raise ClipstemError(
                f"conf key 'projection': '{self.projection}' is unknown; expected mlp or linear"
            )
        if not 0 <= self.fill <= 255:
            raise ClipstemError(f"conf key 'fill': {self.fill} is not from 0 to 255")


@dataclass
class BankConfig:
    """`python -m clipstem.bank`: write drawn questions as parquet files in STEM's schema."""

    out: str = MISSING
    """The folder, which must not exist yet; the files come under its `data`."""
    skills: list[str] = field(default_factory=list)
    """Names of the bank's skills to draw from; empty takes all."""
    questions_per_skill: dict[str, int] = field(
        default_factory=lambda: {"train": 500, "valid": 50, "test": 50}
    )
    """Questions a skill, by split; 0 leaves a split out."""
    seed: int = 0
    """Seed of the drawn questions."""
    rows_per_file: int = 4096
    """Most questions in one parquet file; files are written in parallel."""
    workers: int | None = None
    """Processes; null is one for each usable core, 1 is none beside this one."""

    def __post_init__(self) -> None:
        _require_positive(self, "rows_per_file")
        _require_at_least(self, 1, "workers")
        _require_at_least(self, 0, "seed")
        _require_counts(self.questions_per_skill)


class Rule(Enum):
    """How an answer changes the score of an exam; `clipstem.exam` has the numbers."""

    regular = "regular"
    advanced = "advanced"
    fast = "fast"
    powerpath = "powerpath"


class Choices(Enum):
    """How the probabilities of the options become an answer."""

    argmax = "argmax"  # the most probable option, each time the same
    drawn = "drawn"  # an option drawn with its probability, each time anew


@dataclass
class ExamRules:
    """How an exam is sat."""

    rule: Rule = Rule.regular
    """How an answer changes the score: `regular`, `advanced`, `fast` or `powerpath`."""
    questions_per_skill: int = 100
    """Most questions of one exam; it ends before at a score of 100."""
    replacement: bool = True
    """Whether a question can come twice in one exam; if not, too small skills are left out."""
    choices: Choices = Choices.argmax
    """The most probable option (`argmax`), or one drawn with its probability (`drawn`)."""
    repeats: int = 1000
    """Exams of each skill, each with other questions drawn."""
    seed: int = 0
    """Seed of the drawn questions and answers."""

    def __post_init__(self) -> None:
        _require_positive(self, "questions_per_skill", "repeats")
        _require_at_least(self, 0, "seed")


@dataclass
class ExamConfig(ExamRules):
    """`python -m clipstem.exam`: the score, 0 to 100, that answers get in an exam of each skill."""

    predictions: str = MISSING
    """A predictions file."""
    out: str | None = None
    """A new folder for `exam.json` and `exam.parquet`; null only prints."""


@dataclass
class ServeConfig:
    """`python -m clipstem.serve`: a bundle behind HTTP, and the exam as a page to take."""

    bundle: str = MISSING
    """An exported bundle's folder."""
    variant: Variant = Variant.fp32
    """Of the bundle: `fp32` or `int8`."""
    data: str | None = None
    """The prepared folder whose questions the exam page asks; null draws them from the bank."""
    split: str = "valid"
    """Of that folder; its answers must be known."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every network that this machine is in."""
    port: int = 8000
    """The port; 0 takes a free one."""
    token: str | None = None
    """If given, whoever asks must carry it: `Authorization: Bearer <token>`."""
    max_batch: int = 32
    """Most questions scored together; 1 scores each alone."""
    max_wait_ms: float = 2.0
    """How long a question waits for the company of others that are being read, milliseconds."""
    max_queue: int = 512
    """Most questions that wait; further ones are answered 429 until there is room."""
    max_body_bytes: int = 8_000_000
    """Most bytes of a request."""
    max_pixels: int = 16_000_000
    """Most pixels of a picture, read from its header before it is decoded."""
    max_questions: int = 64
    """Most questions of a request."""
    max_options: int = 16
    """Most options of a question."""
    max_text_characters: int = 1000
    """Most characters of a question's text, and of an option's; CLIP reads 77 tokens of both."""
    timeout_seconds: float = 30.0
    """How long a request may take; then it is answered 503."""
    rule: Rule = Rule.regular
    """How an answer changes the score on the exam page."""
    questions_per_skill: int = 100
    """Most questions of an exam there; it ends before at a score of 100."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("max_batch", "max_queue", "max_body_bytes", "max_pixels", "max_questions"),
            *("max_options", "max_text_characters", "timeout_seconds", "questions_per_skill"),
        )
        _require_at_least(self, 0, "max_wait_ms", "port")
        if self.port > 65_535:
            raise ClipstemError(f"conf key 'port': {self.port} is above 65535")
        if self.token is not None and not self.token.strip():
            raise ClipstemError("conf key 'token': is empty; give one, or leave it out")


@dataclass
class ReportConfig:
    """`python -m clipstem.report`: what predictions files say, as one HTML file and as Markdown."""

    predictions: list[str] = MISSING
    """Predictions files for the same questions; with answers to perturbed ones where there are."""
    out: str = MISSING
    """The report's folder, which must not exist yet."""
    data: str | None = None
    """The prepared folder of the questions, or its URL; for texts and pictures."""
    names: list[str] = field(default_factory=list)
    """What the models are called, in the order of their files; empty takes the runs' names."""
    exam: ExamRules = field(default_factory=ExamRules)
    mistakes: int = 12
    """Most confident mistakes shown of each model, one a skill; needs `data`."""
    bins: int = 10
    """Bins of confidence in the reliability diagrams and the calibration error."""
    repeats: int = 2000
    """Bootstrap repeats behind an interval."""
    seed: int = 0
    """Seed of the bootstrap and of drawn questions."""

    def __post_init__(self) -> None:
        _require_positive(self, "bins", "repeats")
        _require_at_least(self, 0, "seed", "mistakes")
        if self.predictions != MISSING and not self.predictions:
            raise ClipstemError(
                "conf key 'predictions': names no file; expected [<file>.parquet, …]"
            )


class Action(Enum):
    """What `clipstem.submit` is asked to do; the first word of its command line."""

    submit = "submit"  # start every task
    status = "status"  # say what became of each
    retry = "retry"  # start again what failed
    merge = "merge"  # join what the tasks made


class SweepVerb(Enum):
    """What each task of a sweep runs."""

    train = "train"
    predict = "predict"


class Where(Enum):
    """Where a sweep's tasks run."""

    auto = "auto"  # on SLURM where there is an `sbatch`, else here
    slurm = "slurm"
    local = "local"  # on this machine, one after the other, behind the shell's back


@dataclass
class SubmitConfig:
    """`python -m clipstem.submit [submit|status|retry|merge]`: a sweep of many trainings, or of the
    parts of one prediction, as one SLURM array or on this machine."""

    action: Action = Action.submit
    """`submit`, `status`, `retry` or `merge`: a bare first word of the command line."""
    verb: SweepVerb = SweepVerb.train
    """What each task runs: `train` or `predict`."""
    tasks: str | None = None
    """A text file: each line is one task, with the overrides as `verb` would be given them."""
    out: str | None = None
    """The sweep's folder; null is `sweeps/<name of the tasks file>`."""
    where: Where = Where.auto
    """Where the tasks run: `slurm`, `local`, or `auto`: SLURM where there is an `sbatch`."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, such as [--time 4:00:00,--gres gpu:1]: with spaces, not `=`."""
    at_once: int | None = None
    """Most tasks of the array that run at the same time; null leaves it to SLURM."""
    grace_seconds: int = 120
    """How long before its time limit a task is told to save and stop."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "at_once", "grace_seconds")
        if self.tasks is None and (self.out is None or self.action is Action.submit):
            raise ClipstemError(
                "conf key 'tasks' is missing; give tasks=<a file with a task a line>"
                + (", or out=<the sweep's folder>" if self.action is not Action.submit else "")
            )


SOURCE_SPLITS = ("train", "valid", "test")
"""Splits that a source can have; `tune` is held out of `train`."""


def _require_at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ClipstemError(f"conf key '{name}': {value} is below {least}")


def _require_fraction(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ClipstemError(f"conf key '{name}': {value} is not from 0 to below 1")


def _require_source_split(name: str, split: str) -> None:
    if split not in SOURCE_SPLITS:
        raise ClipstemError(
            f"conf key '{name}': there is no split '{split}'; "
            f"expected one of {', '.join(SOURCE_SPLITS)}"
        )


def _require_counts(questions_per_skill: dict[str, int]) -> None:
    for split, count in questions_per_skill.items():
        _require_source_split("questions_per_skill", split)
        if count < 0:
            raise ClipstemError(f"conf key 'questions_per_skill.{split}': {count} is below 0")


def _require_seed(seed: int) -> None:
    if seed >= 2**32:
        raise ClipstemError(f"conf key 'seed': {seed} is not below {2**32}")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if not (value := getattr(config, name)) > 0:
            raise ClipstemError(f"conf key '{name}': {value} is not above 0")

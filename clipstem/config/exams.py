"""What answers are worth: exams, reports, and the exam as a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import require_at_least, require_positive, require_seed
from clipstem.config.model import TrainerConfig
from clipstem.config.scoring import Variant
from clipstem.question import ClipstemError


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
        require_positive(self, "questions_per_skill", "repeats")
        require_seed(self.seed)


@dataclass
class ExamConfig(ExamRules):
    """`python -m clipstem.exam`: the score, 0 to 100, that answers get in an exam of each skill."""

    predictions: str = MISSING
    """A predictions file."""
    out: str | None = None
    """A new folder for `exam.json` and `exam.parquet`; null only prints."""


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
    results: list[str] = field(default_factory=list)
    """What rerank, route and curate have written, to be shown too: their folders."""
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
        require_positive(self, "bins", "repeats")
        require_at_least(self, 0, "mistakes")
        require_seed(self.seed)
        if self.predictions != MISSING and not self.predictions:
            raise ClipstemError(
                "conf key 'predictions': names no file; expected [<file>.parquet, …]"
            )


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
        require_positive(
            self,
            *("max_batch", "max_queue", "max_body_bytes", "max_pixels", "max_questions"),
            *("max_options", "max_text_characters", "timeout_seconds", "questions_per_skill"),
        )
        require_at_least(self, 0, "max_wait_ms", "port")
        if self.port > 65_535:
            raise ClipstemError(f"conf key 'port': {self.port} is above 65535")
        if self.token is not None and not self.token.strip():
            raise ClipstemError("conf key 'token': is empty; give one, or leave it out")
        if self.token is not None and not self.token.isascii():
            raise ClipstemError(
                "conf key 'token': has letters that a header cannot hold; expected plain ASCII"
            )

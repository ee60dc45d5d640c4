"""Where questions come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from clipstem.config.checks import (
    SOURCE_SPLITS,
    require_at_least,
    require_counts,
    require_fraction,
    require_positive,
    require_seed,
    require_split,
)
from clipstem.question import ClipstemError


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
        require_positive(self, "shard_bytes")
        require_at_least(self, 1, "workers", "max_image_side")
        require_seed(self.seed)
        require_fraction(self, "tune_fraction", "max_skipped_fraction")
        require_counts(self.questions_per_skill)
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
            key = "split_fractions" if self.split_fractions else "split"
            require_split(key, split, SOURCE_SPLITS)
        shares = self.split_fractions.values()
        if shares and not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-6):
            raise ClipstemError(
                f"conf key 'split_fractions': {self.split_fractions} are not all above 0 with sum 1"
            )


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
        require_positive(self, "rows_per_file")
        require_at_least(self, 1, "workers")
        require_seed(self.seed)
        require_counts(self.questions_per_skill)

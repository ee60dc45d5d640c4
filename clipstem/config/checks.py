"""What settings may be: checks that several dataclasses make, each with its message."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from omegaconf import MISSING

from clipstem.question import ClipstemError

SOURCE_SPLITS = ("train", "valid", "test")
"""Splits that a source can have; `tune` is held out of `train`."""


def require_at_least(config: object, least: int, *names: str) -> None:
    for name, value in _numbers(config, names):
        if value < least:
            raise ClipstemError(f"conf key '{name}': {value} is below {least}")


def require_fraction(config: object, *names: str) -> None:
    for name, value in _numbers(config, names):
        if not 0 <= value < 1:
            raise ClipstemError(f"conf key '{name}': {value} is not from 0 to below 1")


def require_positive(config: object, *names: str) -> None:
    for name, value in _numbers(config, names):
        if value <= 0:
            raise ClipstemError(f"conf key '{name}': {value} is not above 0")


def _numbers(config: object, names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Those settings of a configuration that are not null; NaN and infinity are refused."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not abs(value) < math.inf:
            raise ClipstemError(f"conf key '{name}': {value} is not a finite number")
        yield name, value


def require_split(name: str, split: str, allowed: Sequence[str]) -> None:
    if split not in (*allowed, MISSING):
        raise ClipstemError(
            f"conf key '{name}': there is no split '{split}'; expected one of {', '.join(allowed)}"
        )


def require_counts(questions_per_skill: dict[str, int]) -> None:
    for split, count in questions_per_skill.items():
        require_split("questions_per_skill", split, SOURCE_SPLITS)
        if count < 0:
            raise ClipstemError(f"conf key 'questions_per_skill.{split}': {count} is below 0")


def require_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ClipstemError(f"conf key 'seed': {seed} is not from 0 to below {2**32}")


def require_different_files(config: object, *names: str) -> None:
    """Refuse a file that is given twice by these settings, each a path or a list of them."""
    files: set[str] = set()
    for name in names:
        given = getattr(config, name)
        for file in [given] if isinstance(given, str) else given or []:
            if file in files:
                raise ClipstemError(
                    f"conf key '{name}': {file} is given twice; expected different files"
                )
            files.add(file)

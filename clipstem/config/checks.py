"""What settings may be: checks that several dataclasses make, each with its message."""

from __future__ import annotations

from clipstem.question import ClipstemError

SOURCE_SPLITS = ("train", "valid", "test")
"""Splits that a source can have; `tune` is held out of `train`."""


def require_at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ClipstemError(f"conf key '{name}': {value} is below {least}")


def require_fraction(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ClipstemError(f"conf key '{name}': {value} is not from 0 to below 1")


def require_source_split(name: str, split: str) -> None:
    if split not in SOURCE_SPLITS:
        raise ClipstemError(
            f"conf key '{name}': there is no split '{split}'; "
            f"expected one of {', '.join(SOURCE_SPLITS)}"
        )


def require_counts(questions_per_skill: dict[str, int]) -> None:
    for split, count in questions_per_skill.items():
        require_source_split("questions_per_skill", split)
        if count < 0:
            raise ClipstemError(f"conf key 'questions_per_skill.{split}': {count} is below 0")


def require_seed(seed: int) -> None:
    if seed >= 2**32:
        raise ClipstemError(f"conf key 'seed': {seed} is not below {2**32}")


def require_positive(config: object, *names: str) -> None:
    for name in names:
        if not (value := getattr(config, name)) > 0:
            raise ClipstemError(f"conf key '{name}': {value} is not above 0")

"""Hostile and broken input of every format: how each kind is made, and what must come of it.

`test_hostile` runs the table. A maker is given the folder of a clean input and changes it; payloads
that would run code make the file that the environment calls `CLIPSTEM_CANARY`.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN_CODE = 'touch "$CLIPSTEM_CANARY"'


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (RUN_CODE,)


EVIL = pickle.dumps({"global_step": 1, "state_dict": {"logit_scale": Evil()}})


@dataclass(frozen=True)
class Refused:
    """A `ClipstemError` whose text has this in it, a regular expression."""

    match: str


@dataclass(frozen=True)
class Skipped:
    """One row is left out for this reason; all others come through as from the clean input."""

    field: str
    reason: str


@dataclass(frozen=True)
class Accepted:
    """What comes out is what comes of the clean input, or with `other` something else."""

    other: bool = False


Outcome = Refused | Skipped | Accepted
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    format: str
    name: str
    make: Make
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.format}: {self.name}"


CASES: list[Case] = []


def kinds(format: str, *cases: tuple[str, Make, Outcome]) -> None:
    CASES.extend(Case(format, *case) for case in cases)


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A maker that changes a file's bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def edit(name: str, change: Callable[[Any], Any]) -> Make:
    """A maker that changes what a JSON file holds; `change` may also return another thing."""

    def make(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        changed = change(values)
        (folder / name).write_text(json.dumps(values if changed is None else changed))

    return make


def replaced(name: str, make: Callable[[Path], object]) -> Make:
    """A maker that puts something else in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")

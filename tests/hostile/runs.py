"""Finished runs, and checkpoints of unfinished ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.table import EVIL, Evil, Make, Refused, edit, kinds, rewrite

kinds(
    "run",
    ("run.json is no JSON", rewrite("run.json", lambda _: b"{"), Refused("run.json: ")),
    (
        "run.json nests 100,000 deep",
        rewrite("run.json", lambda _: b"[" * 100_000),
        Refused("run.json: "),
    ),
    ("run.json is a list", edit("run.json", lambda facts: [facts]), Refused("run.json: ")),
    (
        "oversized run.json",
        rewrite("run.json", lambda data: data + b" " * 2**24),
        Refused("run.json: has more than 16,777,216 bytes; copy the run again"),
    ),
    (
        "a count that no table holds",
        edit("run.json", lambda facts: facts.update(train_questions_of_skill={"a": 10**400})),
        Refused("a is 1000.*; expected a whole number below 2"),
    ),
    (
        "run.json without a hash",
        edit("run.json", lambda facts: {"temperature": 1.0}),
        Refused("run.json: lacks model"),
    ),
    (
        "temperature that is a text",
        edit("run.json", lambda facts: facts.update(temperature="warm")),
        Refused("temperature is 'warm'; expected a number"),
    ),
    (
        "problem_picture that is none",
        edit("run.json", lambda facts: facts.update(problem_picture="evil")),
        Refused("run.json: "),
    ),
    (
        "weights of another run",
        edit("run.json", lambda facts: facts.update(weights_sha256="0" * 64)),
        Refused("are not the weights that the run wrote"),
    ),
)


CHECKPOINT = "checkpoints/step-00000001.ckpt"


def checkpoint(change: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path) -> None:
        import torch

        state = torch.load(folder / CHECKPOINT, weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, folder / CHECKPOINT)

    return make


DAMAGED = Refused("checkpoints: every checkpoint is damaged; move")

kinds(
    "checkpoint",
    ("pickle that runs code", rewrite(CHECKPOINT, lambda _: EVIL), DAMAGED),
    (
        "zip with a pickle that runs code",
        checkpoint(lambda state: state.update(evil=Evil())),
        DAMAGED,
    ),
    ("file that is cut off", rewrite(CHECKPOINT, lambda data: data[:5000]), DAMAGED),
    ("file that is no zip", rewrite(CHECKPOINT, lambda _: b"<html>404</html>"), DAMAGED),
    ("run.json that is cut off", rewrite("run.json", lambda data: data[:9]), Refused("run.json: ")),
    ("checkpoint without a step", checkpoint(lambda state: {"state_dict": {}}), DAMAGED),
)

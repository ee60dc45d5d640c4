"""Measure how often a model chooses the same in bf16 as in fp32, on `valid`.

    python scripts/measure_bf16.py shards/quickstart runs/quickstart runs/tiny_vit

Takes prepared shards and runs to score on them. What comes out is `benchmarks/bf16.json`, where
rows of other runs stay as they are, and the README is brought up to date.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import facts, publish
from tables import BENCHMARKS

from clipstem import scorer, shards
from clipstem.blocks import onednn_has_bf16
from clipstem.config import Precision, TrainerConfig
from clipstem.prediction import Predictions
from clipstem.shards import Dataset

BATCH_SIZE = 32
LEARNT = 0.1  # of the questions, more than by chance


def agreement(exact: Predictions, rough: Predictions) -> dict[str, Any]:
    """The choices of two engines for the same questions, and how far apart their logits are.

    A skill is learnt where the first engine is right 10 points above chance or more.
    """
    choices_Q, others_Q = (it.logits_QK.argmax(1) for it in (exact, rough))
    same_Q, right_Q = choices_Q == others_Q, choices_Q == exact.answer_Q
    chance_Q = 1 / exact.num_options_Q
    is_option_QK = np.arange(exact.logits_QK.shape[1]) < exact.num_options_Q[:, None]
    # What is added to all logits of a question changes nothing.
    error_QK = np.where(is_option_QK, rough.logits_QK, np.nan) - exact.logits_QK
    error_QK -= np.nanmean(error_QK, axis=1, keepdims=True)
    best_Q2 = np.sort(exact.logits_QK, axis=1)[:, -2:]
    rms = float(np.sqrt(np.nanmean(error_QK**2)))
    skill_Q = np.array(exact.columns["skill"])
    learnt = [
        skill
        for skill in np.unique(skill_Q)
        if (right_Q - chance_Q)[skill_Q == skill].mean() >= LEARNT
    ]
    is_learnt_Q = np.isin(skill_Q, learnt)
    return {
        "questions": len(same_Q),
        "same": int(same_Q.sum()),
        "right": {"fp32": int(right_Q.sum()), "bf16": int((others_Q == exact.answer_Q).sum())},
        "logit_error_rms": round(rms, 4),
        "gap_below_error": int((best_Q2[:, 1] - best_Q2[:, 0] < rms).sum()),
        "learnt": {"questions": int(is_learnt_Q.sum()), "same": int(same_Q[is_learnt_Q].sum())},
    }


def measured(folder: Path, dataset: Dataset) -> dict[str, Any]:
    exact, rough = (
        scorer.of_run(folder, TrainerConfig("cpu", precision)).predict(dataset, "valid", BATCH_SIZE)
        for precision in (Precision.fp32, Precision.bf16)
    )
    command = json.loads((folder / "run.json").read_text())["command"]
    settings = shlex.split(command)[3:]  # behind python -m clipstem.train
    trained = " ".join(it for it in settings if not it.startswith(("data=", "out=", "resume=")))
    return {"trained": trained, **agreement(exact, rough)}


def main() -> None:
    if not onednn_has_bf16():
        sys.exit("this processor, or this torch, has no products in bf16: measure on one that has")
    made_by = facts()
    data, *folders = sys.argv[1:]
    dataset = shards.open_dataset(data)
    path = BENCHMARKS / "bf16.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for folder in folders:
        found[folder] = {**measured(Path(folder), dataset), "data": data, **made_by}
        print(folder, json.dumps(found[folder], indent=1), file=sys.stderr)
    publish("bf16", found)


if __name__ == "__main__":
    main()

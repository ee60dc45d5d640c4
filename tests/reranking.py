"""What the tests of reranking share: files of candidates, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from clipstem.config import RerankConfig, Scores
from clipstem.rerank import candidates, drawn
from clipstem.rerank.__main__ import Reranked, rerank


def line(number: int = 0, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"q{number}",
        "problem": f"What is {number} + 1?",
        "answer": str(number + 1),
        "candidates": [
            {"system": "a", "text": "it is so", "final": str(number + 1), "correct": True},
            {"system": "b", "text": "no idea", "final": "7000", "correct": False},
        ],
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def saved(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(it) if isinstance(it, dict) else it}\n" for it in lines))
    return path


def with_scores(path: Path, questions: int = 60, knows: float = 1.0) -> Path:
    """Scores that know something, and no system's level; or with knows=0 nothing at all."""
    rng = np.random.default_rng(0)
    made = list(drawn.lines(questions, 0))
    for one in made:
        for it in one["candidates"]:
            it["score"] = float(rng.normal(knows * it["correct"]))
    return saved(path, *made)


def reranked(path: Path, **changes: Any) -> Reranked:
    config = RerankConfig(candidates=[str(path)], out="o", **{"scores": Scores.none, **changes})
    needs = config.scores is Scores.given and config.scores_file is None
    return rerank(config, candidates.read([path], config.leave_out, needs, 0.01))

"""Measure exam and report on predictions of the size of STEM's test split, drawn at random.

    python scripts/measure_report.py

Four files of 214,077 predictions for 448 skills; `benchmarks/report.json` gets the CPU seconds of
each command, its most memory, and the size of the report, and the README is brought up to date.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import facts, publish, run_command

from clipstem import metrics
from clipstem.prediction import Predictions

QUESTIONS = {"science": 37_277, "technology": 1_713, "engineering": 3_486, "math": 171_601}
SKILLS = {"science": 82, "technology": 9, "engineering": 6, "math": 351}
"""Of STEM's test split; arXiv 2402.17205."""

MODELS = 4
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")


def columns(rng: np.random.Generator) -> dict[str, Any]:
    """Questions without texts, with 2 to 4 options."""
    subject_Q = np.repeat(list(QUESTIONS), list(QUESTIONS.values()))
    skill_Q = np.concatenate([rng.integers(SKILLS[name], size=n) for name, n in QUESTIONS.items()])
    num_options_Q = rng.integers(2, 5, len(subject_Q))
    return {
        "id": [f"test-{row}" for row in range(len(subject_Q))],
        "row": list(range(len(subject_Q))),
        "subject": subject_Q.tolist(),
        "grade": [f"grade-{skill % 9}" for skill in skill_Q],
        "skill": [f"a-skill-of-some-length-{skill}" for skill in skill_Q],
        "kind": ["text_options"] * len(subject_Q),
        "num_options": num_options_Q.tolist(),
        "question_words": rng.integers(3, 60, len(subject_Q)).tolist(),
        "truncated_tokens": [0] * len(subject_Q),
        "answer": (rng.random(len(subject_Q)) * num_options_Q).astype(int).tolist(),
    }


def answered(questions: dict[str, Any], number: int, rng: np.random.Generator) -> Predictions:
    """A model that knows some skills better than others, later ones more."""
    num_options_Q, answer_Q = (np.array(questions[name]) for name in ("num_options", "answer"))
    names, skill_Q = np.unique(questions["skill"], return_inverse=True)
    logits_QK = rng.normal(size=(len(answer_Q), 4)).astype(np.float32)
    known_Q = np.maximum(rng.normal(0.5 * number, 1, len(names)), 0)[skill_Q]
    logits_QK[np.arange(len(answer_Q)), answer_Q] += known_Q
    logits_QK[np.arange(4) >= num_options_Q[:, None]] = np.finfo(np.float32).min
    provenance = {
        "model": f"model {number}",
        "parameters": 10**8 * (number + 1),
        "temperature": 1.2,
        "train_questions_of_skill": dict(zip(names.tolist(), range(len(names)), strict=True)),
    }
    probs_QK = metrics.probabilities(logits_QK, num_options_Q, 1.2)
    return Predictions(questions, probs_QK, logits_QK, provenance)


def timed(command: str, folder: Path) -> dict[str, Any]:
    """Run a command; its own seconds do not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run_command(command, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**ran, "core_seconds": round(busy, 1)}


def measure() -> dict[str, Any]:
    """Run both verbs on drawn files in an empty folder."""
    made_by = facts()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    rng = np.random.default_rng(0)
    files = [f"{number}.parquet" for number in range(MODELS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = columns(rng)
        for number, file in enumerate(files):
            answered(questions, number, rng).write(folder / file)
        commands = [
            "python -m clipstem.exam predictions=0.parquet out=exam",
            f"python -m clipstem.report predictions=[{','.join(files)}] out=report",
        ]
        ran = [timed(command, folder) for command in commands]
        html_mib = (folder / "report" / "report.html").stat().st_size / 2**20
    return {
        "questions": sum(QUESTIONS.values()),
        "skills": sum(SKILLS.values()),
        "commands": ran,
        "html_mib": round(html_mib, 2),
        **made_by,
    }


if __name__ == "__main__":
    found = measure()
    publish("report", found)
    print(json.dumps(found, indent=1))

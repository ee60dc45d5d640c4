"""What the tests of routing share: made-up answers, a gate's settings, and counting one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipstem import prediction
from clipstem.config import Method, RouteConfig
from clipstem.prediction import Predictions
from clipstem.route.decisions import Routed, route
from clipstem.route.figures import Figures, figures

Flags = NDArray[np.bool_]
MADE = {"command": "python -m clipstem.route", "versions": {}}
SKILLS = ("weather", "magnets", "levers", "shapes")
NAN = float("nan")


def answered(
    right_Q: Flags, confidence_Q: NDArray[np.float64], first: int = 0, **facts: Any
) -> Predictions:
    """Questions of four skills with four options, answered as said with that confidence."""
    questions = len(right_Q)
    number_Q = np.arange(first, first + questions)
    answer_Q = number_Q % 4
    choice_Q = np.where(right_Q, answer_Q, (answer_Q + 1) % 4)
    probs_QK = np.repeat(((1 - confidence_Q) / 3)[:, None], 4, axis=1)
    probs_QK[np.arange(questions), choice_Q] = confidence_Q
    skill_Q = [SKILLS[number // 4 % 4] for number in number_Q]
    columns: dict[str, Sequence[Any]] = {
        "id": [f"q{number:04}" for number in number_Q],
        "row": number_Q.tolist(),
        "subject": ["science" if skill in SKILLS[:2] else "math" for skill in skill_Q],
        "grade": ["grade-2"] * questions,
        "skill": skill_Q,
        "kind": ["text_options"] * questions,
        "num_options": [4] * questions,
        "question_words": [7] * questions,
        "truncated_tokens": [0] * questions,
        "answer": answer_Q.tolist(),
    }
    provenance = {"model": "small", "weights_sha256": "f" * 64, "split": "valid", **facts}
    return Predictions(columns, probs_QK, np.log(probs_QK).astype(np.float32), provenance)


def school(
    folder: Path, name: str, questions: int = 240, first: int = 0, seed: int = 0
) -> dict[str, Path]:
    """Files of a fast model that is bad at half of the skills, of two samples, and of a tool."""
    rng = np.random.default_rng([seed, first])
    ease_Q = np.where(np.arange(first, first + questions) // 4 % 4 < 2, 0.95, 0.35)
    luck_Q = rng.random(questions)
    confidence_Q = np.round(0.4 + 0.55 * rng.random(questions), 3)
    made = {"fast": answered(luck_Q < ease_Q, confidence_Q, first)}
    for strength in (1, 2):
        noisy_Q = np.clip(luck_Q + rng.normal(0, 0.05 * strength, questions), 0, 1) < ease_Q
        change = {"name": "noise", "strength": float(strength), "seed": 0}
        made[f"noise{strength}"] = answered(noisy_Q, confidence_Q, first, perturbation=change)
    right_Q = rng.random(questions) < 0.97
    made["tool"] = answered(right_Q, np.full(questions, 0.9), first, weights_sha256="t" * 64)
    paths = {key: folder / f"{name}-{key}.parquet" for key in made}
    for key, found in made.items():
        found.write(paths[key])
    return paths


def config(out: Path | str = "out", **given: Any) -> RouteConfig:
    quick: dict[str, Any] = {"folds": 3, "method": Method.logistic, "repeats": 100}
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return RouteConfig(**{"out": str(out), **quick, **texts})


def of_school(folder: Path, samples: bool = True, **given: Any) -> RouteConfig:
    """Fit on one split's files, score on another's."""
    valid = school(folder, "valid")
    test = school(folder, "test", first=1000)
    if samples:
        given["samples"] = [str(test["noise1"]), str(test["noise2"])]
        given["fit_samples"] = [str(valid["noise1"]), str(valid["noise2"])]
    files = {"fast": test["fast"], "tool": test["tool"]}
    fit = {"fit_fast": valid["fast"], "fit_tool": valid["tool"]}
    return config(folder / "out", **{**files, **fit, **given})


def run_route(settings: RouteConfig) -> tuple[Routed, Figures]:
    routed = route(settings, MADE)
    return routed, figures(routed, settings, MADE)


@st.composite
def graded(draw: st.DrawFn) -> tuple[NDArray[np.float64], Flags, Flags, Flags]:
    """Scores of which many are equal, and who is right; hard and easy ones among them."""
    questions = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    score_Q = rng.integers(0, draw(st.integers(1, 30)), questions) / 30
    hard_Q = rng.random(questions) < 0.4
    hard_Q[:2] = (True, False)
    return score_Q, rng.random(questions) < 0.6, rng.random(questions) < 0.8, hard_Q


def one_by_one(
    deferred: Sequence[bool], fast_right_Q: Flags, tool_right_Q: Flags, hard_Q: Flags
) -> tuple[float, float, float, list[int]]:
    """Calls, accuracy, tool-usage accuracy, and EN, ET, HN, HT as the paper counts them."""
    counts = {"EN": 0, "ET": 0, "HN": 0, "HT": 0}
    right = 0
    for asks_tool, fast, tool, hard in zip(
        deferred, fast_right_Q, tool_right_Q, hard_Q, strict=True
    ):
        counts[("H" if hard else "E") + ("T" if asks_tool else "N")] += 1
        right += bool(tool if asks_tool else fast)
    easy = counts["EN"] / (counts["EN"] + counts["ET"])
    hard = counts["HT"] / (counts["HN"] + counts["HT"])
    calls = (counts["ET"] + counts["HT"]) / len(hard_Q)
    return calls, right / len(hard_Q), (easy + hard) / 2, list(counts.values())


def changed(path: Path, change: Callable[[Predictions], Predictions]) -> None:
    """Replace a predictions file."""
    change(prediction.read(path)).write(path, replace=True)


def each_changed(paths: Sequence[str], change: Callable[[Predictions], Predictions]) -> None:
    for path in paths:
        changed(Path(path), change)


def with_columns(**columns: Sequence[Any]) -> Callable[[Predictions], Predictions]:
    return lambda found: replace(found, columns={**found.columns, **columns})

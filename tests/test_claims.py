"""Figures of experiments with several runs, from predictions whose answers are counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipstem.prediction import COLUMNS, Predictions

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import claims
import measure
import tables

SKILLS = 12


def predictions(right: int, questions: int = 24, skills: int = SKILLS) -> Predictions:
    """The first `right` of so many questions are answered rightly."""
    logits_QK = np.zeros((questions, 2), np.float32)
    logits_QK[:, 0] = [1.0 if place < right else -1.0 for place in range(questions)]
    texts = {
        name: [f"{name} {place % skills}" for place in range(questions)]
        for name in ("subject", "grade", "skill", "kind")
    }
    counts = {name: [2] * questions for name in ("num_options", "question_words")}
    known: dict[str, Any] = {
        **texts,
        **counts,
        "row": range(questions),
        "truncated_tokens": [0] * questions,
    }
    known |= {"id": [f"q{place}" for place in range(questions)], "answer": [0] * questions}
    probs_QK = 1 / (1 + np.exp(logits_QK[:, ::-1] - logits_QK)).astype(np.float64)
    assert set(known) | {"choice", "probs", "logits"} == set(COLUMNS)
    return Predictions(known, probs_QK, logits_QK, {"temperature": 1.0})


def test_one_run_is_told_by_its_headline() -> None:
    found = {"a/valid": predictions(18), "a/test": predictions(3), "b/valid": predictions(4)}
    figures = claims.figures("a", found)
    assert (figures["micro"], figures["chance_micro"], figures["questions"]) == (0.75, 0.5, 24)
    assert figures["result"].startswith("valid macro 75.0 % (chance 50.0), micro 75.0 %")


def test_seeds_are_averaged_and_the_blind_runs_are_paired_with_the_seeing_ones() -> None:
    found = {f"realset_mini_{seed}/valid": predictions(12 + seed) for seed in range(3)}
    mini = claims.of_realset_mini(found)
    assert mini["micro"] == pytest.approx(13 / 24, abs=1e-4)
    assert mini["seeds"] == [0.5, 0.541667, 0.583333]
    low, high = mini["interval"]
    assert low < mini["micro"] < high
    assert mini["result"].startswith("valid micro 54.2 % [")
    assert mini["result"].endswith("], mean of 3 seeds (50.0 to 58.3); chance 50.0")
    found |= {f"realset_mini_blind_{seed}/valid": predictions(10) for seed in range(2)}
    blind = claims.of_realset_mini_blind(found)
    assert (blind["micro"], blind["pictures_add"]) == (0.416667, 0.125)
    low, high = blind["pictures_add_interval"]
    assert low < 0.125 < high
    assert "mean of 2 seeds; pictures add +12.5 points [" in blind["result"]


def test_ways_to_fit_a_picture_are_paired_with_the_crop() -> None:
    right = {"crop": 12, "pad": 15, "squash": 10}
    found = {f"picture_fit_{name}/valid": predictions(count) for name, count in right.items()}
    figures = claims.of_picture_fit(found)
    assert figures["micro"] == {"crop": 0.5, "pad": 0.625, "squash": 0.416667}
    assert figures["changes"]["pad"]["difference"] == 0.125
    assert figures["result"].startswith("valid micro 50.0 % with crop; pad adds +12.5 points [")


def test_gains_and_losses_are_shares_of_the_plain_runs() -> None:
    found = {"forty/ten": predictions(8), "forty/thirty": predictions(20)}
    for seed in range(3):
        right = {"plain": 20, "wise_ft": 19, "ema": 21, "soup": 20}
        found |= {f"{name}_{seed}/valid": predictions(count) for name, count in right.items()}
        found |= {f"plain_{seed}/thirty": predictions(8), f"wise_ft_{seed}/thirty": predictions(17)}
    figures = claims.of_forgetting(found)
    assert figures["wise_ft_keeps_of_gain"] == pytest.approx(11 / 12, abs=1e-4)
    assert figures["wise_ft_loses_of_loss"] == 0.25
    assert figures["changes"]["ema"]["difference"] == pytest.approx(1 / 24, abs=1e-4)
    assert figures["changes"]["soup"]["difference"] == 0
    assert "(91.7 % of the gain); the thirty: 83.3, 33.3, 70.8 (25.0 %" in figures["result"]


def test_eight_skills_have_intervals_for_their_own_questions() -> None:
    right = {"valid": 20, "anew": 19, "others": 10}
    right |= {f"valid-{name}": 12 + place for place, name in enumerate(claims.ALTERED)}
    found = {
        f"generalisation/{name}": predictions(count, skills=8) for name, count in right.items()
    }
    figures = claims.figures("generalisation", found)
    assert figures["drops"]["case"]["difference"] == pytest.approx(-8 / 24, abs=1e-6)
    for (low, high), value in (
        (figures["others_interval"], 10 / 24),
        (figures["drops"]["case"]["interval"], -8 / 24),
    ):
        assert low < value < high
    assert figures["result"].startswith("83.3 % on its skills (chance 50.0), 79.2 drawn anew; ")
    assert "altered from -12.5 points [" in figures["result"]
    assert " to -33.3 points [" in figures["result"] and "41.7 % [" in figures["result"]


def test_runs_of_other_questions_are_not_compared() -> None:
    with pytest.raises(AssertionError, match="not the same questions"):
        claims.change([predictions(5)], [predictions(5, questions=12)])


def test_a_routing_is_told_beside_the_confidences_threshold() -> None:
    def outcome(calls: float, accuracy: float) -> dict[str, float]:
        counts = dict.fromkeys(("easy_direct", "easy_tool", "hard_direct", "hard_tool"), 25.0)
        return {"calls": calls, "accuracy": accuracy, "tool_usage": 0.85, "cost": calls, **counts}

    gain = {"value": 0.012, "interval": {"low": -0.004, "high": 0.031}}
    gains = dict.fromkeys(("accuracy_gain", "usage_gain", "below_tool"), gain)
    step = {"cost": 0.5, "gate": outcome(0.5, 0.9), "confidence": outcome(0.5, 0.8), **gains}
    point = {"rule": "near", "promised_calls": 0.38, "calls_interval": {"low": 0.3, "high": 0.5}}
    point |= {"gate": outcome(0.4, 0.96), "confidence": outcome(0.42, 0.95), **gains}
    scored: dict[str, Any] = {
        "questions": 100,
        "hard": 0.2,
        "fast_accuracy": 0.8,
        "tool_accuracy": 0.97,
    }
    scored |= {"hard_auroc": 0.9, "confidence_auroc": 0.89, "below_confidence": 0}
    scored |= {"points": [point], "steps": [{**step, "random": 0.6, "oracle": 0.99}]}
    skill = {"skill": "weather", "easy_tool": 7, "hard_direct": 1, "tool_accuracy": 0.98765432}
    scored |= {"skills": [skill]}
    made = {"scored": scored, "fitted_on": 200, "method": "logistic", "samples": []}
    found = claims.figures("route", {}, {"fast": made})
    assert found["result"] == (
        "fast: 80.0 % alone, 97.0 the tool, 96.0 with 40.0 % of its calls, +1.2 points [-0.4, 3.1] "
        "(a confidence threshold 95.0 with 42.0), tool-usage accuracy 85.0; at the same calls the "
        "gate adds +1.2 points [-0.4, 3.1]"
    )
    case = found["routings"]["fast"]
    assert case["steps"][0]["confidence"] == 0.8 and case["steps"][0]["oracle"] == 0.99
    assert case["most_wrongly_routed"] == [{**skill, "tool_accuracy": 0.987654}]
    table = tables.routings([{**found, "experiment": "route"}])
    (row,) = (it for it in table.splitlines() if it.startswith("| `fast`"))
    assert row == (
        "| `fast` | 80.0, 97.0 | 96.0 (40.0) | +1.2 [-0.4, 3.1] | 95.0 (42.0) | +1.2 [-0.4, 3.1] |"
    )


def test_students_are_told_by_what_they_keep_of_the_teachers_gain() -> None:
    def of(right: int, parameters: int) -> Predictions:
        made = predictions(right)
        made.provenance["parameters"] = parameters
        return made

    found = {"quickstart/students_valid": of(24, 300), "quickstart/valid": of(3, 300)}
    for seed in range(3):
        found |= {
            f"distill_{seed}/valid": of(20 + seed, 90),
            f"tenth_{seed}/valid": of(15, 90),
        }
    figures = claims.figures("distill", found)
    assert figures["teacher"] == 1.0 and figures["chance"] == 0.5
    assert figures["parameters"] == {"student": 90, "teacher": 300}
    assert figures["seeds"]["distill"] == [0.833333, 0.875, 0.916667]
    assert figures["gain_kept"] == {"distill": 0.75, "tenth": 0.25}
    adds = figures["distill_adds_to"]["tenth"]
    assert adds["difference"] == 0.25
    low, high = adds["interval"]
    assert low < 0.25 < high
    assert figures["result"].startswith(
        "mean of 3 seeds, valid macro: teacher 100.0 % (chance 50.0), a student of 30.0 % of its "
        "parameters with a tenth of the labels and the teacher 87.5 (75.0 % of the gain), on the "
        "tenth alone 62.5 (the teacher adds +25.0 points ["
    )


def test_an_experiment_has_the_routings_of_its_own_commands() -> None:
    routed = {name: {"name": name} for name in ("fast", "fast_samples", "eight", "another")}
    for experiment, names in (("route", ["fast", "fast_samples"]), ("route_eight", ["eight"])):
        assert list(measure.own(measure.EXPERIMENTS / f"{experiment}.yaml", routed)) == names

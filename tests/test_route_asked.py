"""What routing reads: samples, questions that a file lacks, files that do not go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from routing import MADE, changed, each_changed, of_school, run_route, with_columns

from clipstem import prediction
from clipstem.config import RouteConfig
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.route.asked import gather
from clipstem.route.decisions import route


def test_samples_tell_hard_questions_from_easy_ones(tmp_path: Path) -> None:
    with_them = run_route(of_school(tmp_path / "a"))[1]
    asked = gather(with_them.fast, with_them.tool, with_them.settings["samples"])
    right_AQ = [it.choice_Q == it.answer_Q for it in (asked.fast, *asked.samples)]
    for easy_at in (1 / 3, 0.5, 2 / 3, 1.0):
        expected = [sum(answers) / 3 < easy_at - 1e-9 for answers in zip(*right_AQ, strict=True)]
        assert asked.hard_Q(easy_at).tolist() == expected
    assert with_them.fast_passes == 3 and with_them.samples == ("noise 1", "noise 2")
    only_labels = run_route(of_school(tmp_path / "b", agreement=False))[1]
    assert only_labels.fast_passes == 1
    assert only_labels.scored is not None and with_them.scored is not None
    assert only_labels.scored.hard == with_them.scored.hard


def test_questions_that_a_file_lacks_are_counted(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    sample = Path(settings.samples[0])
    changed(sample, lambda it: it.at(np.arange(239)[::-1]))
    columns = {"answer": [-1, *prediction.read(Path(settings.fast)).answer_Q.tolist()[1:]]}
    changed(Path(settings.fast), lambda it: replace(it, columns={**it.columns, **columns}))
    routed, made = run_route(settings)
    assert made.questions == 239 and made.scored is not None and made.scored.questions == 238
    assert f"{settings.fast}: 1 questions that another file does not have" in made.notes
    assert (
        "1 questions without a known answer or one of the tool's: routed, not scored" in made.notes
    )
    assert routed.asked.fast.columns["id"] == routed.asked.samples[0].columns["id"]


def with_facts(**facts: Any) -> Callable[[Predictions], Predictions]:
    return lambda found: replace(found, provenance={**found.provenance, **facts})


def everywhere_right(found: Predictions) -> Predictions:
    right_QK = np.eye(4)[found.answer_Q]
    return replace(found, probs_QK=right_QK)


REFUSED: list[tuple[str, Callable[[RouteConfig], object], str]] = [
    (
        "perturbed answers as the tool",
        lambda it: changed(
            Path(str(it.tool)),
            with_facts(perturbation={"name": "blur"}),
        ),
        r"holds answers to perturbed questions \(blur\), which conf key 'tool' cannot be",
    ),
    (
        "perturbed answers as the fast model",
        lambda it: changed(
            Path(it.fast),
            with_facts(perturbation={"name": "blur"}),
        ),
        "which conf key 'fast' cannot be",
    ),
    (
        "another model's sample",
        lambda it: changed(
            Path(it.samples[0]),
            with_facts(weights_sha256="e" * 64),
        ),
        "noise1.parquet: is of the weights eeeeeeeeeeee, but",
    ),
    (
        "no common question",
        lambda it: changed(
            Path(it.samples[0]),
            with_columns(id=[f"x{n}" for n in range(240)]),
        ),
        "share no question; give answers to the same split",
    ),
    (
        "a tool for other questions",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(id=[f"x{n}" for n in range(240)]),
        ),
        "has none of the questions of",
    ),
    (
        "another question of the same id",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(skill=["other"] * 240),
        ),
        "question 'q1000' has skill other, but levers in .*answers to different questions",
    ),
    (
        "another answer",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(answer=[3] * 240),
        ),
        "question 'q1000' has answer 3, but 0 in",
    ),
    (
        "other samples than were fitted on",
        lambda it: setattr(it, "fit_samples", it.fit_samples[::-1]),
        "samples are noise 1, noise 2, fit_samples noise 2, noise 1; expected the same",
    ),
    (
        "questions of the fit",
        lambda it: vars(it).update(fast=it.fit_fast, samples=it.fit_samples, tool=it.fit_tool),
        "240 questions of .* are in .* too, such as 'q0000'",
    ),
    (
        "only easy questions",
        lambda it: each_changed([str(it.fit_fast), *it.fit_samples], everywhere_right),
        "of 240 fitting questions 240 are easy and 0 hard for the fast model; expected at least 6",
    ),
    (
        "no known answer to fit on",
        lambda it: changed(
            Path(str(it.fit_fast)),
            with_columns(answer=[-1] * 240),
        ),
        "none of the 240 fitting questions has a known answer",
    ),
    (
        "a fast model that the gate does not know",
        lambda it: each_changed([it.fast, *it.samples], with_facts(weights_sha256="e" * 64)),
        "is of the weights eeeeeeeeeeee, the gate was fitted on ffffffffffff",
    ),
    (
        "no questions",
        lambda it: changed(Path(str(it.tool)), lambda found: found.at(np.arange(0))),
        "has no questions",
    ),
    ("no file", lambda it: Path(it.samples[1]).unlink(), "there is no such predictions file"),
]


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in REFUSED], ids=[it[0] for it in REFUSED]
)
def test_files_that_do_not_go_together_are_refused(
    change: Callable[[RouteConfig], object], message: str, tmp_path: Path
) -> None:
    settings = of_school(tmp_path)
    change(settings)
    with pytest.raises(ClipstemError, match=message):
        route(settings, MADE)

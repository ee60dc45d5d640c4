"""Joining parts exactly once, and the table of a sweep's trainings."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipstem import merge, prediction
from clipstem.merge import MUST_AGREE, join, results, steps_done, write_results
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.sweep import Task


def predictions(ids: list[str], most: int = 3, **provenance: Any) -> Predictions:
    """Equal probabilities for two options, three for every third question of `most` 3."""
    count = len(ids)
    num_options_Q = [min(most, 2 + (number % 3 == 0)) for number in range(count)]
    options_QK = np.arange(max(num_options_Q, default=1)) < np.array(num_options_Q)[:, None]
    probs_QK = options_QK / np.array(num_options_Q)[:, None]
    columns: dict[str, Any] = {
        name: ["x"] * count for name in ("subject", "grade", "skill", "kind")
    }
    columns |= {name: [0] * count for name in ("question_words", "truncated_tokens", "answer")}
    columns |= {"id": ids, "row": list(range(count)), "num_options": num_options_Q}
    logits_QK = np.where(options_QK, 0, np.finfo(np.float32).min).astype(np.float32)
    return Predictions(columns, probs_QK, logits_QK, {"seconds": 1.0, "model": "m", **provenance})


def write_parts(folder: Path, count: int, **changes: Any) -> list[Path]:
    """Files of two questions each; `changes` are of the last."""
    files = []
    for part in range(1, count + 1):
        same = dict.fromkeys(MUST_AGREE, "same") | {"temperature": 2.0, "perturbation": None}
        made = {**same, "part": part, "parts": count, **(changes if part == count else {})}
        files.append(folder / f"{part}.parquet")
        ids = [f"q{part}-{number}" for number in range(2)]
        predictions(ids, most=3 if part == 1 else 2, **made).write(files[-1])
    return files


def test_parts_are_joined_in_their_order_whatever_order_they_come_in(tmp_path: Path) -> None:
    one, two, three = write_parts(tmp_path, 3)
    joined = join([three, one, two])
    assert joined.columns["id"] == ["q1-0", "q1-1", "q2-0", "q2-1", "q3-0", "q3-1"]
    assert joined.provenance["merged_parts"] == 3 and joined.provenance["seconds"] == 3.0
    assert not {"part", "parts"} & joined.provenance.keys()
    joined.write(tmp_path / "joined.parquet")
    again = prediction.read(tmp_path / "joined.parquet")
    np.testing.assert_array_equal(again.probs_QK, joined.probs_QK)
    np.testing.assert_array_equal(again.logits_QK, joined.logits_QK)


def test_what_parts_have_left_out_is_joined_too(tmp_path: Path) -> None:
    files = write_parts(tmp_path, 2)
    for file, skipped in zip(files, ([], [("q9", "is truncated")]), strict=True):
        found = prediction.read(file)
        facts = {**found.provenance, "skipped": len(skipped)}
        replace(found, provenance=facts, skipped=tuple(skipped)).write(file, replace=True)
    joined = join(files)
    assert joined.skipped == (("q9", "is truncated"),) and joined.provenance["skipped"] == 1
    beside = tmp_path / "2.skipped.jsonl"
    for text, message in (("", "names 0 questions, but .* has left out 1"), ("[]", "cannot be r")):
        beside.write_text(text)
        with pytest.raises(ClipstemError, match=rf"2\.skipped\.jsonl: {message}"):
            join(files)


def test_parts_may_not_leave_out_more_than_the_whole(tmp_path: Path) -> None:
    files = write_parts(tmp_path, 2)
    for part, file in enumerate(files):
        found = prediction.read(file)
        facts = {**found.provenance, "skipped": 1, "max_skipped_fraction": 0.01}
        skipped = ((f"broken-{part}", "is truncated"),)
        replace(found, provenance=facts, skipped=skipped).write(file, replace=True)
    with pytest.raises(
        ClipstemError, match=r"^2 of 6 questions have broken pictures, more than tr"
    ):
        join(files)


@pytest.fixture(scope="module")
def six_parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_parts(tmp_path_factory.mktemp("parts"), 6)


@given(st.sets(st.integers(1, 6), min_size=1, max_size=5))
def test_every_missing_part_is_named(six_parts: list[Path], kept: set[int]) -> None:
    missing = ", ".join(str(part) for part in range(1, 7) if part not in kept)
    with pytest.raises(ClipstemError, match=f"^part {missing} of 6 is missing; nothing is merged$"):
        join([six_parts[part - 1] for part in kept])


def test_a_part_that_comes_twice_is_refused(tmp_path: Path) -> None:
    one, two = write_parts(tmp_path, 2)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(two.read_bytes())
    with pytest.raises(ClipstemError, match=r"copy\.parquet: is part 2, as .*2\.parquet is"):
        join([one, two, copy])


@pytest.mark.parametrize("name", MUST_AGREE)
def test_parts_that_were_not_made_alike_are_refused(name: str, tmp_path: Path) -> None:
    other: Any = {"temperature": 3.0, "perturbation": {"name": "blur"}, "parts": 9}.get(
        name, "other"
    )
    files = write_parts(tmp_path, 2, **{name: other})
    told = re.escape(f"2.parquet: {name} is {other}, but in ")
    with pytest.raises(ClipstemError, match=f"{told}.*; these are not parts of the same"):
        join(files)


def test_a_file_that_is_no_part_is_refused(tmp_path: Path) -> None:
    predictions(["a"]).write(tmp_path / "whole.parquet")
    with pytest.raises(ClipstemError, match=r"whole\.parquet: is no part; expected predictions"):
        join([tmp_path / "whole.parquet"])


def test_a_question_that_two_parts_hold_is_refused(tmp_path: Path) -> None:
    files = write_parts(tmp_path, 2)
    again = prediction.read(files[1])
    ids = ["q1-0", *again.columns["id"][1:]]
    replace(again, columns={**again.columns, "id": ids}).write(files[1], replace=True)
    with pytest.raises(ClipstemError, match=r"2\.parquet: the question 'q1-0' is in another"):
        join(files)


def test_results_have_a_row_for_each_training(tmp_path: Path) -> None:
    tasks = []
    for number, rate in enumerate(("1e-3", "1e-4"), 1):
        run = Run(tmp_path / f"run{number}")
        predictions(["a", "b"]).write(run.predictions("valid"))
        run.metrics.write_text("step,listwise\n10,0.5\n20,0.4\n")
        tasks.append(Task(number, (f"lr={rate}", f"out={run.folder}"), run.folder))
    write_results(tmp_path / "results.csv", results(tasks))
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["lr"], second["lr"]) == ("1e-3", "1e-4")
    assert first["steps_done"] == "20" and float(first["valid_micro"]) == 1.0
    assert float(first["chance_micro"]) == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_run_without_answers_or_steps_has_empty_cells(tmp_path: Path) -> None:
    (row,) = results([Task(1, ("out=x",), tmp_path)])
    assert row["valid_micro"] is None and row["steps_done"] == 0
    assert merge.valid_summary(Run(tmp_path)) is None and steps_done(Run(tmp_path)) == 0

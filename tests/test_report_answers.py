"""The files that a report is about: brought to the questions that they share, or named as wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting import (
    answered,
    config,
    saved,
    school,
    taken,
)

from clipstem.question import ClipstemError
from clipstem.report.__main__ import write_report
from clipstem.report.answers import gather


def test_models_are_brought_to_the_questions_that_they_share(tmp_path: Path) -> None:
    whole = school(0, 0.6)
    some = taken(whole, np.arange(170)[::-1])
    found = gather([saved(tmp_path / "a.parquet", whole), saved(tmp_path / "b.parquet", some)])
    assert len(found.questions) == 170
    first, second = found.models
    assert np.array_equal(first.right_Q, second.right_Q)
    assert np.array_equal(first.right_Q, (whole.choice_Q == whole.answer_Q)[:170])
    (left_out,) = found.excluded
    assert left_out == f"{tmp_path}/a.parquet: 10 questions that another file does not have."


@settings(max_examples=8)
@given(st.permutations(range(24)))
def test_the_order_of_the_rows_changes_nothing(order: list[int]) -> None:
    whole = answered([n % 5 > 1 for n in range(24)], skill=[f"s{n % 4}" for n in range(24)])
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.parquet", Path(folder) / "b.parquet"
        found = gather([saved(a, whole), saved(b, taken(whole, order))])
    first, second = found.models
    assert np.array_equal(first.probs_QK, second.probs_QK)
    assert np.array_equal(first.right_Q, second.right_Q)


def test_a_blind_models_own_questions_are_not_changed_ones(tmp_path: Path) -> None:
    changed = {"name": "blank_picture", "strength": None, "seed": 0}
    own = {"perturbation": changed, "train_perturb": "blank_picture", "weights_sha256": "blind"}
    paths = [
        saved(tmp_path / "seeing.parquet", answered([True] * 6), weights_sha256="seeing"),
        saved(tmp_path / "blind.parquet", answered([False] * 6), **own),
    ]
    models = gather(paths).models
    assert [len(model.variants) for model in models] == [0, 0]


def test_questions_without_an_answer_are_left_out_with_their_number(tmp_path: Path) -> None:
    answers = [n % 3 if n > 9 else -1 for n in range(30)]
    path = saved(tmp_path / "a.parquet", answered([True] * 30, answer=answers), without_picture=4)
    found = gather([path])
    assert len(found.questions) == 20
    assert found.excluded == (
        f"{path}: 10 questions without a known answer.",
        f"{path}: 4 questions have no picture and were not scored.",
    )


def test_skills_without_any_answer_and_columns_not_read_are_named(tmp_path: Path) -> None:
    skills = ["poles"] * 3 + ["magnets"] * 3
    path = saved(
        tmp_path / "a.parquet", answered([True] * 6, skill=skills, answer=[-1] * 3 + [0, -1, 2])
    )
    pq.write_table(pq.read_table(path).append_column("comment", [["x"] * 6]), path)
    assert gather([path]).excluded == (
        f"{path}: 4 questions without a known answer.",
        f"{path}: no question with a known answer in science/poles.",
        f"{path}: columns that were not read: comment.",
    )


def test_an_empty_grade_has_a_name(tmp_path: Path) -> None:
    found = gather([saved(tmp_path / "a.parquet", answered([True] * 4, grade=["", "", "x", "x"]))])
    assert found.questions.grade.names == ("(no name)", "x")


def test_grades_are_in_the_order_of_school(two_models: list[Path]) -> None:
    names = gather(two_models[:1]).questions.grade.names
    assert names == ("pre-k", "kindergarten", "grade-2", "grade-10")


def test_models_are_called_by_run_model_or_file(tmp_path: Path) -> None:
    same = answered([True, False])
    (tmp_path / "x").mkdir()
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    saved(a, same, run="runs/first", model="m")
    saved(b, same, run="runs/second", model="m")
    saved(c := tmp_path / "c.parquet", same, model="m")
    saved(d := tmp_path / "x" / "c.parquet", same, model="m")

    def names(*paths: Path) -> list[str]:
        return [model.name for model in gather(paths).models]

    assert names(a, b) == ["first", "second"]
    assert names(a, c) == ["first", "m"]
    assert names(b, c, d) == [str(path.with_suffix("")) for path in (b, c, d)]
    assert [model.name for model in gather([a, b], ["new", "old"]).models] == ["new", "old"]


def other_answers(tmp_path: Path) -> list[Path]:
    other = answered([True] * 6, answer=[(n + 1) % 3 for n in range(6)])
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6)),
        saved(tmp_path / "b.parquet", other),
    ]


def no_answers(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6, answer=[-1] * 6))]


def nothing_shared(tmp_path: Path) -> list[Path]:
    ids = [f"other{n}" for n in range(6)]
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6)),
        saved(tmp_path / "b.parquet", answered([True] * 6, id=ids)),
    ]


def twice(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6))] * 2


def only_perturbed(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6), perturbation={"name": "case"})]


def of_unnamed_weights(tmp_path: Path) -> list[Path]:
    facts: dict[str, Any] = {"perturbation": {"name": "case"}, "weights_sha256": None}
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6), **facts),
        saved(tmp_path / "b.parquet", answered([True] * 6), weights_sha256=None),
    ]


def of_other_weights(tmp_path: Path) -> list[Path]:
    plain = saved(tmp_path / "b.parquet", answered([True] * 6))
    return [*only_perturbed(tmp_path), plain]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            no_answers,
            r"a\.parquet: none of its 6 questions has a known answer \(STEM's test withholds "
            r"them\), so there is nothing to report; give predictions for valid",
        ),
        (
            other_answers,
            r"b\.parquet: question 'q0' has answer 1, but 0 in .*a\.parquet \(6 such questions\); "
            "these are predictions for different data and cannot be compared",
        ),
        (
            nothing_shared,
            r"a\.parquet, .*b\.parquet: share no question, so they cannot be compared",
        ),
        (twice, "a: a file is given twice"),
        (only_perturbed, "all are of perturbed questions; give the model's plain predictions too"),
        (
            of_unnamed_weights,
            r"a\.parquet: is of perturbed questions, but does not say of which weights "
            r"\(weights_sha256\), so that no model can be found for it",
        ),
        (
            of_other_weights,
            r"a\.parquet: is of perturbed questions, and 0 of the plain files are of the same "
            r"weights \(weights_sha256\); give exactly one",
        ),
    ],
)
def test_files_that_cannot_be_reported_on_are_named(
    make: Callable[[Path], list[Path]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClipstemError, match=message):
        gather(make(tmp_path))


def test_names_must_be_one_for_each_model(two_models: list[Path]) -> None:
    with pytest.raises(ClipstemError, match="conf key 'names': a, a are not 2 different names"):
        gather(two_models, ["a", "a"])


def test_an_existing_folder_is_not_overwritten(two_models: list[Path]) -> None:
    Path("report").mkdir()
    with pytest.raises(ClipstemError, match="report exists and is never overwritten"):
        write_report(config(two_models))

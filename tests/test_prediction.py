"""Predictions files: the same after a round trip, never overwritten, and broken ones named."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipstem import prediction
from clipstem.metrics import probabilities
from clipstem.pairs import LOWEST_LOGIT
from clipstem.prediction import COLUMNS, METADATA_KEY, Predictions
from clipstem.question import ClipstemError

PROVENANCE = {"run": "runs/a", "temperature": 0.7, "split": "valid", "skills": {"ä": 3}, "at": None}


def predictions(
    num_options: list[int], seed: int = 0, rows: list[int] | None = None
) -> Predictions:
    rng = np.random.default_rng(seed)
    count, most = len(num_options), max(num_options, default=1)
    num_options_Q = np.array(num_options, np.int64)
    logits_QK = rng.normal(size=(count, most)).astype(np.float32)
    logits_QK[np.arange(most) >= num_options_Q[:, None]] = LOWEST_LOGIT
    return Predictions(
        columns={
            "id": [f"q{number}" for number in range(count)],
            "row": list(range(count)) if rows is None else rows,
            **{name: [f"{name} ü"] * count for name in ("subject", "grade", "skill", "kind")},
            "num_options": num_options,
            "question_words": [5] * count,
            "truncated_tokens": [0] * count,
            "answer": [min(place % 3, options) - 1 for place, options in enumerate(num_options)],
        },
        probs_QK=probabilities(logits_QK, num_options_Q, 0.7).astype(np.float64),
        logits_QK=logits_QK,
        provenance=PROVENANCE,
    )


@settings(max_examples=25)
@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 99))
def test_what_is_written_is_read_again(num_options: list[int], seed: int) -> None:
    written = predictions(num_options, seed)
    with tempfile.TemporaryDirectory() as folder:
        written.write(Path(folder) / "p.parquet")
        found = prediction.read(Path(folder) / "p.parquet")
    assert found.columns == written.columns
    assert found.provenance == PROVENANCE
    for name in ("probs_QK", "logits_QK", "choice_Q", "answer_Q", "num_options_Q"):
        before, after = getattr(written, name), getattr(found, name)
        assert np.array_equal(before, after)
        assert before.dtype == after.dtype
    assert len(found) == len(num_options)


def test_the_file_has_the_documented_schema(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.parquet"
    predictions([2, 4]).write(path)
    table = pq.read_table(path)
    assert {field.name: field.type for field in table.schema} == COLUMNS
    assert table.column_names == list(COLUMNS)
    assert METADATA_KEY in table.schema.metadata
    assert [len(probs) for probs in table["probs"].to_pylist()] == [2, 4]
    assert [len(logits) for logits in table["logits"].to_pylist()] == [2, 4]


def test_wider_arrays_than_options_lose_nothing_but_empty_cells(tmp_path: Path) -> None:
    narrow = predictions([2, 3])
    empty = np.full((2, 2), LOWEST_LOGIT, np.float32)
    wide = Predictions(
        narrow.columns,
        np.hstack([narrow.probs_QK, np.zeros((2, 2))]),
        np.hstack([narrow.logits_QK, empty]),
    )
    wide.write(tmp_path / "p.parquet")
    found = prediction.read(tmp_path / "p.parquet")
    assert np.array_equal(found.probs_QK, narrow.probs_QK)
    assert np.array_equal(found.logits_QK, narrow.logits_QK)
    assert found.provenance == {}


def test_the_choice_is_the_most_probable_option_and_the_lowest_among_equals(tmp_path: Path) -> None:
    made = predictions([3, 3])
    probs_QK = np.array([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5]])
    tied = Predictions(made.columns, probs_QK, made.logits_QK)
    tied.write(tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["choice"].to_pylist() == [1, 0]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    predictions([2]).write(path)
    with pytest.raises(ClipstemError, match=r"p\.parquet exists and is never overwritten"):
        predictions([3]).write(path)
    assert prediction.read(path).num_options_Q.tolist() == [2]


# ---------------------------------------------------------------------------- broken files


def rewritten(path: Path, changes: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
    """A predictions file with some columns replaced or left out."""
    predictions([2, 3]).write(path)
    table = pq.read_table(path).drop_columns(list(without))
    for name, values in changes.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, path)
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match=r"none\.parquet: there is no such predictions file"):
        prediction.read(tmp_path / "none.parquet")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "p.parquet", {}, without=("skill", "probs"))
    with pytest.raises(ClipstemError, match=r"p\.parquet: .* it lacks the columns skill, probs$"):
        prediction.read(path)


@pytest.mark.parametrize("damage", ["text", "nothing", "cut", "overwritten"])
def test_what_is_no_parquet_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    predictions([2] * 50).write(path)
    data = path.read_bytes()
    damaged = {
        "text": b"0\n1\n2",
        "nothing": b"",
        "cut": data[: len(data) // 2],
        "overwritten": data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ClipstemError, match=r"p\.parquet: is not a predictions file: "):
        prediction.read(path)


@pytest.mark.parametrize("name", ["probs", "logits"])
def test_a_row_with_another_number_of_values_is_named(name: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "p.parquet", {name: pa.array([[0.5, 0.5], [1.0]])})
    with pytest.raises(ClipstemError, match=r"p\.parquet: row 1 has 1 values for 3 options"):
        prediction.read(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("answer", ["a", "b"], "column 'answer' is string with 0 nulls; expected int64"),
        ("num_options", [2, None], "column 'num_options' is int64 with 1 nulls; expected int64"),
        ("probs", [0.5, 0.5], "column 'probs' is double with 0 nulls; expected list<item: double>"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(
    name: str, values: list[Any], message: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "p.parquet", {name: pa.array(values)})
    with pytest.raises(ClipstemError) as error:
        prediction.read(path)
    assert str(error.value) == f"{path}: {message}"


def test_choice_may_be_anything_because_it_is_not_read(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "p.parquet", {"choice": pa.array(["b", None])})
    assert prediction.read(path).choice_Q.tolist() == predictions([2, 3]).choice_Q.tolist()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"not json", "the metadata 'clipstem' are not a JSON object; expected what made the file"),
        (b"[]", "the metadata 'clipstem' are not a JSON object; expected what made the file"),
        (b"\xff", "the metadata 'clipstem' are not a JSON object; expected what made the file"),
        (b'{"temperature": "warm"}', "temperature in the metadata is 'warm'; expected a number"),
        (b'{"perturbation": "blur"}', "perturbation in the metadata is 'blur'; expected a name"),
        (b'{"perturbation": {"name": 1}}', "perturbation in the metadata is {'name': 1}; expected"),
        (b'{"parameters": [1]}', "parameters in the metadata is [1]; expected a number, or none"),
    ],
)
def test_metadata_that_make_no_sense_are_named(
    metadata: bytes, message: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "p.parquet", {})
    pq.write_table(pq.read_table(path).replace_schema_metadata({METADATA_KEY: metadata}), path)
    with pytest.raises(ClipstemError) as error:
        prediction.read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_columns_of_related_types_are_taken(tmp_path: Path) -> None:
    changes = {
        "answer": pa.array([0, 1], pa.int8()),
        "skill": pa.array(["a", "b"], pa.large_string()),
        "probs": pa.array([[0.5, 0.5], [0.25, 0.25, 0.5]], pa.large_list(pa.float32())),
    }
    found = prediction.read(rewritten(tmp_path / "p.parquet", changes))
    assert found.answer_Q.tolist() == [0, 1]
    assert found.probs_QK.tolist() == [[0.5, 0.5, 0], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("skill", ["a", ""], "row 1: 'skill' is empty; expected a name"),
        ("id", ["", "b"], "row 0: 'id' is empty; expected a name"),
        ("id", ["b", "b"], "the id 'b' stands in 2 rows; expected one row a question"),
        (
            "answer",
            [0, 3],
            "row 1: the answer 3 is not among the 3 options; expected a 0-based index, or -1 for "
            "unknown",
        ),
        ("answer", [-2, 0], "row 0: the answer -2 is not among the 2 options; expected a "),
        (
            "probs",
            [[0.5, 0.5], [0.25, 0.5, 0.5]],
            "row 1: the probabilities 0.25, 0.5, 0.5 sum to 1.25; expected numbers from 0 to 1 "
            "with sum 1 (are they logits?)",
        ),
        ("probs", [[1.5, -0.5], [0, 0, 1]], "row 0: the probabilities 1.5, -0.5 sum to 1; "),
        ("probs", [[0.5, 0.5], [0, 1, np.nan]], "row 1: the probabilities 0, 1, nan sum to nan; "),
        (
            "logits",
            [[1, 2], [0, np.nan, 1]],
            "row 1: the logits are 0, nan, 1; expected numbers (or leave the column out)",
        ),
        ("logits", [[1, None], [0, 1, 1]], "row 0: the logits are 1, nan; expected numbers"),
        ("logits", [[1, np.inf], [0, 1, 1]], "row 0: the logits are 1, inf; expected numbers"),
    ],
)
def test_values_that_make_no_sense_are_named(
    name: str, values: list[Any], message: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "p.parquet", {name: pa.array(values)})
    with pytest.raises(ClipstemError) as error:
        prediction.read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_rounded_probabilities_are_taken(tmp_path: Path) -> None:
    rounded = pa.array([[0.5, 0.5], [0.333, 0.333, 0.333]])
    found = prediction.read(rewritten(tmp_path / "p.parquet", {"probs": rounded}))
    assert found.probs_QK[1].tolist() == [0.333] * 3


def test_anybodys_file_needs_six_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    names = {name: [f"{name} 1", f"{name} 2"] for name in ("id", "subject", "grade", "skill")}
    pq.write_table(
        pa.table({**names, "answer": [1, -1], "probs": [[0.25, 0.75], [0.0, 0.5, 0.5]]}), path
    )
    found = prediction.read(path)
    assert found.columns == {
        "id": names["id"],
        "row": [0, 1],
        "subject": names["subject"],
        "grade": names["grade"],
        "skill": names["skill"],
        "kind": ["unknown"] * 2,
        "num_options": [2, 3],
        "question_words": [-1] * 2,
        "truncated_tokens": [-1] * 2,
        "answer": [1, -1],
    }
    np.testing.assert_allclose(probabilities(found.logits_QK, found.num_options_Q), found.probs_QK)
    assert (found.provenance, found.unread, found.has_logits) == ({}, (), False)
    found.write(tmp_path / "ours.parquet")
    assert prediction.read(tmp_path / "ours.parquet").columns == found.columns


def test_other_columns_are_named_and_not_read(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "p.parquet", {})
    plain = prediction.read(path)
    table = pq.read_table(path).append_column("comment", [["a", "b"]])
    pq.write_table(table.append_column("annotator", [[1, 2]]), path)
    found = prediction.read(path)
    assert found.unread == ("comment", "annotator")
    assert found.columns == plain.columns and found.provenance == PROVENANCE


# ---------------------------------------------------------------------------- preds.txt


def test_choices_stand_in_source_order_with_0_for_what_was_skipped(tmp_path: Path) -> None:
    made = predictions([3, 3, 3], rows=[4, 0, 2])
    probs_QK = np.array([[0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    answered = Predictions(made.columns, probs_QK, made.logits_QK)
    path = tmp_path / "preds.txt"
    assert answered.write_choices(path, source_rows=6) == 3
    assert path.read_bytes() == b"1\n0\n2\n0\n2\n0"


def test_choices_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "preds.txt"
    path.write_text("mine")
    with pytest.raises(ClipstemError, match="never overwritten"):
        predictions([2]).write_choices(path, source_rows=1)
    assert path.read_text() == "mine"


def test_questions_are_taken_by_their_places() -> None:
    made = predictions([3, 2, 4, 3], 0)
    places = np.array([2, 0])
    found = made.at(places)
    assert {name: list(values) for name, values in found.columns.items()} == {
        name: [values[place] for place in (2, 0)] for name, values in made.columns.items()
    }
    assert np.array_equal(found.probs_QK, made.probs_QK[places])
    assert np.array_equal(found.logits_QK, made.logits_QK[places])


@pytest.mark.parametrize(
    ("trained", "changed"), [(None, True), ("blur", True), ("blank_picture", False)]
)
def test_a_blind_models_own_questions_are_not_perturbed(trained: str | None, changed: bool) -> None:
    facts = {"perturbation": {"name": "blank_picture"}, "train_perturb": trained}
    made = replace(predictions([2], 0), provenance=facts)
    assert (made.perturbation is not None) == changed

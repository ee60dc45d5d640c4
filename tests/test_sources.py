"""STEM's parquet files: exact counts and bytes, each bad row with its reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import (
    encoded,
    prepared,
    questions_of,
    skipped,
    stem,
)

from clipstem.bank.stem import SCHEMA
from clipstem.config import Source, Verify
from clipstem.question import ClipstemError

REALSET = os.environ.get("CLIPSTEM_REALSET")


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)


def test_rows_are_counted_over_the_files_of_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_parquet(folder / "b" / "train-00000-of-00002.parquet", [stem(i) for i in range(3)])
    write_parquet(folder / "a" / "train-00001-of-00002.parquet", [stem(i) for i in range(3, 7)])
    write_parquet(folder / "validation-00000.parquet", [stem(7), stem(8)])
    write_parquet(folder / "test-00000.parquet", [stem(9, answer_idx=-1)])
    dataset = prepared(tmp_path, folder, source=Source.stem, tune_fraction=0.0)
    found = questions_of(dataset)
    ids = [f"train-{i}" for i in range(7)] + ["valid-0", "valid-1", "test-0"]
    assert found.keys() == set(ids)
    assert [found[id][1].problem for id in ids] == [f"What, {i}?" for i in range(10)]
    assert dataset.manifest.source_rows == {"train": 7, "tune": 7, "valid": 2, "test": 1}


STEM_BAD_ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"subject": None}, "subject", "is null; expected a value"),
    ({"problem": None}, "problem", "is null; expected a value"),
    ({"problem": ""}, "problem", "is empty; expected the question's text"),
    ({"answer_idx": None}, "answer_idx", "is null; expected a value"),
    ({"answer_idx": 2}, "answer", "2 is not among the 2 options; expected 0 to 1, or -1 for "),
    ({"problem_pic": None}, "problem_pic", "is empty, but pic_prob is true"),
    ({"problem_pic": b""}, "problem_pic", "is empty, but pic_prob is true"),
    (
        {"problem_pic": b"abc", "pic_prob": False},
        "problem_pic",
        "is 3 bytes, but pic_prob is false",
    ),
    ({"problem_pic": b"<html>"}, "picture", "is not a picture (starts with b'<html')"),
    ({"choices": None}, "options", "there are none; expected at least one"),
    ({"choices": ["a", None]}, "options[1]", "is null; expected a value"),
    ({"choices_pic": [b"x"]}, "options[2]", "is not a picture (starts with b'x')"),
    ({"choices_pic": [encoded(0)]}, "options", "2 texts are mixed with 1 pictures; expected all "),
    ({"pic_choice": True}, "choices", "has 2 options, but pic_choice is true"),
    (
        {"choices": None, "choices_pic": [encoded(0)]},
        "choices_pic",
        "has 1 options, but pic_choice is false",
    ),
]


def test_each_bad_stem_row_is_skipped_with_its_reason(tmp_path: Path) -> None:
    rows = [stem(99)] + [stem(i, **change) for i, (change, _, _) in enumerate(STEM_BAD_ROWS)]
    write_parquet(tmp_path / "in" / "data" / "test-00000.parquet", rows)
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    assert questions_of(dataset).keys() == {"test-0"}
    found = skipped(tmp_path)
    assert {line["file"] for line in found} == {"data/test-00000.parquet"}
    for number, ((_, field, reason), line) in enumerate(zip(STEM_BAD_ROWS, found, strict=True), 1):
        assert (line["row"], line["field"]) == (number, field)
        assert line["reason"][: len(reason)] == reason


def with_types(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(field.name, types.get(field.name, field.type)) for field in SCHEMA])


NOT_TEXT = b"\xff\xfe or not"
CAST_BAD_ROWS: list[tuple[dict[str, pa.DataType], dict[str, Any], str, str]] = [
    ({"answer_idx": pa.float64()}, {"answer_idx": 1.5}, "answer_idx", "1.5; expected a whole numb"),
    ({"answer_idx": pa.float64()}, {"answer_idx": float("nan")}, "answer_idx", "NaN; expected a "),
    ({"answer_idx": pa.uint64()}, {"answer_idx": 2**63}, "answer_idx", f"{2**63}; expected a who"),
    (
        {"answer_idx": pa.string()},
        {"answer_idx": "B"},
        "answer_idx",
        '"B"; expected a whole number',
    ),
    ({"pic_prob": pa.string()}, {"pic_prob": "maybe"}, "pic_prob", '"maybe"; expected true or fal'),
    (
        {"problem": pa.binary()},
        {"problem": NOT_TEXT},
        "problem",
        "b'\\xff\\xfe or not'; expected a text in UTF-8",
    ),
    (
        {"problem": pa.binary()},
        {"problem": b"\xff" + bytes(999)},
        "problem",
        "b'\\xff" + 19 * "\\x00" + "'...; expected a text in UTF-8",
    ),
    (
        {"choices": pa.list_(pa.binary())},
        {"choices": [b"a", NOT_TEXT]},
        "choices[1]",
        "b'\\xff\\xfe or not'; expected a text in UTF-8",
    ),
]


@pytest.mark.parametrize(("types", "change", "field", "reason"), CAST_BAD_ROWS)
def test_a_value_of_another_type_is_one_bad_row(
    tmp_path: Path,
    types: dict[str, pa.DataType],
    change: dict[str, Any],
    field: str,
    reason: str,
) -> None:
    def typed(values: dict[str, Any]) -> dict[str, Any]:
        arrays = {k: pa.array([values[k]], SCHEMA.field(k).type).cast(t) for k, t in types.items()}
        return values | {name: array.to_pylist()[0] for name, array in arrays.items()}

    rows = [typed(stem(0)), typed(stem(1)) | change, typed(stem(2))]
    write_parquet(tmp_path / "in" / "test-0.parquet", rows, with_types(**types))
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    found = questions_of(dataset)
    assert {id: question.problem for id, (_, question) in found.items()} == {
        "test-0": "What, 0?",
        "test-2": "What, 2?",
    }
    (line,) = skipped(tmp_path)
    assert (line["row"], line["field"]) == (1, field)
    assert line["reason"].startswith(f"is {reason}")
    assert len(line["reason"]) < 150


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_text_column_with_other_bytes_is_one_bad_row(tmp_path: Path, dictionary: bool) -> None:
    """Parquet's readers do not check that a text is UTF-8."""
    table = pa.Table.from_pylist([stem(i) for i in range(3)], SCHEMA)
    problems = pa.array([b"What, 0?", NOT_TEXT, b"What, 2?"])
    options = pa.array([b"a", b"b", b"a", NOT_TEXT, b"a", b"b"]).view(pa.string())
    column: pa.Array = problems.view(pa.string())
    if dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), problems)
    else:
        choices = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), options)
        table = table.set_column(SCHEMA.get_field_index("choices"), "choices", choices)
    table = table.set_column(SCHEMA.get_field_index("problem"), "problem", column)
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "test-0.parquet")
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    assert questions_of(dataset).keys() == {"test-0", "test-2"}
    (line,) = skipped(tmp_path)
    reason = r"is b'\xff\xfe or not'; expected a text in UTF-8"
    assert (line["row"], line["field"], line["reason"]) == (1, "problem", reason)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_more_files_than_can_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        write_parquet(tmp_path / "in" / f"test-{i:02d}.parquet", [stem(i)])
    most = 0

    def counted(file: int, length: int, start: int) -> bytes:
        nonlocal most
        spools = [p for p in Path("/proc/self/fd").iterdir() if str(p.resolve()).endswith(".spool")]
        most = max(most, len(spools))
        return pread(file, length, start)

    pread = os.pread
    monkeypatch.setattr("clipstem.spool.MAX_OPEN_SPOOLS", 3)
    monkeypatch.setattr("clipstem.spool.os.pread", counted)
    dataset = prepared(tmp_path, tmp_path / "in", source=Source.stem)
    monkeypatch.undo()
    assert questions_of(dataset).keys() == {f"test-{i}" for i in range(20)}
    assert most == 3


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def refused(message: str) -> None:
        with pytest.raises(ClipstemError, match=message):
            prepared(tmp_path, folder, source=Source.stem)

    refused(rf"'path': no parquet file is under '{folder}'; expected files named train-")
    file = folder / "train-0.parquet"
    file.write_bytes(b"PAR1 no")
    refused(rf"{file}: is no parquet file \(")
    names = [name for name in SCHEMA.names if name not in ("skill", "choices_pic")]
    write_parquet(file, [stem(0)], pa.schema([SCHEMA.field(name) for name in names]))
    refused(rf"{file}: lacks the columns skill, choices_pic; expected STEM's: subject, grade")
    hub_image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    place = SCHEMA.get_field_index("problem_pic")
    schema = SCHEMA.set(place, pa.field("problem_pic", hub_image))
    write_parquet(file, [stem(0, problem_pic=None)], schema)
    refused(rf"{file}: column problem_pic is struct<.*>; expected binary")
    file.rename(folder / "dev-0.parquet")
    refused(r"dev-0.parquet: its name must start with its split: train, valid or test")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "in" / "train-0.parquet"
    write_parquet(file, [stem(i, problem_pic=encoded(i, side=99)) for i in range(4)])
    data = bytearray(file.read_bytes())
    data[2000:60_000] = bytes(58_000)
    file.write_bytes(data)
    with pytest.raises(ClipstemError, match=rf"{file}: is damaged \(.*\); copy it again"):
        prepared(tmp_path, tmp_path / "in", source=Source.stem)


def test_neither_a_folder_nor_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(
        ClipstemError, match=r"no folder '.*/x'; expected a folder of parquet files"
    ):
        prepared(tmp_path, tmp_path / "x", source=Source.stem)


def test_the_hub_without_its_client_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipstem.sources import stem_source

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ClipstemError, match=r"needs huggingface_hub; pip install huggingface_hub"):
        stem_source("owner/name")

    class Client:
        @staticmethod
        def snapshot_download(name: str, **_: Any) -> str:
            raise ConnectionError(f"no network for {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    with pytest.raises(ClipstemError, match=r"could not be fetched \(no network for owner/name\)"):
        stem_source("owner/name")


def test_the_hub_gives_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Client:
        @staticmethod
        def snapshot_download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            return str(tmp_path / "snapshot")

    write_parquet(tmp_path / "snapshot" / "train-0.parquet", [stem(0)])
    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    dataset = prepared(tmp_path, Path("owner/name"), source=Source.stem)
    assert dataset.manifest.questions == {"train": 1}
    assert dataset.manifest.source["path"] == "owner/name"
    assert asked == {"name": "owner/name", "repo_type": "dataset", "allow_patterns": "*.parquet"}


@pytest.mark.skipif(not REALSET, reason="CLIPSTEM_REALSET names no folder in STEM's schema")
@pytest.mark.parametrize("verify", list(Verify))
def test_the_realset_comes_through_byte_by_byte(tmp_path: Path, verify: Verify) -> None:
    assert REALSET
    changes = {"source": Source.stem, "verify": verify, "max_skipped_fraction": 0.0}
    dataset = prepared(tmp_path, Path(REALSET), workers=2, **changes)
    expected: dict[str, dict[str, Any]] = {}
    for split in ("train", "valid", "test"):
        files = sorted(Path(REALSET).rglob(f"{split}*.parquet"))
        rows = [r for file in files for r in pq.read_table(file).to_pylist()]
        expected |= {f"{split}-{i}": r for i, r in enumerate(rows)}
    found = questions_of(dataset)
    assert len(expected) == 2841
    assert found.keys() == expected.keys()
    for id, (split, question) in found.items():
        source = expected[id]
        pictures = [source["problem_pic"]] * source["pic_prob"] + (source["choices_pic"] or [])
        assert [picture.data for picture in question.pictures] == pictures
        assert source["choices"] is None or list(question.options) == source["choices"]
        assert (question.problem, question.answer) == (source["problem"], source["answer_idx"])
        assert (question.subject, question.grade) == (source["subject"], source["grade"])
        assert (question.skill, split.replace("tune", "train")) == (
            source["skill"],
            id.partition("-")[0],
        )
    assert dataset.manifest.shared_pictures == {}

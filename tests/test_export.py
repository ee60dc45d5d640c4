"""A bundle says how it compares with torch, and a variant that may be worse is not written."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from clipstem import export as exporting
from clipstem.command import model_config
from clipstem.config import ExportConfig, TrainerConfig, Variant
from clipstem.export import export
from clipstem.question import ClipstemError

ON_CPU = TrainerConfig(device="cpu", workers=0)


def config(out: Path, questions_in: Path, **changes: object) -> ExportConfig:
    given: dict[str, Any] = {"model": model_config("tiny"), "trainer": ON_CPU}
    given |= {"data": str(questions_in), **changes}
    return ExportConfig(out=str(out), **given)


def take_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on exports take a bundle's graphs: tracing the same model again takes seconds."""
    monkeypatch.setattr(
        exporting,
        "write_graphs",
        lambda towers, folder: shutil.copytree(bundle / Variant.fp32.value, folder),
    )


def test_the_parity_is_written_down(tiny_bundle: Path) -> None:
    facts = json.loads((tiny_bundle / "bundle.json").read_text())
    fp32, int8 = facts["variants"]["fp32"], facts["variants"]["int8"]
    assert fp32["largest_difference"] < 1e-4 and fp32["choices_that_differ"] == 0
    assert fp32["accuracy"] == fp32["torch_accuracy"] and fp32["accuracy_drop_at_most"] > 0
    assert fp32["questions"] == int8["questions"] == 40
    assert fp32["megabytes"] > int8["megabytes"] > 0
    assert int8["largest_difference"] > fp32["largest_difference"]
    assert {"data", "data_sha256", "split"} == facts["checked_on"].keys()
    assert "onnxruntime" in facts["environment"]["versions"]


@pytest.mark.slow
def test_convolutions_stay_in_fp32(drawn_data: Path, tmp_path: Path) -> None:
    measured = export(config(tmp_path / "both", drawn_data, max_accuracy_drop=100.0))
    assert measured["int8"].kept_in_fp32 == ("picture.onnx",)
    both = tmp_path / "both"
    picture = [(both / variant / "picture.onnx").read_bytes() for variant in ("fp32", "int8")]
    assert picture[0] == picture[1]


def test_a_doubtful_variant_is_not_written(
    drawn_data: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_graphs(tiny_bundle, monkeypatch)  # of the same weights, drawn from seed 0
    with caplog.at_level(logging.WARNING, "clipstem.export"):
        measured = export(config(tmp_path / "one", drawn_data, model=model_config("tiny_vit")))
    assert list(measured) == ["fp32"]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        *("bundle.json", "tokenizer.json", "fp32")
    }
    (line,) = (it.message for it in caplog.records if it.name == "clipstem.export")
    assert line.startswith("int8 is not written: on 40 questions its accuracy may be ")
    assert "max_accuracy_drop=0.5 are allowed" in line


def test_graphs_that_answer_otherwise_are_an_error(
    drawn_data: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_graphs(tiny_bundle, monkeypatch)  # of the same weights, drawn from seed 0
    monkeypatch.setattr(exporting, "MOST_DIFFERENT", 0.0)
    other = {"model": model_config("tiny_vit"), "int8": False}
    with pytest.raises(
        ClipstemError, match=r"^the ONNX graphs give other answers than torch: a pr"
    ):
        export(config(tmp_path / "bundle", drawn_data, **other))
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_never_overwritten(drawn_data: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ClipstemError, match="bundle exists and is never overwritten"):
        export(config(tmp_path / "bundle", drawn_data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "give one of run=<folder of a finished run> and model="),
        ({"data": None}, "'data' is missing; with model= give data=<a prepared folder>"),
        ({"questions": 0}, "'questions': 0 is not above 0"),
        ({"max_accuracy_drop": 0.0}, "'max_accuracy_drop': 0.0 is not above 0"),
        ({"split": "exam"}, "there is no split 'exam'"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(
    changes: dict[str, object], message: str, drawn_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ClipstemError, match=message):
        export(config(tmp_path / "bundle", drawn_data, **changes))

"""A bundle answers as torch does, without torch, for every kind of text tower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import encoded
from test_models import LAYOUTS, architecture

import clipstem
from clipstem import prediction, scorer, shards
from clipstem.command import model_config
from clipstem.config import ExportConfig, ModelConfig, Precision, TrainerConfig, Variant
from clipstem.export import export
from clipstem.onnx_scorer import OnnxScorer
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError

ON_CPU = TrainerConfig(device="cpu", workers=0)
SOME = 200  # questions


def equal(found: Predictions, expected: Predictions) -> None:
    assert found.columns == expected.columns
    assert (found.choice_Q == expected.choice_Q).all()
    np.testing.assert_allclose(found.probs_QK, expected.probs_QK, atol=1e-4)


def test_a_bundle_answers_as_torch_does(
    tiny_bundle: Path, mixed_data: Path, drawn_data: Path
) -> None:
    dataset = shards.open_dataset(str(mixed_data))
    ours = scorer.of_model(model_config("tiny_vit"), ON_CPU)
    theirs = OnnxScorer(tiny_bundle, ON_CPU, Variant.fp32)
    found = theirs.predict(dataset, "valid", 7, chosen=slice(SOME))
    assert len(set(found.columns["kind"])) == 3
    equal(found, ours.predict(dataset, "valid", 32, chosen=slice(SOME)))
    assert found.provenance["weights_sha256"] == ours.model.weights_sha256()
    assert (found.provenance["variant"], found.provenance["device"]) == ("fp32", "cpu")
    some = theirs.predict(dataset, "valid", 7, chosen=slice(10))
    assert some.columns["id"] == found.columns["id"][:10]
    drawn = shards.open_dataset(str(drawn_data))
    helped = OnnxScorer(tiny_bundle, TrainerConfig("cpu", workers=1), Variant.fp32)
    equal(helped.predict(drawn, "valid", 32), theirs.predict(drawn, "valid", 7))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_kind_of_text_tower_is_exported(kind: str, drawn_data: Path, tmp_path: Path) -> None:
    model = ModelConfig(name=f"mine-{kind}", architecture=architecture(kind, tmp_path))
    export(ExportConfig(str(tmp_path / "bundle"), model=model, data=str(drawn_data), int8=False))
    dataset = shards.open_dataset(str(drawn_data))
    theirs = OnnxScorer(tmp_path / "bundle", ON_CPU, Variant.fp32)
    assert theirs.tokenizer.layout is LAYOUTS[kind]
    expected = scorer.of_model(model, ON_CPU).predict(dataset, "valid", 7)
    equal(theirs.predict(dataset, "valid", 7), expected)


def test_one_question_is_scored_by_load(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(encoded(Image.radial_gradient("L")))
    asked = (picture, "Which shape is this?", ["circle", "square", "triangle"])
    found = clipstem.load(tiny_bundle).score(*asked)
    np.testing.assert_allclose(found, clipstem.load("tiny_vit").score(*asked), atol=1e-4)
    with pytest.raises(ClipstemError, match="question 'What': options: there are none"):
        clipstem.load(tiny_bundle).score(None, "What", [])


def test_cuda_is_refused_where_there_is_none(tiny_bundle: Path) -> None:
    with pytest.raises(ClipstemError, match=r"'trainer.device': this onnxruntime has no CUDA; pip"):
        OnnxScorer(tiny_bundle, TrainerConfig("cuda"), Variant.fp32)


def test_a_file_that_is_no_graph_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    from clipstem.onnx_scorer import _session

    (tmp_path / "text.onnx").write_bytes(b"no graph")
    with pytest.raises(ClipstemError, match=r"text.onnx: onnxruntime cannot open it \("):
        _session(tmp_path / "text.onnx", "CPUExecutionProvider", None)


def test_predict_and_load_need_no_torch(
    tiny_bundle: Path, drawn_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.radial_gradient("L")))
    code = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "import clipstem; from clipstem.predict import main\n"
        f"probs_K = clipstem.load({str(tiny_bundle)!r}).score('a.png', 'Which?', ['x', 'y'])\n"
        "assert abs(probs_K.sum() - 1) < 1e-6; main()"
    )
    arguments = [f"bundle={tiny_bundle}", f"data={drawn_data}", "split=test", "out=test.parquet"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    found = prediction.read(tmp_path / "test.parquet")
    dataset = shards.open_dataset(str(drawn_data))
    equal(found, scorer.of_model(model_config("tiny_vit"), ON_CPU).predict(dataset, "test", 32))


def test_bf16_is_refused_for_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    in_bf16 = TrainerConfig("cpu", Precision.bf16)
    with pytest.raises(
        ClipstemError, match=r"'trainer\.precision': bf16 is for scoring with torch"
    ):
        OnnxScorer(tiny_bundle, in_bf16, Variant.fp32)
    with pytest.raises(ClipstemError, match=r"'trainer\.precision': a bundle is checked against "):
        ExportConfig(str(tmp_path), run="r", trainer=in_bf16)


def test_an_export_to_what_exists_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match="exists and is never overwritten; give another out="):
        export(ExportConfig(str(tmp_path), run="there is none"))

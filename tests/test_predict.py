from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import with_broken_pictures

from clipstem import metrics, prediction, shards
from clipstem.command import model_config
from clipstem.config import Perturbation, PredictConfig, TrainConfig, TrainerConfig
from clipstem.predict import main, predict
from clipstem.question import ClipstemError, ProblemPicture
from clipstem.shards import Dataset
from clipstem.train import train

ON_CPU = TrainerConfig(device="cpu", workers=0)


@pytest.fixture(scope="module")
def run(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    config = TrainConfig(
        data=str(drawn_data),
        out=str(out),
        model=model_config("tiny_vit"),
        trainer=ON_CPU,
        steps=2,
        batch_size=8,
    )
    train(config)
    return out


def settings(data: Path, **given: Any) -> PredictConfig:
    return PredictConfig(data=str(data), trainer=ON_CPU, **{"split": "valid", **given})


def test_every_split_gets_its_file(run: Path, drawn_data: Path, tmp_path: Path) -> None:
    made = predict(settings(drawn_data, run=str(run), split="all", out=str(tmp_path / "p.parquet")))
    assert list(made) == ["train", "tune", "valid", "test"]
    for split, found in made.items():
        again = prediction.read(tmp_path / f"p-{split}.parquet")
        assert again.provenance["split"] == split
        assert again.columns["id"] == found.columns["id"]
        assert set(again.columns["subject"]) == {"math", "science", "technology"}


def test_a_runs_predictions_go_into_its_folder(run: Path, drawn_data: Path) -> None:
    predict(settings(drawn_data, run=str(run), split="test"))
    found = prediction.read(run / "predictions" / "test.parquet")
    assert found.provenance["run"] == str(run)
    assert found.provenance["train_questions_of_skill"]["weather"] == 18
    assert found.provenance["parameters"] > 1_000_000
    with pytest.raises(ClipstemError, match=r"test\.parquet exists and is never overwritten"):
        predict(settings(drawn_data, run=str(run), split="test"))


def test_a_zero_shot_model_is_calibrated_on_tune(drawn_data: Path, tmp_path: Path) -> None:
    model = model_config("tiny_vit")
    out = str(tmp_path / "zero.parquet")
    found = predict(settings(drawn_data, model=model, out=out))["valid"]
    tune_out = str(tmp_path / "tune.parquet")
    tune = predict(settings(drawn_data, model=model, out=tune_out, split="tune"))["tune"]
    fitted = metrics.fit_temperature(tune.logits_QK, tune.answer_Q)
    assert found.provenance["temperature"] == pytest.approx(fitted)
    assert found.provenance["run"] is None and found.provenance["model"] == "tiny_vit"


def test_a_given_temperature_is_used(run: Path, drawn_data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "hot.parquet")
    found = predict(settings(drawn_data, run=str(run), out=out, temperature=5.0))["valid"]
    expected = metrics.probabilities(found.logits_QK, found.num_options_Q, 5.0)
    np.testing.assert_array_equal(found.probs_QK, expected)


def test_the_problems_picture_can_be_ignored(run: Path, drawn_data: Path, tmp_path: Path) -> None:
    shown = prediction.read(run / "predictions" / "valid.parquet")
    out = str(tmp_path / "blind.parquet")
    mode = ProblemPicture.ignored
    blind = predict(settings(drawn_data, run=str(run), out=out, problem_picture=mode))["valid"]
    third_Q = np.array(shown.columns["kind"]) == "picture_options_on_picture"
    differs_Q = np.abs(shown.probs_QK - blind.probs_QK).max(axis=1) > 1e-6
    assert third_Q.any() and differs_Q[third_Q].all() and not differs_Q[~third_Q].any()


def test_perturbed_questions_get_their_own_file(run: Path, drawn_data: Path) -> None:
    plain = prediction.read(run / "predictions" / "valid.parquet")
    blank = predict(settings(drawn_data, run=str(run), perturb=Perturbation.blank_picture))["valid"]
    again = prediction.read(run / "predictions" / "valid-blank_picture.parquet")
    assert again.provenance == blank.provenance
    assert again.provenance["perturbation"]["name"] == "blank_picture"
    assert plain.provenance["perturbation"] is None
    assert again.provenance["temperature"] == plain.provenance["temperature"]
    assert again.columns["id"] == plain.columns["id"]
    assert again.columns["answer"] == plain.columns["answer"]
    assert (again.probs_QK != plain.probs_QK).any()
    # Options that are pictures are now all alike, and the first is chosen.
    pictures_Q = np.array(again.columns["kind"]) != "text_options"
    assert pictures_Q.any() and (again.choice_Q[pictures_Q] == 0).all()
    predict(settings(drawn_data, run=str(run), perturb=Perturbation.noise, perturb_strength=0.25))
    noisy = prediction.read(run / "predictions" / "valid-noise-0.25.parquet")
    assert noisy.provenance["perturbation"]["strength"] == 0.25


def test_parts_are_the_whole_split_once_and_in_its_order(
    run: Path, drawn_data: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "whole.parquet")
    whole = predict(settings(drawn_data, run=str(run), out=out, batch_size=7))["valid"]
    ids: list[str] = []
    probs = []
    for part in (1, 2, 3):
        found = predict(settings(drawn_data, run=str(run), part=part, parts=3))["valid"]
        assert (found.provenance["part"], found.provenance["parts"]) == (part, 3)
        assert len(found) in (len(whole) // 3, len(whole) // 3 + 1)
        assert (run / "predictions" / f"valid-part{part}of3.parquet").is_file()
        ids += found.columns["id"]
        probs += [row[row > 0] for row in found.probs_QK]
    assert ids == whole.columns["id"]
    for expected, row in zip(whole.probs_QK, probs, strict=True):
        np.testing.assert_allclose(row, expected[expected > 0], atol=1e-6, rtol=0)


def test_a_models_temperature_is_fitted_on_what_is_not_perturbed(
    drawn_data: Path, tmp_path: Path
) -> None:
    model = model_config("tiny_vit")
    plain, blank = (
        predict(settings(drawn_data, model=model, out=str(tmp_path / f"{name}.parquet"), perturb=p))
        for name, p in (("plain", None), ("blank", Perturbation.blank_picture))
    )
    temperatures = [found["valid"].provenance["temperature"] for found in (plain, blank)]
    assert temperatures[0] == temperatures[1]


def test_preds_txt_has_a_line_for_each_row_of_test(
    run: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, text = tmp_path / "t.parquet", tmp_path / "preds.txt"
    arguments = [f"run={run}", f"data={drawn_data}", "split=test", f"out={out}"]
    monkeypatch.setattr("sys.argv", ["predict", *arguments, f"preds_txt={text}"])
    main()
    found = prediction.read(out)
    rows = shards.open_dataset(str(drawn_data)).manifest.source_rows["test"]
    lines = text.read_text().split("\n")
    assert len(lines) == rows == len(found)
    assert [int(lines[row]) for row in found.columns["row"]] == found.choice_Q.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "nowhere: there is no run here"),
        (["split=exam", "run=x"], "conf key 'split': there is no split 'exam'"),
        ([], "give one of run="),
        (["model=tiny_vit"], "conf key 'out' is missing"),
        (["model=open_clip", "model.name=ViT-B-23", "out=x"], "did you mean 'ViT-B-32'"),
        (["model=open_clip", "out=x"], "conf key 'model.name' is missing"),
        (
            ["model=tiny", "model.name=ViT-B-32", "out=x"],
            "'model.name': 'ViT-B-32' is an open_clip model, but 'model.architecture' describes",
        ),
        (["run=x", "temperature=0"], "conf key 'temperature': 0.0 is not above 0"),
        (["run=x", "perturb_strength=2"], "'perturb_strength': needs perturb=<name> beside it"),
        (["run=x", "perturb=case", "perturb_strength=2"], "perturb=case has none; leave it out"),
        (["run=x", "perturb=crop", "perturb_strength=2"], "2 is not from 0 to 0.4; for perturb="),
        (["split=all", "run=x", "preds_txt=p.txt"], "conf key 'preds_txt': is one file for one"),
        (["model=vit_b23", "out=x"], "conf key 'model': there is no 'vit_b23'; did you mean"),
        (["run=x", "+typo=1"], "conf key 'typo' is unknown"),
        (["run=x", "splt=valid"], "conf key 'splt' is unknown; did you mean 'split'?"),
    ],
)
def test_a_mistake_prints_one_line_and_exits_with_2(
    arguments: list[str],
    message: str,
    drawn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["predict", f"data={drawn_data}", "split=valid", *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert message in printed and "\n" not in printed and "Traceback" not in printed


def test_data_that_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match="nowhere"):
        predict(settings(tmp_path / "nowhere", run=str(run)))


def test_with_broken_pictures_the_rest_comes_through_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ("q7", "q23", "q41")
    clean = with_broken_pictures(tmp_path / "clean", 50)
    damaged = with_broken_pictures(tmp_path / "damaged", 50, [int(id[1:]) for id in broken])
    on_cpu = TrainerConfig(device="cpu", workers=1, max_skipped_fraction=0.06)

    def answers(data: Dataset, name: str, trainer: TrainerConfig) -> prediction.Predictions:
        config = settings(
            Path(data.location),
            model=model_config("tiny_vit"),
            split="train",
            out=str(tmp_path / name),
            batch_size=8,
        )
        return predict(replace(config, trainer=trainer))["train"]

    whole = answers(clean, "clean.parquet", on_cpu)
    found = answers(damaged, "damaged.parquet", on_cpu)
    kept = [place for place, id in enumerate(whole.columns["id"]) if id not in broken]
    ids = [whole.columns["id"][place] for place in kept]
    assert sorted(found.columns["id"]) == sorted(ids)
    order = [found.columns["id"].index(id) for id in ids]
    np.testing.assert_allclose(found.probs_QK[order], whole.probs_QK[kept], atol=1e-6)
    listed = (tmp_path / "damaged.skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in listed) == sorted(broken)
    assert found.provenance["skipped"] == 3 and whole.provenance["skipped"] == 0
    assert "3 questions skipped: a picture is truncated" in capsys.readouterr().out
    assert not (tmp_path / "clean.skipped.jsonl").exists()
    with pytest.raises(
        ClipstemError, match=r"of 50 questions have broken pictures, more than trai"
    ):
        answers(damaged, "again.parquet", ON_CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"perturb": Perturbation.blur},
        {"perturb": Perturbation.typos, "batch_size": 1},
        {"part": 2, "parts": 4},
        {"part": 2, "parts": 30},  # nothing else is in it
    ],
)
def test_one_broken_picture_is_skipped_however_the_split_is_asked(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = with_broken_pictures(tmp_path / "data", 30, broken=[11])
    ids = data.index("train")["id"].to_pylist()
    config = settings(
        Path(data.location),
        model=model_config("micro"),
        split="train",
        out=str(tmp_path / "p.parquet"),
    )
    if "parts" in changes:
        changes |= {"part": 1 + ids.index("q11") * changes["parts"] // 30}
    found = predict(replace(config, **changes))["train"]
    assert [id for id, _ in found.skipped] == ["q11"]
    if "parts" not in changes:
        assert found.columns["id"] == [id for id in ids if id != "q11"]

"""Whole runs with each part of the recipe: what they leave behind, and that they resume exactly."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import load_file
from torch import Tensor
from training import ON_CPU, SMALL, an_epoch

from clipstem import callbacks, loader, prediction, scorer, shards, towers
from clipstem import train as training
from clipstem.averages import ALPHAS, between
from clipstem.batches import Batches
from clipstem.config import (
    Augment,
    LoggerConfig,
    Perturbation,
    Precision,
    PrepareConfig,
    TrainConfig,
    TrainerConfig,
    TuneConfig,
    TuneMode,
)
from clipstem.learner import Learner
from clipstem.pairs import PairBatch
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Kind
from clipstem.run import Run
from clipstem.train import train


def small(data: Path, out: Path, tune: TuneConfig, **settings: Any) -> TrainConfig:
    given = {"steps": 6, "batch_size": 12, "patience": None, **settings}
    return an_epoch(data, out, tune=tune, **given)


def weights_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / towers.WEIGHTS_FILE)


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def start() -> dict[str, Tensor]:
    return dict(towers.create(SMALL).model.state_dict())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) for name, value in left.items()
    )


# ---------------------------------------------------------------------------- nothing learns


def test_zero_shot_calibrates_and_scores_the_model_as_it_comes(
    drawn_data: Path, tmp_path: Path
) -> None:
    made = train(small(drawn_data, tmp_path / "run", TuneConfig(mode=TuneMode.zero_shot)))
    assert made.is_done
    assert same(weights_in(made.weights), start())
    written = prediction.read(made.predictions("valid"))
    assert written.provenance["temperature"] == made.facts["temperature"] != 1.0
    again = scorer.of_run(made.folder, ON_CPU).predict(
        shards.open_dataset(str(drawn_data)), "valid", 5
    )
    np.testing.assert_allclose(written.probs_QK, again.probs_QK, atol=1e-6)
    assert not (made.folder / "checkpoints").exists() and not made.metrics.exists()


# ---------------------------------------------------------------------------- some learn


@pytest.mark.parametrize(
    ("tune", "learning"),
    [
        (TuneConfig(mode=TuneMode.head), {"visual.proj", "text_projection", "logit_scale"}),
        (TuneConfig(mode=TuneMode.last_blocks, blocks=1), {"visual.proj", "ln_final.bias"}),
    ],
    ids=["head", "last_blocks"],
)
def test_what_is_frozen_comes_out_as_it_went_in(
    tune: TuneConfig, learning: set[str], drawn_data: Path, tmp_path: Path
) -> None:
    made = train(small(drawn_data, tmp_path / "run", tune, steps=2))
    before, after = start(), weights_in(made.weights)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if tune.mode is TuneMode.head:
        assert changed == learning
    assert learning <= changed
    assert not [name for name in changed if "resblocks.0" in name or "embedding" in name]


def test_a_head_learns_the_same_from_remembered_features(drawn_data: Path, tmp_path: Path) -> None:
    runs = [
        train(
            small(
                drawn_data,
                tmp_path / f"run{reuse}",
                TuneConfig(mode=TuneMode.head, reuse_features=reuse),
            )
        )
        for reuse in (True, False)
    ]
    first, second = (rows_of(made.metrics) for made in runs)
    for row, other in zip(first, second, strict=True):
        if row["listwise"]:
            assert float(row["listwise"]) == pytest.approx(float(other["listwise"]), abs=1e-5)


def test_a_head_learns_in_bf16_too(drawn_data: Path, tmp_path: Path) -> None:
    tune = TuneConfig(mode=TuneMode.head)
    on_cpu = TrainerConfig(device="cpu", workers=0, precision=Precision.bf16)
    made = train(small(drawn_data, tmp_path / "run", tune, steps=4, trainer=on_cpu))
    assert all(value.dtype == torch.float32 for value in weights_in(made.weights).values())


def test_pictures_that_change_are_encoded_in_every_step(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bool] = []
    fit = loader.load

    def spy(batches: Batches, *args: Any, **kwargs: Any) -> Any:
        decoded.append(batches.decodes and batches.change_seed is not None)
        return fit(batches, *args, **kwargs)

    monkeypatch.setattr(loader, "load", spy)
    tune = TuneConfig(mode=TuneMode.head, augment=Augment.mild)
    train(small(drawn_data, tmp_path / "run", tune, steps=2))
    # The training batches alone are changed: not the features', nor tune's or valid's.
    assert decoded == [False, True, False, False, False]


def test_a_run_without_pictures_sees_none(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[str] = set()
    terms = Learner.terms

    def spy(self: Learner, batch: PairBatch) -> dict[str, Tensor]:
        shown.update(batch.pictures)
        return terms(self, batch)

    monkeypatch.setattr(Learner, "terms", spy)
    blind = small(drawn_data, tmp_path / "run", TuneConfig(), steps=2)
    blind.perturb = Perturbation.blank_picture
    made = train(blind)
    assert len(shown) == 1
    found = prediction.read(made.predictions("valid"))
    assert found.provenance["perturbation"]["name"] == "blank_picture"
    for kind, probs_K, options in zip(
        found.columns["kind"], found.probs_QK, found.num_options_Q, strict=True
    ):
        if kind != Kind.TEXT_OPTIONS.value:  # all pictures are the same
            np.testing.assert_allclose(probs_K[:options], 1 / options)


# ---------------------------------------------------------------------------- resuming

EVERYTHING = TuneConfig(
    layer_decay=0.8,
    ema_decay=0.9,
    label_smoothing=0.1,
    patch_dropout=0.25,
    augment=Augment.mild,
    gradient_checkpointing=True,
    soup=2,
    wise_ft=True,
)


def test_a_resumed_run_with_everything_on_is_bit_identical(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"accumulate": 2}
    whole = train(small(drawn_data, tmp_path / "whole", EVERYTHING, **settings))
    step_of = Learner.training_step

    def stop_at_step_5(self: Learner, batch: PairBatch, number: int) -> Tensor:
        if self.global_step == 5:
            raise ConnectionError("the power fails")
        return step_of(self, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "training_step", stop_at_step_5)
        with pytest.raises(ConnectionError):
            train(small(drawn_data, tmp_path / "run", EVERYTHING, **settings))
    config = small(drawn_data, tmp_path / "run", EVERYTHING, resume=True, **settings)
    resumed = train(config)
    assert same(weights_in(whole.weights), weights_in(resumed.weights))
    for step in whole.facts["soup"]:
        assert same(weights_in(whole.kept(step)), weights_in(resumed.kept(step)))
    for name in ("alpha", "soup", "temperature"):
        assert whole.facts[name] == resumed.facts[name]
    states = [torch.load(run.checkpoints[0], weights_only=True) for run in (whole, resumed)]
    ours, theirs = (state["callbacks"]["AverageWeights"] for state in states)
    assert ours["updates"] == theirs["updates"] == 6
    assert same(ours["weights"], theirs["weights"])


def test_the_average_is_what_is_evaluated_and_kept(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    summary_of = callbacks.summary_on_tune

    def spy(scoring: scorer.Scorer, *args: Any) -> Any:
        seen.append({n: v.clone() for n, v in scoring.model.model.state_dict().items()})
        return summary_of(scoring, *args)

    monkeypatch.setattr(callbacks, "summary_on_tune", spy)
    tune = TuneConfig(ema_decay=0.9)
    made = train(small(drawn_data, tmp_path / "run", tune, steps=2))
    state = torch.load(made.checkpoints[0], weights_only=True)
    average = state["callbacks"]["AverageWeights"]["weights"]
    assert same(average, seen[0]) and same(average, weights_in(made.weights))
    raw = {n.removeprefix("towers.model."): v for n, v in state["state_dict"].items()}
    assert not same(raw, average)


# ---------------------------------------------------------------------------- after the steps


@pytest.fixture(scope="module")
def interpolated(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("recipe") / "run"
    return train(small(drawn_data, out, TuneConfig(soup=2, wise_ft=True)))


def test_the_curve_is_written_drawn_and_ends_at_start_and_soup(
    interpolated: Run, drawn_data: Path
) -> None:
    rows = rows_of(interpolated.folder / "wise_ft.csv")
    assert list(rows[0]) == ["alpha", "macro", "micro", "nll"]
    assert [float(row["alpha"]) for row in rows] == list(ALPHAS)
    alpha = interpolated.facts["alpha"]
    assert f"chosen: α = {alpha:g}" in (interpolated.folder / "wise_ft.svg").read_text()
    dataset = shards.open_dataset(str(drawn_data))
    model = towers.create(SMALL)
    kept = [weights_in(interpolated.kept(step)) for step in interpolated.facts["soup"]]
    soup = kept[0] if len(kept) == 1 else between(kept[0], kept[1], 0.5)
    for row, weights in ((rows[0], start()), (rows[-1], soup)):
        model.model.load_state_dict(weights)
        found = callbacks.summary_on_tune(scorer.Scorer(model, ON_CPU), dataset, 12)
        assert float(row["macro"]) == pytest.approx(found.macro)
        assert float(row["nll"]) == pytest.approx(found.nll, abs=1e-5)
    chosen = between(start(), soup, interpolated.facts["alpha"])
    assert same(weights_in(interpolated.weights), chosen)


def test_a_run_that_stopped_behind_its_last_step_is_finished_the_same(
    interpolated: Run, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> None:
        raise ConnectionError("the power fails")

    tune = TuneConfig(soup=2, wise_ft=True)
    with monkeypatch.context() as patched:
        patched.setattr("clipstem.averages.wise_ft", stop)
        with pytest.raises(ConnectionError):
            train(small(drawn_data, tmp_path / "run", tune))
    made = train(small(drawn_data, tmp_path / "run", tune, resume=True))
    assert made.facts["soup"] == interpolated.facts["soup"]
    assert same(weights_in(made.weights), weights_in(interpolated.weights))


def test_the_best_evaluations_are_kept_and_no_more(interpolated: Run) -> None:
    rows = [row for row in rows_of(interpolated.metrics) if row["tune_macro"]]
    best = sorted(
        rows,
        key=lambda row: (float(row["tune_macro"]), -float(row["tune_nll"]), int(row["step"])),
        reverse=True,
    )
    expected = [int(row["step"]) for row in best[:2]]
    assert set((interpolated.folder / "checkpoints").glob("best-*")) == {
        interpolated.kept(step) for step in expected
    }
    assert interpolated.facts["soup"][0] == expected[0]


def test_what_chooses_on_tune_needs_tune(tmp_path: Path) -> None:
    counts = {"train": 4, "valid": 2, "test": 0}
    data = tmp_path / "data"
    prepare(
        PrepareConfig(
            out=str(data),
            skills=["weather"],
            questions_per_skill=counts,
            workers=1,
            tune_fraction=0,
        )
    )
    for tune, name in ((TuneConfig(soup=2), "soup"), (TuneConfig(wise_ft=True), "wise_ft")):
        with pytest.raises(ClipstemError, match=f"'tune.{name}': chooses weights on 'tune', which"):
            train(small(data, tmp_path / "run", tune))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- W&B

FAKE = {
    "wandb/__init__.py": "run = None\nlogged = []\ninits = []\nfinished = []\n"
    "class Run:\n    id = 'fake'\n"
    "    def log(self, metrics): logged.append(metrics)\n"
    "    class config:\n"
    "        @staticmethod\n"
    "        def update(*args, **kwargs): pass\n"
    "    def finish(self): finished.append(self.id)\n"
    "    def define_metric(self, *args, **kwargs): pass\n"
    "def init(**given):\n    inits.append(given)\n    return Run()\n",
    "wandb/sdk/__init__.py": "",
    "wandb/sdk/lib.py": "class RunDisabled: pass\n",
    "wandb/wandb_run.py": "from wandb import Run\n",
    "wandb-0.99.dist-info/METADATA": "Metadata-Version: 2.1\nName: wandb\nVersion: 0.99\n",
}


def test_metrics_go_to_wandb_where_a_project_is_named(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FAKE.items():
        (tmp_path / "fake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fake" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    logger = LoggerConfig(wandb_project="exams")
    config = small(drawn_data, tmp_path / "run", TuneConfig(), steps=2, logger=logger)
    try:
        made = train(config)
    finally:
        names = [name for name in sys.modules if name.split(".")[0] == "wandb"]
        wandb, *_ = [sys.modules.pop(name) for name in sorted(names)]
    (given,) = wandb.inits
    assert (given["project"], given["name"]) == ("exams", "run")
    (again,) = [it for it in training._loggers(config, made, 0) if isinstance(it, WandbLogger)]
    assert again.version == given["id"]  # a resumed run goes on there
    assert any("tune_macro" in row for row in wandb.logged)
    assert any("listwise" in row for row in wandb.logged)
    assert wandb.finished == ["fake"]


def test_wandb_is_asked_for_before_anything_is_written(drawn_data: Path, tmp_path: Path) -> None:
    config = small(
        drawn_data, tmp_path / "run", TuneConfig(), logger=LoggerConfig(wandb_project="exams")
    )
    with pytest.raises(
        ClipstemError, match="exams needs wandb, which is not installed; pip install"
    ):
        train(config)
    assert not (tmp_path / "run").exists()

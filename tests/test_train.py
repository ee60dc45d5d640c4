from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from oracle import oracle_of_folder
from PIL import Image
from preparing import with_broken_pictures
from safetensors.torch import load_file
from torch import Tensor
from training import SMALL, an_epoch

from clipstem import prediction, scorer, shards, towers
from clipstem.batches import NOBODY, Batches
from clipstem.command import model_config
from clipstem.config import (
    ModelConfig,
    OptimizerConfig,
    Precision,
    PrepareConfig,
    Source,
    TrainConfig,
    TrainerConfig,
    TuneConfig,
    TuneMode,
)
from clipstem.learner import Learner, adamw, rate_factor
from clipstem.packing import PackedTexts, pack
from clipstem.pairs import PairBatch
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.stopping import STOPPED
from clipstem.tokens import join
from clipstem.train import train, training_order


def training(data: Path, out: Path, **settings: Any) -> TrainConfig:
    """Of a few steps, different in nothing but size from a real one."""
    return an_epoch(data, out, **{"steps": 6, "batch_size": 12, **settings})


@pytest.fixture(scope="module")
def finished(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("train") / "run"
    train(training(drawn_data, out))
    return out


def test_a_run_leaves_what_its_folder_promises(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "checkpoints/step-00000006.ckpt",
        "weights/open_clip_config.json",
        "weights/open_clip_model.safetensors",
        "predictions/valid.parquet",
        "DONE",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)


def test_a_run_records_how_it_was_made(finished: Path, drawn_data: Path) -> None:
    facts = json.loads((finished / "run.json").read_text())
    assert facts["seed"] == 0 and facts["model"] == "small"
    assert facts["data_sha256"] == shards.open_dataset(str(drawn_data)).manifest.data_sha256
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["temperature"] > 0
    assert "supervision" not in facts
    assert "\nsteps: 6\n" in (finished / "config.yaml").read_text()


def test_a_run_records_that_it_began_from_scratch(finished: Path) -> None:
    assert json.loads((finished / "run.json").read_text())["start"] == []


@pytest.mark.parametrize(
    ("name", "pretrained", "start"),
    [
        ("local-dir:run/weights", None, "run/weights"),
        ("Small", "run/weights/open_clip_model.safetensors", None),
    ],
)
def test_a_run_records_where_its_starting_weights_lay(
    name: str,
    pretrained: str | None,
    start: str | None,
    finished: Path,
    drawn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", SMALL.architecture)
    monkeypatch.chdir(finished.parent)
    model = ModelConfig(name=name, pretrained=pretrained)
    made = train(training(drawn_data, tmp_path / "run", model=model, steps=1))
    assert made.facts["start"] == [str(finished.parent / str(start or pretrained))]


def test_metrics_have_a_row_for_each_evaluation(finished: Path) -> None:
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["tune_macro"]] == ["2", "4", "6"]
    assert "distill" not in rows[0]


def test_predictions_for_valid_are_what_the_saved_weights_give(
    finished: Path, drawn_data: Path
) -> None:
    written = prediction.read(finished / "predictions" / "valid.parquet")
    again = scorer.of_run(finished, TrainerConfig(device="cpu", workers=0)).predict(
        shards.open_dataset(str(drawn_data)), "valid", 5
    )
    assert written.columns["id"] == again.columns["id"]
    np.testing.assert_allclose(written.probs_QK, again.probs_QK, atol=1e-5)
    assert written.provenance["weights_sha256"] == again.provenance["weights_sha256"]
    assert written.provenance["temperature"] == again.provenance["temperature"] != 1.0


def test_weights_open_in_open_clip_after_the_folder_moved(finished: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(finished / "weights", tmp_path / "elsewhere")
    name = f"local-dir:{moved}"
    model, transform = open_clip.create_model_from_pretrained(name)
    theirs = open_clip.get_tokenizer(name)
    ours = towers.create(ModelConfig(name=f"local-dir:{finished / 'weights'}")).eval()
    questions = ["Which shape is it?", "What's the NAME of this  shape? 12 &amp; café"]
    texts = [join(question, ["a triangle"], ours.tokenizer)[0] for question in questions]
    rows = theirs([f"{question} a triangle" for question in questions])
    for row, text in zip(rows, texts, strict=True):
        assert row.tolist() == [*text.tokens, *[0] * (77 - len(text.tokens))]
    pixels = torch.randint(0, 256, (2, ours.spec.size, ours.spec.size, 3), dtype=torch.uint8)
    scaled = (pixels.float() / 255 - ours.mean_C) / ours.std_C
    packed = vars(pack(texts))
    tensors = PackedTexts(**{name: torch.from_numpy(value) for name, value in packed.items()})
    with torch.inference_mode():
        embedded = model.eval().encode_image(scaled.permute(0, 3, 1, 2), normalize=True)
        torch.testing.assert_close(ours.encode_pictures(pixels), embedded, atol=1e-6, rtol=0)
        embedded = model.encode_text(rows, normalize=True)
        torch.testing.assert_close(ours.encode_texts(tensors), embedded, atol=1e-6, rtol=0)
    normalize = transform.transforms[-1]
    assert tuple(normalize.mean) == ours.spec.mean and tuple(normalize.std) == ours.spec.std


def test_a_run_scores_as_the_oracle_does(finished: Path, drawn_data: Path) -> None:
    oracle = oracle_of_folder(str(finished / "weights"))
    dataset = shards.open_dataset(str(drawn_data))
    ours = scorer.of_run(finished, TrainerConfig(device="cpu", workers=0))
    ours.temperature = 1.0
    found = ours.predict(dataset, "valid", 8)
    for place, question in enumerate(dataset.read("valid", range(len(found)))):
        expected = oracle.probabilities(question)
        np.testing.assert_allclose(found.probs_QK[place, : len(expected)], expected, atol=1e-5)


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "weights" / "open_clip_model.safetensors")


def test_a_resumed_run_is_bit_identical_to_one_that_was_not_stopped(
    finished: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = Learner.training_step

    def stop_at_step_5(self: Learner, batch: PairBatch, number: int) -> Tensor:
        if self.global_step == 5:
            raise ConnectionError("the power fails")
        return step_of(self, batch, number)

    with_worker = {"trainer": TrainerConfig(device="cpu", workers=1)}
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "training_step", stop_at_step_5)
        with pytest.raises(ConnectionError):
            train(training(drawn_data, tmp_path / "run", **with_worker))
    assert not (tmp_path / "run" / "DONE").exists()
    train(training(drawn_data, tmp_path / "run", resume=True, **with_worker))
    for name, value in weights_of(finished).items():
        assert torch.equal(value, weights_of(tmp_path / "run")[name]), name


def gradient(config: TrainConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the first global batch and its gradient, from all of its parts."""
    dataset = shards.open_dataset(config.data)
    model = towers.create(config.model, config.seed)
    learner = Learner(model, config, 1, Path("unused"))
    batches = Batches(
        dataset,
        "train",
        training_order(dataset, config)[:1],
        model.tokenizer,
        model.spec,
        config.model.problem_picture,
        parts=config.accumulate,
    )
    # Lightning divides by the number of parts.
    losses = [
        learner.terms(batches[n].map(torch.from_numpy))["listwise"] / config.accumulate
        for n in range(len(batches))
    ]
    total = torch.stack(losses).sum()
    total.backward()  # type: ignore[no-untyped-call]
    named = model.model.named_parameters()
    return total.detach(), {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("batch_size", [12, pytest.param(80, marks=pytest.mark.slow)])
def test_accumulating_gives_the_gradient_of_the_whole_batch(
    drawn_data: Path, tmp_path: Path, batch_size: int
) -> None:
    whole = training(drawn_data, tmp_path, batch_size=batch_size)
    parts = training(drawn_data, tmp_path, batch_size=batch_size, accumulate=batch_size // 2)
    (expected_loss, expected), (found_loss, found) = gradient(whole), gradient(parts)
    torch.testing.assert_close(found_loss, expected_loss, atol=1e-6, rtol=0)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_order_is_every_question_once_an_epoch(drawn_data: Path, tmp_path: Path) -> None:
    dataset = shards.open_dataset(str(drawn_data))
    size = dataset.size("train")
    config = training(drawn_data, tmp_path, steps=None, epochs=2)
    order_SN = training_order(dataset, config)
    first, second = np.split(order_SN, 2)
    for epoch in (first, second):
        assert sorted(epoch[epoch != NOBODY]) == list(range(size))
    assert not np.array_equal(first, second)


def test_early_stop_ends_a_run_that_does_not_improve(drawn_data: Path, tmp_path: Path) -> None:
    still = training(
        drawn_data, tmp_path / "run", patience=1, steps=50, optimizer=OptimizerConfig(lr=1e-12)
    )
    train(still)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert max(steps) == 4  # the first evaluation is the best, the second does not better it


def test_train_never_reads_valid_or_test_before_it_is_over(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = shards.Dataset.read

    def spy(self: shards.Dataset, split: str, indices: Any) -> Any:
        read.append(split)
        return whole(self, split, indices)

    monkeypatch.setattr(shards.Dataset, "read", spy)
    train(training(drawn_data, tmp_path / "run", steps=2))
    first_valid = read.index("valid")
    assert set(read[:first_valid]) == {"train", "tune"}
    assert set(read[first_valid:]) == {"valid"}


def test_norms_biases_scale_and_positions_are_not_decayed() -> None:
    model = towers.create(model_config("tiny"))
    decayed, kept = adamw(model, OptimizerConfig()).param_groups
    names = {id(value): name for name, value in model.model.named_parameters()}
    spared = {names[id(value)] for value in kept["params"]}
    assert kept["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert {"logit_scale", "positional_embedding", "ln_final.weight", "visual.bn1.bias"} <= spared
    assert not any(name.endswith("c_fc.weight") for name in spared)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.2), (4, 1.0), (5, 1.0), (52, 0.5082), (99, 0.0003)]
)
def test_the_rate_warms_up_and_falls_as_a_cosine(step: int, factor: float) -> None:
    config = OptimizerConfig(warmup_fraction=0.05)
    assert rate_factor(step, 100, config) == pytest.approx(factor, abs=1e-4)


def test_the_logit_scale_is_clamped_before_anything_is_saved(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Learner.terms

    def grow(self: Learner, batch: PairBatch) -> dict[str, Tensor]:
        return {**terms(self, batch), "listwise": -100 * self.towers.model.logit_scale}

    monkeypatch.setattr(Learner, "terms", grow)
    train(training(drawn_data, tmp_path / "run", optimizer=OptimizerConfig(lr=2.0), steps=2))
    limit = np.log(100) + 1e-6
    checkpoint = torch.load(tmp_path / "run/checkpoints/step-00000002.ckpt", weights_only=True)
    assert 4.6 < float(checkpoint["state_dict"]["towers.model.logit_scale"]) <= limit
    assert 4.6 < float(weights_of(tmp_path / "run")["logit_scale"]) <= limit


def test_training_runs_in_bf16(drawn_data: Path, tmp_path: Path) -> None:
    on_cpu = TrainerConfig(device="cpu", workers=0, precision=Precision.bf16)
    train(training(drawn_data, tmp_path / "run", trainer=on_cpu, steps=2))
    assert all(value.dtype == torch.float32 for value in weights_of(tmp_path / "run").values())


def test_steps_that_are_not_finite_are_skipped_and_listed(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Learner.terms

    def explode(self: Learner, batch: PairBatch) -> dict[str, Tensor]:
        found = terms(self, batch)
        if self.global_step in (1, 2):
            found["listwise"] = found["listwise"] * float("inf")
        return found

    before: list[Tensor] = []
    step_of = Learner.training_step

    def remember(self: Learner, batch: PairBatch, number: int) -> Tensor:
        before.append(self.towers.model.text_projection.detach().clone())
        return step_of(self, batch, number)

    monkeypatch.setattr(Learner, "terms", explode)
    monkeypatch.setattr(Learner, "training_step", remember)
    made = train(training(drawn_data, tmp_path / "run"))
    assert [torch.equal(one, two) for one, two in pairwise(before)] == [
        False,
        True,
        True,
        *[False] * 2,
    ]
    assert made.facts["nonfinite_steps"] == 2
    lines = [
        json.loads(line) for line in (made.folder / "nonfinite.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [2, 3]
    order_SN = training_order(shards.open_dataset(str(drawn_data)), training(drawn_data, tmp_path))
    asked = shards.open_dataset(str(drawn_data)).read("train", order_SN[1])
    assert lines[0]["questions"] == [question.id for question in asked]
    assert all(bool(value.isfinite().all()) for value in weights_of(made.folder).values())


def test_questions_with_broken_pictures_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    data = with_broken_pictures(tmp_path / "data", 40, broken=[3, 20])
    given = training(Path(data.location), tmp_path / "run", batch_size=8, steps=5)
    on_cpu = replace(given.trainer, max_skipped_fraction=0.02)
    made = train(replace(given, trainer=on_cpu))
    assert made.facts["skipped"] == 2
    lines = [json.loads(line) for line in (made.folder / "skipped.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"q3", "q20"}
    assert {line["reason"] for line in lines} == {"is truncated"}
    with pytest.raises(
        ClipstemError, match=r"2 of \d+ questions have broken pictures, more than t"
    ):
        train(replace(given, out=str(tmp_path / "other")))


def test_a_run_is_not_taken_up_with_other_arithmetic(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clipstem.train._fit", killed)
    given = training(drawn_data, tmp_path / "run")  # precision=auto, which is fp32 on a CPU
    with pytest.raises(ZeroDivisionError):
        train(given)
    fp32, bf16 = (
        replace(given, resume=True, trainer=replace(given.trainer, precision=it))
        for it in (Precision.fp32, Precision.bf16)
    )
    with pytest.raises(
        ClipstemError, match=r"'trainer\.precision': .*run began in fp32 and would "
    ):
        train(bf16)
    with pytest.raises(ZeroDivisionError):
        train(fp32)


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": TuneConfig(TuneMode.head)},  # pictures are decoded beforehand
        {"batch_size": 4, "accumulate": 4, "steps": 10},  # a part is a question
    ],
)
def test_a_broken_picture_is_skipped_however_it_is_trained(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = with_broken_pictures(tmp_path / "data", 40, broken=[3])
    given = training(Path(data.location), tmp_path / "run", batch_size=8, steps=5)
    made = train(replace(given, **changes))
    assert made.facts["skipped"] == 1
    lines = [json.loads(line) for line in (made.folder / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"id": "q3", "reason": "is truncated"}]


def test_more_steps_that_are_not_finite_than_allowed_stop_the_run(
    drawn_data: Path, tmp_path: Path
) -> None:
    wild = training(
        drawn_data, tmp_path / "run", optimizer=OptimizerConfig(lr=1e30), max_nonfinite_steps=2
    )
    with pytest.raises(ClipstemError, match=r"3 steps in all \(max_nonfinite_steps=2\); try a low"):
        train(wild)
    assert len((tmp_path / "run/nonfinite.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow  # `make slurm` sends a real one's
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_the_same(
    number: signal.Signals, workers: int, drawn_data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 20, "batch_size": 4, "eval_every_steps": 1000}
    arguments = [f"data={drawn_data}", "out=run", "model=tiny_vit", "optimizer.lr=1e-3"]
    arguments += [f"trainer.workers={workers}", *(f"{key}={it}" for key, it in settings.items())]
    settings["model"] = model_config("tiny_vit")
    command = [sys.executable, "-m", "clipstem.train", *arguments]
    metrics = tmp_path / "run/metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as process:
        while not metrics.exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)  # every process of the run, as SLURM does
        assert process.wait(100) == STOPPED
    (saved,) = (tmp_path / "run/checkpoints").glob("*.ckpt")
    assert 10 <= int(saved.stem.removeprefix("step-")) < 20
    resumed = train(training(drawn_data, tmp_path / "run", resume=True, **settings))
    whole = train(training(drawn_data, tmp_path / "whole", **settings))
    assert resumed.metrics.read_text() == whole.metrics.read_text()
    for name, value in weights_of(whole.folder).items():
        assert torch.equal(value, weights_of(resumed.folder)[name]), name


def test_two_processes_do_not_write_the_same_run(drawn_data: Path, tmp_path: Path) -> None:
    config = training(drawn_data, tmp_path / "run", steps=1)
    train(config)
    (tmp_path / "run/DONE").unlink()
    code = (
        "import sys; from filelock import FileLock; lock = FileLock('run/.lock'); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(ClipstemError, match=r"run: another process is writing this run; wait"):
            train(replace(config, resume=True))
        other.kill()
    train(replace(config, resume=True))


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    finished: Path, drawn_data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "DONE").unlink()
    config = (copy / "config.yaml").read_text()
    last = copy / "checkpoints/step-00000006.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    train(training(drawn_data, copy, resume=True))
    assert (copy / "config.yaml").read_text() == config
    assert (copy / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()
    for name, value in weights_of(finished).items():
        assert torch.equal(value, weights_of(copy)[name]), name


def test_weights_that_were_changed_are_refused(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    model = towers.create(ModelConfig(name=f"local-dir:{copy / 'weights'}"))
    with torch.no_grad():
        model.model.visual.proj.neg_()
    model.save(copy / "weights")
    with pytest.raises(ClipstemError, match="are not the weights that the run wrote"):
        scorer.of_run(copy, TrainerConfig(device="cpu"))


def test_without_tune_the_last_weights_count_and_the_temperature_is_1(tmp_path: Path) -> None:
    labels = {"subject": "math", "grade": "grade-1", "skill": "colours", "problem": "What colour?"}
    lines = []
    for number in range(12):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
        own = {"id": f"q{number}", "image": f"{number}.png", "answer": number % 2}
        lines.append(json.dumps({**labels, **own, "options": ["red", "blue"]}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    out, path = str(tmp_path / "data"), str(tmp_path / "q.jsonl")
    prepare(PrepareConfig(out=out, source=Source.jsonl, path=path, split="train", workers=1))
    made = train(training(tmp_path / "data", tmp_path / "run", steps=3, batch_size=4))
    assert made.facts["temperature"] == 1.0
    assert [path.name for path in (made.folder / "checkpoints").glob("best-*")] == ["best-00000003"]


def test_a_finished_run_is_not_overwritten(finished: Path, drawn_data: Path) -> None:
    with pytest.raises(ClipstemError, match="this run is finished; choose another out="):
        train(training(drawn_data, finished))


def test_nothing_is_written_where_there_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match="nowhere"):
        train(training(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()

"""Several ranks on this machine's CPU, against one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from conftest import DRAWN_SKILLS, once
from supervising import teacher, write_weights
from training import ids_by_step, told, train_and_tell

from clipstem import prediction, ranks, shards
from clipstem.command import model_config
from clipstem.config import DistillConfig, PrepareConfig, TrainConfig, TrainerConfig
from clipstem.metrics import summarize
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.stopping import STOPPED
from clipstem.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch of training is seven shards of odd sizes, its last batch is not full."""
    config = PrepareConfig(
        skills=DRAWN_SKILLS,
        questions_per_skill={"train": 23, "valid": 7},
        tune_fraction=0.2,
        shard_bytes=61_000,
        workers=1,
    )
    folder = once("seven", lambda out: prepare(replace(config, out=str(out))), tmp_path_factory)
    sizes = [shard.questions for shard in shards.open_dataset(str(folder)).shards_of("train")]
    assert len(sizes) == 7 and len(set(sizes)) > 1, sizes
    return folder


def an_epoch(data: Path, out: Path, model: str = "tiny_vit", **settings: Any) -> TrainConfig:
    return training.an_epoch(data, out, model_config(model), **settings)


def as_ranks(count: int, config: TrainConfig) -> Path:
    """Train in that many processes; the folder of what they wrote."""
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        train_and_tell(config)
    else:
        ranks.start(count, train_and_tell, config)
    return Path(config.out).parent


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_ranks(1, an_epoch(data, tmp_path_factory.mktemp("alone") / "run"))


@pytest.mark.slow  # the README's command for ranks runs in the default suite
@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (2, 3), (4, 1)])
def test_ranks_train_as_one_does(
    count: int, accumulate: int, data: Path, alone: Path, tmp_path: Path
) -> None:
    one = alone
    if accumulate > 1:
        one = as_ranks(1, an_epoch(data, tmp_path / "one/run", accumulate=accumulate))
    found = as_ranks(count, an_epoch(data, tmp_path / "several/run", accumulate=accumulate))
    assert_same(found, one, count)
    every = sorted(id for ids in ids_by_step(found).values() for id in ids)
    dataset = shards.open_dataset(str(data))
    assert every == sorted(dataset.index("train")["id"].to_pylist())


def assert_same(found: Path, one: Path, count: int) -> None:
    """So many ranks had the same questions, losses and predictions as one."""
    assert ids_by_step(found) == ids_by_step(one)
    expected = told(one, "losses")
    heard = told(found, "losses")
    for rank in range(count):
        each = heard[rank * len(expected) : (rank + 1) * len(expected)]
        for (step, losses), (same_step, same) in zip(each, expected, strict=True):
            assert step == same_step and losses == pytest.approx(same, rel=1e-5, abs=1e-5)
    ours, theirs = (prediction.read(it / "run/predictions/valid.parquet") for it in (found, one))
    assert ours.columns == theirs.columns
    np.testing.assert_allclose(ours.probs_QK, theirs.probs_QK, atol=1e-5)
    numbers = [
        summarize(it.probs_QK, it.answer_Q, it.num_options_Q, it.columns["subject"])
        for it in (ours, theirs)
    ]
    first, second = (dict(vars(it)) for it in numbers)
    assert first.pop("subjects") == second.pop("subjects")
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_learn_from_teachers_and_weights_as_one_does(
    count: int, data: Path, tmp_path: Path
) -> None:
    """Half of the labels, a teacher who knows two questions in three, weights for one in three."""
    dataset = shards.open_dataset(str(data))
    size, ids = dataset.size("train"), dataset.index("train")["id"].to_pylist()
    rows = [number for number in range(size) if number % 3]
    known = {id: 0.5 * (number % 4) for number, id in enumerate(ids[::3])}
    settings: dict[str, Any] = {
        "distill": DistillConfig([str(teacher(tmp_path / "t.parquet", dataset, rows, 0).path)]),
        "weights": write_weights(tmp_path / "w.parquet", known),
        "labelled_fraction": 0.5,
    }
    one = as_ranks(1, an_epoch(data, tmp_path / "one/run", **settings))
    found = as_ranks(count, an_epoch(data, tmp_path / "several/run", **settings))
    assert_same(found, one, count)
    assert all(losses["distill"] > 0 for _, losses in told(found, "losses"))
    facts = [Run(it / "run").facts["supervision"] for it in (found, one)]
    assert facts[0] == facts[1] and 0 < facts[0]["teachers_alone"] < size / 2


@pytest.mark.slow
def test_torchrun_starts_the_same_ranks(data: Path, alone: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    asked = f"trainer=ddp trainer.device=cpu trainer.workers=0 data={data} model=tiny_vit out=run"
    asked += " batch_size=24 eval_every_steps=2 optimizer.lr=1e-3"
    command = [*torchrun, "-m", "clipstem.train", *asked.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: run") == 1
    ours, theirs = (
        prediction.read(it / "run/predictions/valid.parquet") for it in (tmp_path, alone)
    )
    assert ours.columns == theirs.columns
    np.testing.assert_allclose(ours.probs_QK, theirs.probs_QK, atol=1e-5)


@pytest.mark.slow
def test_ranks_with_batch_norm_have_the_same_questions_and_are_warned_about(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {
        count: as_ranks(count, an_epoch(data, tmp_path / str(count) / "run", model="tiny"))
        for count in (1, 2)
    }
    assert ids_by_step(found[1]) == ids_by_step(found[2])
    assert capfd.readouterr().out.count("BatchNorm: each of the 2 ranks normalises") == 1
    states = [
        torch.load(it / "run/checkpoints/step-00000004.ckpt", weights_only=True)["state_dict"]
        for it in found.values()
    ]
    assert all(bool(value.isfinite().all()) for state in states for value in state.values())


# ---- how they end


def act_once_there_is(path: Path, act: Callable[[], None]) -> threading.Thread:
    def wait() -> None:
        while not path.exists():
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_second(folder: Path) -> None:
    pid = int((folder / "pid-1").read_text())
    os.kill(pid, signal.SIGKILL)


def train_with_pid(config: TrainConfig) -> None:
    (Path(config.out).parent / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    train(config)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_with_a_message(data: Path, tmp_path: Path) -> None:
    config = an_epoch(data, tmp_path / "run", steps=100_000, patience=None)
    first = tmp_path / "run/checkpoints/step-00000002.ckpt"
    killer = act_once_there_is(first, lambda: kill_second(tmp_path))
    with pytest.raises(ClipstemError, match=r"rank 1 of 2 was ended by SIGKILL; go on with resume"):
        ranks.start(2, train_with_pid, config)
    killer.join()
    assert not (tmp_path / "run/DONE").exists()


@pytest.mark.slow
def test_ranks_that_are_asked_to_stop_save_the_same_step_and_go_on(
    data: Path, alone: Path, tmp_path: Path
) -> None:
    config = an_epoch(data, tmp_path / "run", eval_every_steps=1000, checkpoint_every_steps=1)
    me = os.getpid()
    act_once_there_is(tmp_path / "losses-0.jsonl", lambda: os.kill(me, signal.SIGUSR1))
    with pytest.raises(SystemExit) as stopped:
        ranks.start(2, train_and_tell, config)
    assert stopped.value.code == STOPPED
    ranks.start(2, train_and_tell, replace(config, resume=True))
    assert ids_by_step(tmp_path) == ids_by_step(alone)


def sleep(folder: str) -> None:
    (Path(folder) / os.environ["RANK"]).touch()
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_to_the_first_process_alone_ends_ranks_that_do_not_listen(
    number: signal.Signals, ends: type[BaseException], tmp_path: Path
) -> None:
    me = os.getpid()
    act_once_there_is(tmp_path / "1", lambda: os.kill(me, number))
    with pytest.raises(ends) as ended:
        ranks.start(2, sleep, str(tmp_path))
    assert ends is KeyboardInterrupt or ended.value.args == (STOPPED,)
    assert not multiprocessing.active_children()


def fail(message: str) -> None:
    if os.environ["RANK"] == "1":
        raise ClipstemError(message)


@pytest.mark.slow
def test_what_a_rank_says_is_said_by_all_of_them_once() -> None:
    with pytest.raises(ClipstemError, match=r"^question 'a': a picture is truncated$"):
        ranks.start(2, fail, "question 'a': a picture is truncated")


def test_every_gpu_needs_a_gpu() -> None:
    with pytest.raises(ClipstemError, match=r"'trainer\.devices': null takes every GPU, but torch"):
        ranks.to_start(TrainerConfig(device="cpu", devices=None))


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ClipstemError, match=r"'trainer\.devices': 4 GPUs are asked for, but torch "
    ):
        ranks.to_start(TrainerConfig(devices=4))
    assert [ranks.to_start(TrainerConfig(devices=it)) for it in (1, 2, None)] == [0, 2, 2]


def test_who_is_not_told_which_rank_it_is_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with (
        pytest.raises(ClipstemError, match="WORLD_SIZE is set, but RANK, MASTER_PORT is not: "),
        ranks.joined(TrainerConfig(device="cpu")),
    ):
        raise AssertionError


def test_one_process_of_a_launcher_needs_no_local_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (
        ("WORLD_SIZE", "1"),
        ("RANK", "0"),
        (ranks.MEETING, f"file://{tmp_path}/m"),
    ):
        monkeypatch.setenv(name, value)
    with ranks.joined(TrainerConfig(device="cpu")):
        assert (ranks.world(), ranks.on_node(), ranks.is_first()) == (1, 1, True)


def test_a_process_that_is_alone_is_the_first_of_one() -> None:
    assert (ranks.rank(), ranks.world(), ranks.on_node(), ranks.is_first()) == (0, 1, 1, True)
    assert ranks.gathered("a") == ["a"] and ranks.from_first(lambda: 3) == 3
    assert ranks.to_start(TrainerConfig(devices=1)) == 0
    assert ranks.to_start(TrainerConfig(devices=3)) == 3

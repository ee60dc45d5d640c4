"""Batches as tensors: the same ones with any number of worker processes, from any start."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_batches import all_of, batches, equal, with_a_broken_picture

from clipstem import loader, predict, train
from clipstem.batches import batched
from clipstem.command import model_config
from clipstem.config import PredictConfig, TrainConfig
from clipstem.loader import load
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.shards import Dataset, open_dataset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Processes make batches for a GPU also where there is none; the memory is not pinned then.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
WORKERS = [(0, CPU), (1, CPU), (2, CPU), (0, CUDA), (2, CUDA)]


def arrays(batch: PairBatch) -> PairBatch:
    """The batch's tensors as NumPy arrays."""
    return batch.map(lambda tensor: tensor.numpy())


@pytest.mark.parametrize(("workers", "device"), WORKERS)
@pytest.mark.parametrize("start", [0, 3])
def test_workers_make_the_same_batches_in_the_same_order(
    dataset: Dataset, workers: int, device: torch.device, start: int
) -> None:
    made = batches(dataset, batched(np.arange(20), 4), parts=2)
    loader = load(made, workers, device, range(start, 10), passed=start)
    found = list(loader)
    assert len(loader) == 10  # of the whole order, as Lightning counts
    assert all(map(equal, map(arrays, found), all_of(made)[start:]))


@pytest.mark.parametrize(("workers", "device"), WORKERS)
def test_changed_pictures_depend_on_seed_step_and_picture_alone(
    dataset: Dataset, workers: int, device: torch.device
) -> None:
    plain = batches(dataset, [[0, 1, 2, 3]] * 2, parts=2)
    made = replace(plain, change_seed=5)
    found = list(load(made, workers, device))
    assert all(map(equal, map(arrays, found), all_of(made)))
    again = load(made, workers, device, range(2, 4))
    assert all(map(equal, map(arrays, again), map(arrays, found[2:])))
    shown = [dict(zip(batch.pictures, batch.pixels_IHWC.unbind(), strict=True)) for batch in found]
    for before, first, second in zip(all_of(plain)[:2], shown[:2], shown[2:], strict=True):
        for key, pixels in zip(before.pictures, before.pixels_IHWC, strict=True):
            assert not torch.equal(torch.from_numpy(pixels), first[key])
            assert not torch.equal(first[key], second[key])
    for key in shown[0].keys() & shown[1].keys():  # of the same step
        assert torch.equal(shown[0][key], shown[1][key])
    other = list(load(replace(made, change_seed=6), workers, device))
    assert not torch.equal(other[0].pixels_IHWC, found[0].pixels_IHWC)


def test_batches_that_are_not_asked_for_are_never_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def recorded(self: Dataset, split: str, indices: Any) -> list[Any]:
        read.extend(indices.tolist())
        return original(self, split, indices)

    original = Dataset.read
    monkeypatch.setattr(Dataset, "read", recorded)
    assert len(list(load(batches(dataset, [[0, 1], [2, 3], [4, 5]]), 0, CPU, [2, 0]))) == 2
    assert read == [4, 5, 0, 1]


@pytest.mark.parametrize(("workers", "device"), WORKERS)
def test_a_broken_picture_is_one_line_that_names_its_question(
    tmp_path: Path, workers: int, device: torch.device
) -> None:
    data = with_a_broken_picture(tmp_path)
    with pytest.raises(ClipstemError) as error:
        list(loader.load(batches(data, [[0]], split="train"), workers, device))
    assert str(error.value) == (
        "question 'q17': a picture is truncated; 'train' has no other question that could be read"
    )


STOPPED = """
import signal, sys
import numpy as np, torch
from test_batches import batches
from clipstem.batches import batched
from clipstem.loader import load
from clipstem.shards import open_dataset
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
made = batches(open_dataset(sys.argv[1]), batched(np.arange(40), 2))
given = iter(load(made, 2, torch.device("cuda")))
next(given)
print("ready", flush=True)
sys.stdin.readline()
print(1 + len(list(given)), len(heard))
"""


def test_processes_outlive_a_signal_to_all_and_end_with_the_run(drawn_data: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STOPPED, str(drawn_data)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdin and run.stdout and run.stdout.readline() == "ready\n"
        os.killpg(run.pid, signal.SIGTERM)  # every process of the run, as SLURM does
        found, _ = run.communicate("go on\n", timeout=100)
    assert (run.returncode, found) == (0, "20 1\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


FAULTS_OF_A_STEP = """
import ctypes, resource, torch
from clipstem import loader
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
loader.keep_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(16 * 2**20 // 4) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(step(), min(step() for _ in range(8)))  # where small things lie between, not at once
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="GNU's allocator alone is told to")
def test_a_process_that_keeps_memory_takes_it_once() -> None:
    pages = 4 * 16 * 2**20 // resource.getpagesize()
    said = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_A_STEP], capture_output=True, text=True, check=True
    ).stdout
    first, kept = map(int, said.split())
    assert first > pages / 2 > 20 * kept


def test_training_and_predicting_keep_memory(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(loader, "keep_memory", lambda: kept.append("once"))
    monkeypatch.setattr(train, "train", lambda config: kept.append("then trained"))
    train._train_and_tell(TrainConfig(data=str(drawn_data), out=str(tmp_path)))
    assert kept == ["once", "then trained"]
    config = PredictConfig(data=str(drawn_data), out="o", model=model_config("micro"), split="test")
    predict.open_scorer(replace(config, temperature=1.0), open_dataset(str(drawn_data)))
    assert kept == ["once", "then trained", "once"]

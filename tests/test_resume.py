"""Runs that are killed, on disks that fill up: nothing is lost, they go on as if nothing was."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training import an_epoch, told, train_and_tell

from clipstem.callbacks import EvaluateOnTune
from clipstem.config import TrainConfig
from clipstem.question import ClipstemError
from clipstem.run import Run
from clipstem.train import train

STEPS = 200  # of which a kill may leave six or so
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 6,
    "eval_every_steps": 20,
    "checkpoint_every_steps": 3,
    "patience": None,
}


def child(config: TrainConfig) -> Any:
    """A process of its own, as a killed one must be."""
    process = multiprocessing.get_context("spawn").Process(target=train_and_tell, args=(config,))
    process.start()
    return process


def is_saving(run: Run) -> bool:
    return any((run.folder / "checkpoints").glob(".step-*.partial-*"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(drawn_data: Path, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train_and_tell(an_epoch(drawn_data, tmp_path / "whole/run", **SETTINGS))
    run = Run(tmp_path / "killed/run")
    config = an_epoch(drawn_data, run.folder, **SETTINGS)
    moments = random.Random(0)
    kills = kills_while_saving = 0
    while kills < 20:
        process = child(replace(config, resume=(run.folder / "run.json").exists()))
        before = run.checkpoints[:1]
        while process.is_alive() and run.checkpoints[:1] == before:
            time.sleep(0.005)  # until it has done something
        if kills % 2:
            while process.is_alive() and not is_saving(run):
                pass
        else:
            time.sleep(moments.random() / 2)
        assert process.is_alive(), f"{process.exitcode}: the run was over after {kills} kills"
        process.kill()
        process.join()
        kills += 1
        kills_while_saving += is_saving(run)
    assert kills_while_saving >= 3
    train_and_tell(replace(config, resume=True))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Steps that were lost to a kill are done again: with the same questions, at the same losses.
    expected = dict(map(tuple, told(whole, "losses")))
    assert len(expected) == STEPS
    assert {step for step, _ in told(killed, "losses")} == set(expected)
    assert all(losses == expected[step] for step, losses in told(killed, "losses"))
    order = {step: ids for step, *ids in told(whole, "ids")}
    assert all(ids == order[step] for step, *ids in told(killed, "ids"))
    assert run.metrics.read_text() == Run(whole / "run").metrics.read_text()


# ---- disks that are full or read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that `remount` makes larger, smaller or read-only; as root, nothing else
    keeps a process from writing."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_disk_that_is_full_stops_a_run_and_harms_nothing(
    drawn_data: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = an_epoch(drawn_data, small_disk / "run", steps=6, eval_every_steps=2)
    filling = small_disk / "filling"
    before: dict[str, bytes] = {}
    evaluate = EvaluateOnTune._evaluate

    def full_at_4(self: EvaluateOnTune, trainer: Any, step: int) -> None:
        if step == 4:
            before.update(files(self.run.folder / "checkpoints"))
            with suppress(OSError), filling.open("wb") as file:
                while file.write(bytes(2**20)):
                    pass
        evaluate(self, trainer, step)

    with monkeypatch.context() as patched:
        patched.setattr(EvaluateOnTune, "_evaluate", full_at_4)
        with pytest.raises((ClipstemError, OSError), match=r"No space left"):
            train(config)
    assert before and files(small_disk / "run/checkpoints") == before
    remount(small_disk, "ro")
    with pytest.raises((ClipstemError, OSError), match=r"Read-only file system"):
        train(replace(config, resume=True))
    remount(small_disk, "rw")
    assert files(small_disk / "run/checkpoints") == before
    filling.unlink()
    made = train(replace(config, resume=True))
    assert made.is_done and made.checkpoints[0] == made.checkpoint(6)


def test_a_run_cannot_begin_on_a_disk_that_takes_nothing(
    drawn_data: Path, small_disk: Path
) -> None:
    remount(small_disk, "ro")
    with pytest.raises(ClipstemError, match=r"run: cannot be made, .*disk cannot be written to"):
        train(an_epoch(drawn_data, small_disk / "run"))
    assert files(small_disk) == {}

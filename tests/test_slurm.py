"""Sweeps on a real SLURM, started here: pre-emption, a killed task, retry, merge.

Run by `make slurm`.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cluster
import numpy as np
import psutil
import pytest
import test_readme as readme
from cluster import wait_for

from clipstem import prediction, shards
from clipstem.config import PredictConfig, TrainerConfig
from clipstem.merge import steps_done
from clipstem.predict import predict
from clipstem.run import Run
from clipstem.submit import standings
from clipstem.sweep import State, Sweep

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(cluster.why_not()), reason=cluster.why_not()),
]

HANGS = """
import sys, time
if "clipstem.predict" in sys.orig_argv:
    time.sleep(3600)
"""
STEPS = 480  # so many that a fast machine is not done before the test has acted
SCRIPTS = sorted((readme.ROOT / "scripts").glob("*.sbatch"))
SWEEPS = readme.ROOT / "scripts" / "sweeps"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with cluster.running() as environment:
        yield {**environment, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty folder to work in, with this SLURM in the environment; its tasks end with it."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    cluster.cancel_all(slurm)


def submit(*arguments: str) -> str:
    """Run the command, and return what it prints."""
    command = [sys.executable, "-m", "clipstem.submit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert not done.returncode, done.stderr
    return done.stdout


def state_of(sweep: Sweep, number: int) -> State:
    return standings(sweep)[number - 1].state


def processes_of(sweep: Sweep, number: int) -> list[psutil.Process]:
    """The task's own process and the training that it started."""
    said = ["-m", "clipstem.task", str(sweep.folder), sweep.submissions[-1].job, str(number)]
    everywhere = psutil.process_iter(["cmdline"])
    (task,) = (it for it in everywhere if (it.info["cmdline"] or [])[1:] == said)
    return [task, *task.children(recursive=True)]


def test_a_sweep_survives_preemption_and_a_killed_task(folder: Path, drawn_data: Path) -> None:
    common = f"data={drawn_data} model=tiny_vit steps={STEPS} batch_size=8 eval_every_steps=10"
    common += " patience=null trainer.workers=0"
    rates = ("1e-3", "3e-4", "1e-4")
    lines = [f"{common} out=runs/{rate} optimizer.lr={rate}" for rate in rates]
    Path("rates.txt").write_text("\n".join(["# three rates", *lines]))
    submit("verb=train", "tasks=rates.txt", "sbatch=[--partition low,--time 30]")
    sweep = Sweep(Path("sweeps/rates").absolute())
    runs = {task.number: Run(task.out) for task in sweep.tasks}
    wait_for(lambda: all(run.checkpoints for run in runs.values()), "every checkpoint")
    # ---- one is pre-empted: a job of higher priority wants a core
    wants = ["sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null"]
    subprocess.run([*wants, "--wrap=sleep 3"], check=True, stdout=subprocess.DEVNULL)
    requeued: list[int] = []

    def is_requeued() -> bool:
        requeued.extend(it.task.number for it in standings(sweep) if it.state is State.requeued)
        return bool(requeued)

    wait_for(is_requeued, "a requeue")
    (preempted,) = requeued
    stopped_at = steps_done(runs[preempted])
    assert sweep.attempts(preempted)[0].was_stopped and 0 < stopped_at < STEPS
    # ---- one is killed
    killed = next(number for number in runs if number != preempted)
    for process in processes_of(sweep, killed):
        with contextlib.suppress(psutil.NoSuchProcess):  # SLURM may have been faster
            process.send_signal(signal.SIGKILL)
    wait_for(lambda: state_of(sweep, killed) is State.failed, "the killed one's failure")
    assert "killed" in standings(sweep)[killed - 1].why
    assert "failed (killed" in " ".join(submit("status", "tasks=rates.txt").split())
    # ---- only that one is started again
    submit("retry", "tasks=rates.txt", "sbatch=[--partition low]")
    assert sweep.submissions[-1].tasks == (killed,)
    wait_for(partial(is_finished, sweep), "every end")
    attempts = {number: len(sweep.attempts(number)) for number in runs}
    untouched = next(number for number in runs if number not in (preempted, killed))
    assert attempts == {preempted: 2, killed: 2, untouched: 1}
    for number, run in runs.items():
        assert steps_done(run) == STEPS
        assert len(run.facts.get("resumed", [])) == attempts[number] - 1
    # ---- and one table of results
    submit("merge", "tasks=rates.txt")
    with Path("sweeps/rates/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer.lr"] for row in rows] == list(rates)
    assert all(int(row["steps_done"]) == STEPS and float(row["valid_macro"]) > 0 for row in rows)
    merges_a_prediction(drawn_data, runs[untouched].folder)


def test_the_readmes_sweeps_run_in_their_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a task each: one of the trainings, and all of its predictions."""
    (folder / "scripts" / "sweeps").mkdir(parents=True)
    for name, kept, changes in (
        ("lr", "lr_1e-3", readme.STEPS),
        ("predict", "part=1", ["parts=1"]),
    ):
        (line,) = (it for it in readme.tasks_of(SWEEPS / f"{name}.txt") if kept in it)
        (folder / f"scripts/sweeps/{name}.txt").write_text(" ".join([line, *changes]))
    readme.run_shrunk(
        "python -m clipstem.prepare +drawn=quickstart out=shards/quickstart", monkeypatch
    )
    commands = [it for it in readme.readme_commands() if ".submit " in it]
    assert len(commands) == 6
    for command in commands:
        if " retry " in command:  # where none has failed
            with pytest.raises(SystemExit):
                readme.run_shrunk(command, monkeypatch)
            continue
        readme.run_shrunk(command, monkeypatch)
        if " verb=" in command:
            (name,) = re.findall(r"tasks=scripts/sweeps/(\w+)\.txt", command)
            made = Sweep(Path("sweeps", name).absolute())
            wait_for(partial(is_finished, made), command)
    assert (folder / "sweeps/lr/results.csv").is_file()
    assert (folder / "sweeps/predict/predictions.parquet").is_file()


def is_finished(sweep: Sweep) -> bool:
    return all(it.state is State.finished for it in standings(sweep))


def merges_a_prediction(data: Path, run: Path) -> None:
    """Three parts in an array are, merged, what one process predicts."""
    lines = [f"run={run} data={data} split=valid part={part} parts=3" for part in (1, 2, 3)]
    Path("parts.txt").write_text("\n".join(lines))
    submit("verb=predict", "tasks=parts.txt", "at_once=2")
    sweep = Sweep(Path("sweeps/parts").absolute())
    wait_for(partial(is_finished, sweep), "every part")
    submit("merge", "tasks=parts.txt")
    merged = prediction.read(sweep.folder / "predictions.parquet")
    on_cpu = TrainerConfig(device="cpu", workers=0)
    config = PredictConfig(str(data), str(run), split="valid", out="whole.parquet", trainer=on_cpu)
    whole = predict(config)["valid"]
    assert len(whole) == shards.open_dataset(str(data)).size("valid")
    assert merged.columns["id"] == whole.columns["id"]
    np.testing.assert_array_equal(merged.answer_Q, whole.answer_Q)
    np.testing.assert_array_equal(merged.choice_Q, whole.choice_Q)
    np.testing.assert_allclose(merged.probs_QK, whole.probs_QK, atol=1e-6, rtol=0)


def test_a_task_is_requeued_before_its_time_limit_but_not_when_it_is_cancelled(
    folder: Path, drawn_data: Path
) -> None:
    line = f"data={drawn_data} model=tiny_vit steps=100000 batch_size=8 trainer.workers=0 out=run"
    Path("long.txt").write_text(line)
    submit("tasks=long.txt", "sbatch=[--time 1]", "grace_seconds=30")
    sweep = Sweep(Path("sweeps/long").absolute())
    wait_for(lambda: len(sweep.attempts(1)) > 1, "a second attempt")
    assert sweep.attempts(1)[0].was_stopped
    assert state_of(sweep, 1) is State.running
    subprocess.run(["scancel", sweep.submissions[0].job], check=True)
    wait_for(lambda: state_of(sweep, 1) is State.failed, "its end")
    assert "CANCELLED says SLURM" in standings(sweep)[0].why


def test_a_prediction_that_reaches_its_time_limit_has_failed_and_is_not_requeued(
    folder: Path, drawn_data: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "hangs").mkdir()  # on every machine longer than SLURM's shortest limit
    (folder / "hangs" / "sitecustomize.py").write_text(HANGS)
    Path("one.txt").write_text(f"bundle={tiny_bundle} data={drawn_data} split=valid out=p.parquet")
    monkeypatch.setenv("PYTHONPATH", str(folder / "hangs"))
    submit("verb=predict", "tasks=one.txt", "sbatch=[--time 1]")
    sweep = Sweep(Path("sweeps/one").absolute())
    wait_for(lambda: state_of(sweep, 1) is State.failed, "its end at the time limit")
    assert "TIMEOUT says SLURM" in standings(sweep)[0].why and len(sweep.attempts(1)) == 1
    assert not cluster.squeue(dict(os.environ))


def test_srun_starts_ranks_on_several_nodes(folder: Path, drawn_data: Path) -> None:
    where = ["--partition=both", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    asked = f"trainer=ddp trainer.device=cpu trainer.workers=0 data={drawn_data} model=tiny_vit"
    asked += " steps=4 batch_size=8 out=run"
    command = ["srun", *where, sys.executable, "-m", "clipstem.train", *asked.split()]
    # The nodes' names, of which srun gives the first, are of this test alone.
    here = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: run") == 1 and Run(Path("run")).is_done


def test_what_sbatch_refuses_leaves_nothing_behind(folder: Path, drawn_data: Path) -> None:
    Path("one.txt").write_text(f"data={drawn_data} model=tiny_vit out=run")
    command = [sys.executable, "-m", "clipstem.submit", "tasks=one.txt"]
    done = subprocess.run(
        [*command, "sbatch=[--partition nowhere]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "clipstem submit: sbatch failed: " in done.stderr
    assert not Path("sweeps/one").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shown_script_is_one_that_sbatch_takes(script: Path, folder: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    command = ["sbatch", "--test-only", "--partition=both", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

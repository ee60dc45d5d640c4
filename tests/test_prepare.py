"""Preparing: exact counts and bytes, each bad row with its reason, the same result on any cores."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from preparing import (
    encoded,
    hashes,
    lines,
    prepared,
    questions_of,
    row,
    stem,
    write_jsonl,
)

from clipstem.bank.stem import SCHEMA
from clipstem.config import PrepareConfig, Source
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Question
from clipstem.shards import Dataset, open_dataset

# ---------------------------------------------------------------------------- splits and leaks


def shared_pictures(folder: Path, questions: int, groups: int) -> list[dict[str, Any]]:
    """Questions with a picture of their own, and one that a group has in common."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(questions):
        (folder / f"own{i}.png").write_bytes(encoded(i))
        (folder / f"group{i % groups}.png").write_bytes(encoded(10_000 + i % groups))
        options = [{"image": f"own{i}.png"}, {"image": f"group{i % groups}.png"}]
        rows.append(row(i, options=options, split=...))
    return rows


def pictures_by_split(dataset: Dataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for split, question in questions_of(dataset).values():
        found.setdefault(split, set()).update(p.sha256 for p in question.pictures)
    return found


def test_made_splits_share_no_picture(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", shared_pictures(tmp_path / "in", 200, 50))
    fractions = {"train": 0.8, "valid": 0.1, "test": 0.1}
    dataset = prepared(tmp_path, path, split_fractions=fractions)
    assert dataset.manifest.questions == {"train": 152, "tune": 8, "valid": 20, "test": 20}
    pictures = pictures_by_split(dataset)
    assert sum(map(len, pictures.values())) == len(set().union(*pictures.values())) == 250
    assert dataset.manifest.shared_pictures == dataset.manifest.leaks == {}


def test_tune_shares_no_picture_with_train(tmp_path: Path) -> None:
    rows = [{**r, "split": "train"} for r in shared_pictures(tmp_path / "in", 200, 20)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "in", rows), tune_fraction=0.1)
    assert dataset.manifest.questions == {"train": 180, "tune": 20}
    pictures = pictures_by_split(dataset)
    assert not pictures["train"] & pictures["tune"]


def test_one_picture_everywhere_leaves_no_tune(tmp_path: Path) -> None:
    rows = [{**r, "split": "train"} for r in shared_pictures(tmp_path / "in", 40, 1)]
    dataset = prepared(tmp_path, write_jsonl(tmp_path / "in", rows))
    assert dataset.manifest.questions == {"train": 40}


def test_leaks_are_listed_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encoded(i))
    rows = [
        row(0, problem="Same?", image="0.png"),
        row(1, problem="Same?", image="0.png", split="valid", options=["other", "options"]),
        row(2, problem="Same?", image="0.png", split="test"),
        row(3, problem="Same?", image="1.png", split="test"),  # another picture
        row(4, problem="Other?", image="0.png", split="valid"),  # another text
        row(5, problem="Alone?"),
        row(6, problem="Alone?", split="valid"),  # without a picture, the same options
        row(7, problem="Alone?", split="valid", options=["x", "y"]),
    ]
    dataset = prepared(tmp_path, write_jsonl(folder, rows), tune_fraction=0.0)
    assert dataset.manifest.leaks == {"train/valid": 2, "train/test": 1, "valid/test": 1}
    assert dataset.manifest.shared_pictures == {
        "train/valid": 1,
        "train/test": 1,
        "valid/test": 1,
    }
    found = lines(tmp_path / "out" / "leaks.jsonl")
    assert sorted(found, key=lambda leak: leak["problem"]) == [
        {"problem": "Alone?", "train": ["q5"], "valid": ["q6"]},
        {"problem": "Same?", "train": ["q0"], "valid": ["q1"], "test": ["q2"]},
    ]


# ---------------------------------------------------------------------------- folders


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(0)])
    (tmp_path / "out").mkdir()
    with pytest.raises(ClipstemError, match="out exists and is never overwritten"):
        prepared(tmp_path, path)
    assert list((tmp_path / "out").iterdir()) == []


def test_any_number_of_workers_and_shards_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = [{**r, "split": "train"} for r in shared_pictures(folder, 700, 300)]
    rows += [row(3), row(800, answer=9), row(801, problem="")]
    path = write_jsonl(folder, rows)
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        prepare(
            PrepareConfig(
                out=str(out),
                source=Source.jsonl,
                path=str(path),
                workers=workers,
                shard_bytes=400_000,
                max_skipped_fraction=0.5,
            )
        )
        results.append(hashes(out))
    assert results[0] == results[1]
    assert {"train-000002.tar", "tune-000000.tar", "manifest.json"} <= results[0].keys()
    dataset = open_dataset(str(tmp_path / "1"))
    assert questions_of(dataset).keys() == {f"q{i}" for i in range(700)}
    assert len(lines(tmp_path / "1" / "skipped.jsonl")) == 3


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in", [row(i) for i in range(50)])
    manifests = [
        prepare(
            PrepareConfig(
                out=str(tmp_path / str(seed)),
                source=Source.jsonl,
                path=str(path),
                workers=1,
                seed=seed,
                tune_fraction=0.0,
            )
        )
        for seed in (0, 1)
    ]
    assert manifests[0].questions == manifests[1].questions
    assert manifests[0].data_sha256 != manifests[1].data_sha256


PREPARE = [sys.executable, "-m", "clipstem.prepare"]


def started(tmp_path: Path) -> subprocess.Popen[str]:
    """A run with two workers, long enough to be stopped in its middle."""
    command = [*PREPARE, f"out={tmp_path}/out", "questions_per_skill={train: 2000}", "workers=2"]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores Ctrl-C, and its children with it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".out.partial-*/spools/*.spool")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    run = started(tmp_path)
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def children(parent: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    except OSError:  # it has just ended
        return []


def test_a_killed_worker_is_one_clear_line(tmp_path: Path) -> None:
    run = started(tmp_path)
    for child in children(run.pid):
        os.kill(child, signal.SIGKILL)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 2
    assert "one of 2 worker processes was killed, most likely for lack of memory" in errors
    assert list(tmp_path.iterdir()) == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    run = started(tmp_path)
    workers = children(run.pid)
    run.kill()
    run.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("clipstem.prepare.write_shard", full)
    with pytest.raises(
        ClipstemError, match=r"out: could not be written \(No space left on device\)"
    ):
        prepared(tmp_path, write_jsonl(tmp_path / "in", [row(0)]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


# ---------------------------------------------------------------------------- drawn


def test_drawn_splits_are_disjoint_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    def drawn(name: str, **questions_per_skill: int) -> dict[str, tuple[str, Question]]:
        prepare(
            PrepareConfig(
                out=str(tmp_path / name),
                skills=SKILL_NAMES,
                questions_per_skill=questions_per_skill,
                workers=1,
                seed=3,
                tune_fraction=0.0,
            )
        )
        return questions_of(open_dataset(str(tmp_path / name)))

    few, many = drawn("few", train=1, valid=4), drawn("many", train=6, valid=4, test=2)
    assert len(few) == 10 and len(many) == 24
    assert {k: v for k, v in few.items() if v[0] == "valid"} == {
        k: v for k, v in many.items() if v[0] == "valid"
    }
    assert {question.skill for _, question in many.values()} == set(SKILL_NAMES)


def test_an_unknown_skill_names_the_nearest(tmp_path: Path) -> None:
    wrong = SKILL_NAMES[0][:-1]
    with pytest.raises(ClipstemError, match=rf"no '{wrong}'; did you mean '{SKILL_NAMES[0]}'\?"):
        prepare(PrepareConfig(out=str(tmp_path / "out"), skills=[wrong]))


def _skill_names() -> list[str]:
    from clipstem.bank import SKILLS

    return sorted(SKILLS)[:2]


SKILL_NAMES = _skill_names()


def test_large_pictures_are_shrunk_when_asked_and_it_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "large.jpg").write_bytes(encoded(0, "jpeg", side=80))
    (folder / "small.png").write_bytes(encoded(1, "png", side=30))
    rows = [row(0, image="large.jpg"), row(1, image="small.png")]
    dataset = prepared(tmp_path, write_jsonl(folder, rows), max_image_side=32, tune_fraction=0.0)
    assert dataset.manifest.max_image_side == 32
    found = questions_of(dataset)
    large = Image.open(io.BytesIO(found["q0"][1].pictures[0].data))
    assert (large.format, large.size) == ("JPEG", (32, 32))
    assert found["q1"][1].pictures[0].data == (folder / "small.png").read_bytes()


# ---------------------------------------------------------------------------- memory


def peak_bytes(run: subprocess.Popen[bytes]) -> int:
    """Largest resident size that a run or one of its workers had before it ended."""
    peak_kib = 0
    while run.poll() is None:
        for process in [run.pid, *children(run.pid)]:
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:  # it has just ended
                continue
            found = re.search(r"VmHWM:\s*(\d+) kB", status)
            peak_kib = max(peak_kib, int(found[1]) if found else 0)
        time.sleep(0.2)
    return peak_kib * 1024


@pytest.mark.slow
def test_memory_stays_flat_on_200_000_rows(tmp_path: Path) -> None:
    """Each of two row groups holds 0.9 GB, twice what STEM's do; no process comes to 1 GiB."""
    tail = np.random.default_rng(0).integers(0, 256, 9000, np.uint8).tobytes()
    head = encoded(0, side=8)

    def table(start: int) -> pa.Table:
        # A PNG may be followed by anything, which makes every picture another one and large.
        rows = range(start, start + 10_000)
        made = (stem(0, problem=f"{i}?", problem_pic=head + b"%d" % i + tail) for i in rows)
        return pa.Table.from_pylist(list(made), SCHEMA)

    path = tmp_path / "in" / "train-00000.parquet"
    path.parent.mkdir()
    whole = pa.concat_tables([table(start) for start in range(0, 200_000, 10_000)])
    pq.write_table(whole, path, 100_000, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).metadata.row_group(1).total_byte_size > 9 * 10**8
    command = [*PREPARE, "source=stem", f"path={path.parent}", f"out={tmp_path}/out", "workers=2"]
    run = subprocess.Popen(command)
    assert peak_bytes(run) < 2**30
    assert run.returncode == 0
    assert open_dataset(f"{tmp_path}/out").manifest.questions == {"train": 190_000, "tune": 10_000}

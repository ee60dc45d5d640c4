"""Each kind of hostile or broken input has the outcome that the table in `hostile` states.

Whatever it is: no other exception than `ClipstemError`, no code of the input is run, nothing is
written or changed outside of its folder, and memory stays near that of the clean input.
"""

from __future__ import annotations

import io
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DRAWN_SKILLS, once
from hostile.ask import ANSWERS, CAPTIONS, clean_answers, clean_captions
from hostile.configs import clean_config
from hostile.jsonl import clean_jsonl
from hostile.pictures import clean_picture
from hostile.predictions import PREDICTIONS, clean_predictions
from hostile.shards import clean_shards
from hostile.stem import clean_stem
from hostile.table import CASES, Accepted, Case, Refused, Skipped
from preparing import encoded, lines, png_header, prepared, questions_of, skipped

import clipstem
from clipstem import exam, images, prediction
from clipstem.ask.answers import opened
from clipstem.ask.parsing import parse, probabilities
from clipstem.ask.prompts import read_captions
from clipstem.bank.__main__ import write_bank
from clipstem.command import model_config, verb
from clipstem.config import (
    BankConfig,
    ExamConfig,
    PictureFit,
    PrepareConfig,
    Source,
    TrainConfig,
    TrainerConfig,
)
from clipstem.images import (
    PictureSpec,
    check_picture,
    decoded,
    shrink,
    small_copy,
    thumbnail,
    to_pixels,
)
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.shards import open_dataset

TIME_LIMIT_S = 300  # a case takes less than a second of work; this is what "does not hang" means
MEMORY_LIMIT_MB = 200

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def megabytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) / 1024


@contextmanager
def limits() -> Iterator[None]:
    """No hang, and at its highest not much more memory than before."""

    def stop(*_: object) -> None:
        pytest.fail(f"does not end within {TIME_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    if CLEAR.exists():
        CLEAR.write_text("5")  # Linux: forget the highest memory of this process so far
        began = megabytes("VmRSS")
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if CLEAR.exists():
        used = megabytes("VmHWM") - began
        assert used < MEMORY_LIMIT_MB, f"takes {used:.0f} MB"


# ---------------------------------------------------------------------------- what is done with it


def read_shards(folder: Path) -> Any:
    dataset = open_dataset(str(folder))
    splits = list(dataset.manifest.questions)
    return [
        (dataset.index(split).to_pylist(), dataset.read(split, range(dataset.size(split))))
        for split in splits
    ]


def read_stem(folder: Path) -> Any:
    return questions_of(prepared(folder.parent, folder, source=Source.stem))


def read_jsonl(folder: Path) -> Any:
    return questions_of(prepared(folder.parent, folder / "questions.jsonl"))


def read_picture(folder: Path) -> Any:
    """All that is done with pictures; each refuses it, or none."""
    data = (folder / "picture").read_bytes()
    check_picture(data, decode=True)
    images.warm_up()
    pixels = [to_pixels(data, PictureSpec(32, fit)) for fit in PictureFit]
    with mock.patch.object(images, "_machine_code", []):
        for fit, found in zip(PictureFit, pixels, strict=True):
            assert np.array_equal(to_pixels(data, PictureSpec(32, fit)), found)
    thumbnail(data, 30)
    decoded(data)
    shrink(data, 30)
    small_copy(data, 32)
    return [it.tobytes() for it in pixels]


def read_predictions(folder: Path) -> Any:
    path = folder / PREDICTIONS
    found = prediction.read(path)
    sat = exam.sit(found, ExamConfig(predictions=str(path), repeats=5, questions_per_skill=5))
    exam.show(sat, found)
    return found.probs_QK.tolist(), sat.score_RU.tolist()


def read_answers(folder: Path) -> Any:
    with opened(folder / ANSWERS) as answers:
        keys = [f"k{number}" for number in range(10) if f"k{number}" in answers]
        replies = [answers[key] for key in keys]
    parsed = [parse(reply.text, ("one", "two")) for reply in replies]
    return keys, [
        probabilities([reply], [found], 2, True, "")[0].tolist()
        for reply, found in zip(replies, parsed, strict=True)
    ]


def score(folder: Path) -> Any:
    scorer = clipstem.load(folder, "cpu")
    return scorer.score(encoded(0), "Which?", ["this", "that"]).tolist()


def resume(folder: Path) -> Any:
    from clipstem.train import train

    return train(training(Path((folder / "data").read_text()), folder, resume=True)).is_done


def run_verb(folder: Path) -> Any:
    """What `exam +experiment=theirs` gets where `conf` is this folder; errors as users see them."""
    got: list[ExamConfig] = []
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(printed):
        patch.setattr("sys.argv", ["exam", "+experiment=theirs", "predictions=nowhere.parquet"])
        patch.setattr("clipstem.command.conf_folder", lambda: folder)
        try:
            verb("exam", ExamConfig)(got.append)()
        except SystemExit as ended:
            assert ended.code in (1, 2)
            assert "Traceback" not in printed.getvalue()
            raise ClipstemError(printed.getvalue()) from None
    return got[0].questions_per_skill


ACTS: dict[str, Callable[[Path], Any]] = {
    "shards": read_shards,
    "stem": read_stem,
    "jsonl": read_jsonl,
    "pictures": read_picture,
    "predictions": read_predictions,
    "captions": lambda folder: read_captions(folder / CAPTIONS),
    "answers": read_answers,
    "weights": score,
    "bundle": score,
    "run": score,
    "checkpoint": resume,
    "config": run_verb,
}

# ---------------------------------------------------------------------------- the clean inputs


def training(data: Path, out: Path, resume: bool = False) -> TrainConfig:
    return TrainConfig(
        data=str(data),
        out=str(out),
        resume=resume,
        model=model_config("tiny_vit"),
        steps=1,
        batch_size=4,
        trainer=TrainerConfig("cpu", workers=0),
    )


@dataclass
class Inputs:
    """The clean input of each format, made when it is first asked for, and what comes of it."""

    request: pytest.FixtureRequest
    factory: pytest.TempPathFactory
    results: dict[str, Any] = field(default_factory=dict)

    def folder(self, format: str) -> Path:
        make: Callable[[Path], object] = CLEAN.get(format) or getattr(self, format)
        return once(f"clean-{format}", make, self.factory)

    def result(self, format: str) -> Any:
        if format not in self.results:
            folder = self.factory.mktemp("clean") / "in"
            shutil.copytree(self.folder(format), folder)
            self.results[format] = ACTS[format](folder)
        return self.results[format]

    def bundle(self, out: Path) -> None:
        shutil.copytree(self.request.getfixturevalue("tiny_bundle"), out)

    def run(self, out: Path) -> None:
        from clipstem.train import train

        train(training(self.request.getfixturevalue("drawn_data"), out))

    def weights(self, out: Path) -> None:
        shutil.copytree(self.folder("run") / "weights", out)

    def checkpoint(self, out: Path) -> None:
        shutil.copytree(self.folder("run"), out)
        (out / "DONE").unlink()
        (out / "data").write_text(str(self.request.getfixturevalue("drawn_data")))


CLEAN = {
    "shards": clean_shards,
    "stem": clean_stem,
    "jsonl": clean_jsonl,
    "pictures": clean_picture,
    "predictions": clean_predictions,
    "captions": clean_captions,
    "answers": clean_answers,
    "config": clean_config,
}


@pytest.fixture(scope="session")
def clean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(request, tmp_path_factory)


# ---------------------------------------------------------------------------- the table


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What is just small enough is large: it takes a second or more each.
HEAVY = [pytest.mark.slow]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(it, marks=HEAVY if "just small enough" in it.name else [], id=str(it))
        for it in CASES
    ],
)
def test_each_kind_has_its_outcome(
    case: Case,
    clean: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = clean.result(case.format)
    shutil.copytree(clean.folder(case.format), tmp_path / "in")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.png").write_bytes(encoded(7))
    monkeypatch.setenv("CLIPSTEM_CANARY", str(tmp_path / "outside/ran"))
    case.make(tmp_path / "in")
    outside = contents(tmp_path / "outside")
    with limits():
        if isinstance(case.outcome, Refused):
            with pytest.raises(ClipstemError, match=case.outcome.match) as refused:
                ACTS[case.format](tmp_path / "in")
            assert len(str(refused.value)) < 3000
        else:
            found = ACTS[case.format](tmp_path / "in")
    assert contents(tmp_path / "outside") == outside
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out", "outside"}
    if isinstance(case.outcome, Accepted):
        assert case.outcome.other or found == expected
    elif isinstance(case.outcome, Skipped):
        assert found == expected
        (line,) = skipped(tmp_path)
        assert line["field"] == case.outcome.field
        assert line["reason"].startswith(case.outcome.reason)


def test_the_table_is_complete() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) > 60
    assert {case.format for case in CASES} == ACTS.keys()


BREAK: list[tuple[dict[str, Any], str]] = [
    ({"problem_pic": b"<html>", "pic_prob": True}, "picture: is not a picture"),
    ({"problem_pic": encoded(0, side=90)[:-900], "pic_prob": True}, "picture: is truncated"),
    (
        {"problem_pic": png_header(9000, 9000), "pic_prob": True},
        "picture: has … pixels; at most … are allowed",
    ),
    ({"problem": None}, "problem: expected a value"),
    ({"problem": " "}, "problem: expected the question's text"),
    ({"answer_idx": 99}, "answer: expected N to N, or N for unknown"),
]
"""Ways to break a row, and the reason that it is then counted under."""


def test_with_3_percent_broken_the_rest_comes_through_exactly(tmp_path: Path) -> None:
    counts = {"train": 50}
    write_bank(BankConfig(str(tmp_path / "bank"), DRAWN_SKILLS, counts, workers=1))
    (file,) = (tmp_path / "bank").rglob("*.parquet")
    table = pq.read_table(file)
    whole = index_by_id(tmp_path / "whole", tmp_path / "bank", 0.0)
    rows = table.to_pylist()
    broken = [31 * i + 7 for i in range(len(BREAK))]
    assert len(broken) == 0.03 * len(rows)
    for place, (change, _) in zip(broken, BREAK, strict=True):
        rows[place] |= change
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)

    with pytest.raises(ClipstemError, match=r"6 bad rows are more than max_skipped_fraction=0.02"):
        index_by_id(tmp_path / "stopped", tmp_path / "bank", 0.02)
    found = index_by_id(tmp_path / "broken", tmp_path / "bank", 0.05)
    left_out = {f"train-{place}" for place in broken}
    assert found == {id: sha256 for id, sha256 in whole.items() if id not in left_out}
    listed = lines(tmp_path / "broken/skipped.jsonl")
    assert [line["row"] for line in listed] == broken
    reasons = open_dataset(str(tmp_path / "broken")).manifest.skipped
    assert {key.strip(" …"): count for key, count in reasons.items()} == dict(
        Counter(reason.strip(" …") for _, reason in BREAK)
    )


def index_by_id(out: Path, bank: Path, max_skipped_fraction: float) -> dict[str, bytes]:
    """The hash of each prepared question's bytes, by its id."""
    values: dict[str, Any] = {"source": Source.stem, "path": str(bank), "tune_fraction": 0.0}
    values |= {"workers": 1, "max_skipped_fraction": max_skipped_fraction}
    prepare(PrepareConfig(out=str(out), **values))
    index = pq.read_table(out / "train-000000.parquet", columns=["id", "sha256"])
    dataset = open_dataset(str(out))
    assert len(dataset.read("train", range(dataset.size("train")))) == len(index)
    return dict(zip(*(column.to_pylist() for column in index.columns), strict=True))

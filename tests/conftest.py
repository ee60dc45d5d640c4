from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings
from reporting import MADE, config, files_of_two_models

from clipstem import prediction
from clipstem.command import model_config
from clipstem.config import (
    ExportConfig,
    PrepareConfig,
    RouteConfig,
    Source,
    TrainerConfig,
    Variant,
)
from clipstem.prepare import prepare
from clipstem.report.__main__ import build
from clipstem.report.page import Report
from clipstem.shards import Dataset, open_dataset

if TYPE_CHECKING:  # what only some tests wait for
    from fastapi.testclient import TestClient
    from supervising import Case

    from clipstem.onnx_scorer import OnnxScorer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from chat_server import ChatServer

# A busy machine is no reason to fail: no test depends on the clock.
settings.register_profile("without_clock", deadline=None, max_examples=50)
settings.load_profile("without_clock")

DRAWN_SKILLS = ["weather", "count-the-legs", "mixing-screen-lights", "name-the-shape"]


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[None]:
    """A verb that shows its log lines does so in its own test alone."""
    logs = [logging.getLogger(name) for name in ("clipstem", "__main__")]
    before = [(log.handlers, log.propagate, log.level) for log in logs]
    yield
    for log, (handlers, propagate, level) in zip(logs, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def once(
    name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that `make` makes, for all of pytest-xdist's processes; nobody changes it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            make(folder / name)
    return folder / name


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set with all three kinds of question."""
    counts = {"train": 20, "valid": 10, "test": 5}
    config = PrepareConfig(
        skills=DRAWN_SKILLS, questions_per_skill=counts, workers=1, tune_fraction=0.1
    )
    return once("drawn", lambda out: prepare(replace(config, out=str(out))), tmp_path_factory)


@pytest.fixture(scope="session")
def dataset(drawn_data: Path) -> Dataset:
    """The same, opened."""
    return open_dataset(str(drawn_data))


@pytest.fixture(scope="session")
def tiny_bundle(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_vit` with random weights as a bundle, both variants."""
    from clipstem.export import export

    config = ExportConfig(
        model=model_config("tiny_vit"),
        data=str(drawn_data),
        max_accuracy_drop=100,
        trainer=TrainerConfig("cpu", workers=0),
    )
    return once("bundle", lambda out: export(replace(config, out=str(out))), tmp_path_factory)


@pytest.fixture(scope="session")
def realset() -> Path:
    """The folder of real questions in STEM's schema."""
    if not (folder := os.environ.get("CLIPSTEM_REALSET")):
        pytest.skip("CLIPSTEM_REALSET names no folder of questions in STEM's schema")
    return Path(folder)


@pytest.fixture(scope="session")
def mixed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions or more for validation, 20 of each kind: real ones where they are at hand."""
    if folder := os.environ.get("CLIPSTEM_REALSET"):
        config = PrepareConfig(source=Source.stem, path=folder, workers=1)
    else:
        config = PrepareConfig(skills=DRAWN_SKILLS, questions_per_skill={"valid": 20}, workers=1)
    return once("mixed", lambda out: prepare(replace(config, out=str(out))), tmp_path_factory)


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Predictions files of two models, and of one of them on changed questions."""
    monkeypatch.chdir(tmp_path)
    return files_of_two_models()


@pytest.fixture(scope="session")
def report_of_two(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        return build(config(files_of_two_models(), bins=7), MADE)


@pytest.fixture(scope="session")
def lots(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty text questions of two skills, all in `train`."""
    from curating import data
    from preparing import row

    folder = tmp_path_factory.mktemp("lots")
    rows = [row(n, skill=f"s{n % 2}", options=["x", "y", f"z{n}"], answer=n % 3) for n in range(60)]
    return data(folder, rows)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RouteConfig, Path]:
    """A routing that was written, and its settings."""
    from routing import of_school, run_route

    from clipstem.route.__main__ import write

    settings = of_school(tmp_path_factory.mktemp("fitted"))
    routed, made = run_route(settings)
    write(routed, made, Path(settings.out))
    return settings, Path(settings.out)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> OnnxScorer:
    """What the server scores with."""
    from clipstem.onnx_scorer import OnnxScorer

    return OnnxScorer(tiny_bundle, TrainerConfig("cpu", workers=0), Variant.fp32)


@pytest.fixture(scope="module")
def client(engine: OnnxScorer) -> Iterator[TestClient]:
    """Somebody who asks the server, in this process."""
    from fastapi.testclient import TestClient
    from serving import app_of

    with TestClient(app_of(engine), "http://localhost") as client:
        yield client


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A language model's endpoint."""
    with ChatServer() as server:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Questions of all kinds, to ask a language model."""
    from asking import of_all_kinds

    return of_all_kinds(tmp_path)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ChatServer
) -> Callable[..., prediction.Predictions]:
    """The verb ask, as it is typed in an empty folder; gives what it wrote."""
    from asking import arguments

    from clipstem.ask.__main__ import main

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(data: Dataset | Path, **values: Any) -> prediction.Predictions:
        monkeypatch.setattr("sys.argv", ["ask", *arguments(data, server, **values)])
        main()
        return prediction.read(Path(values.get("out", "o.parquet")))

    return run


@pytest.fixture(scope="session")
def case(drawn_data: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A training with labels, teachers and weights."""
    from supervising import case_of

    return case_of(drawn_data, dataset, tmp_path_factory.mktemp("supervision"))

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from clipstem.command import model_config
from clipstem.config import ExportConfig, PrepareConfig, Source, TrainerConfig
from clipstem.prepare import prepare

# A busy machine is no reason to fail: no test depends on the clock.
settings.register_profile("without_clock", deadline=None)
settings.load_profile("without_clock")

DRAWN_SKILLS = ["weather", "count-the-legs", "mixing-screen-lights", "name-the-shape"]


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set with all three kinds of question."""
    out = tmp_path_factory.mktemp("drawn") / "data"
    counts = {"train": 20, "valid": 10, "test": 5}
    config = PrepareConfig(
        out=str(out), skills=DRAWN_SKILLS, questions_per_skill=counts, workers=1, tune_fraction=0.1
    )
    prepare(config)
    return out


@pytest.fixture(scope="session")
def tiny_bundle(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_vit` with random weights as a bundle, both variants."""
    from clipstem.export import export

    out = tmp_path_factory.mktemp("exported") / "bundle"
    model, trainer = model_config("tiny_vit"), TrainerConfig("cpu", workers=0)
    export(
        ExportConfig(
            str(out), model=model, data=str(drawn_data), max_accuracy_drop=100, trainer=trainer
        )
    )
    return out


@pytest.fixture(scope="session")
def realset() -> Path:
    """The folder of real questions in STEM's schema."""
    if not (folder := os.environ.get("CLIPSTEM_REALSET")):
        pytest.skip("CLIPSTEM_REALSET names no folder of questions in STEM's schema")
    return Path(folder)


@pytest.fixture(scope="session")
def mixed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty questions or more for validation, 20 of each kind: real ones where they are at hand."""
    out = tmp_path_factory.mktemp("mixed") / "data"
    if folder := os.environ.get("CLIPSTEM_REALSET"):
        prepare(PrepareConfig(out=str(out), source=Source.stem, path=folder, workers=1))
        return out
    counts = {"valid": 20}
    prepare(PrepareConfig(out=str(out), skills=DRAWN_SKILLS, questions_per_skill=counts, workers=1))
    return out

"""Hundreds of thousands of questions in one go."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from clipstem import scorer, shards
from clipstem.command import model_config
from clipstem.config import PrepareConfig, TrainerConfig, Verify
from clipstem.prepare import prepare

QUESTIONS = 300_000


@pytest.mark.slow
def test_memory_stays_flat_over_three_hundred_thousand_questions(tmp_path: Path) -> None:
    skills = ["weather", "count-the-legs", "mixing-screen-lights", "name-the-shape"]
    prepare(
        PrepareConfig(
            out=str(tmp_path / "data"),
            skills=skills,
            questions_per_skill={"valid": QUESTIONS // len(skills)},
            verify=Verify.header,
        )
    )
    dataset = shards.open_dataset(str(tmp_path / "data"))
    process = psutil.Process()
    resident: list[int] = []

    def sample(questions: int) -> None:
        resident.append(process.memory_info().rss)

    model = scorer.of_model(model_config("tiny"), TrainerConfig(device="cpu"))
    found = model.predict(dataset, "valid", 32, sample)
    assert len(found) == QUESTIONS == len(set(found.columns["id"]))
    tenth = len(resident) // 10
    first, last = max(resident[:tenth]), max(resident[-tenth:])
    print(f"resident: {first / 2**20:.0f} MiB in the first tenth, {last / 2**20:.0f} in the last")
    assert last <= 1.05 * first

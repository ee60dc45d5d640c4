"""Where an exam's questions come from, and which exams are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipstem import shards
from clipstem.config import Rule
from clipstem.question import ClipstemError
from clipstem.serve.sittings import MOST_SITTINGS, Drawn, Prepared, Sittings


def test_prepared_questions_all_come_before_any_comes_again(drawn_data: Path) -> None:
    prepared = Prepared(shards.open_dataset(str(drawn_data)), "valid")
    assert [unit.questions for unit in prepared.units] == [10] * 4
    unit = prepared.units[0]
    ids = [prepared.question(unit, number, 3).id for number in range(20)]
    assert len(set(ids[:10])) == 10 and ids[:10] == ids[10:]
    assert ids != [prepared.question(unit, number, 4).id for number in range(20)]
    with pytest.raises(ClipstemError, match="exam"):
        Prepared(shards.open_dataset(str(drawn_data)), "exam")


def test_old_sittings_are_forgotten() -> None:
    sittings = Sittings(Drawn(), Rule.regular, 10)
    first = sittings.begin(sittings.questions.units[0])
    for _ in range(MOST_SITTINGS):
        last = sittings.begin(sittings.questions.units[0])
    assert sittings[last.id] is last
    with pytest.raises(KeyError):
        sittings[first.id]

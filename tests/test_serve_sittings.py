"""Where an exam's questions come from, and which exams are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from preparing import with_broken_pictures

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


def test_a_question_with_a_broken_picture_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Three skills take turns: the first has q0, q3, q6, q9, q12, q15.
    prepared = Prepared(with_broken_pictures(tmp_path / "some", 18, broken=[3, 12]), "train")
    unit = next(it for it in prepared.units if it.skill == "skill-0")
    ids = [prepared.question(unit, number, 3).id for number in range(8)]
    assert sorted(ids[:4]) == ["q0", "q15", "q6", "q9"] and ids[:4] == ids[4:]
    assert caplog.text.count("is left out of exams: a picture is truncated") == 2
    none = Prepared(with_broken_pictures(tmp_path / "none", 1, broken=[0]), "train")
    with pytest.raises(ClipstemError, match="no question of this skill has pictures that can be"):
        none.question(none.units[0], 0, 3)


def test_old_sittings_are_forgotten() -> None:
    sittings = Sittings(Drawn(), Rule.regular, 10)
    first = sittings.begin(sittings.questions.units[0])
    for _ in range(MOST_SITTINGS):
        last = sittings.begin(sittings.questions.units[0])
    assert sittings[last.id] is last
    with pytest.raises(KeyError):
        sittings[first.id]

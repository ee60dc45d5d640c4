"""What is remembered of questions: texts by what they mean, and no picture that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from curating import curated, table_of
from preparing import encoded, prepared, row, write_jsonl

from clipstem.curate.fingerprints import normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many  cubes?", " how many cubes ?"),
        ("ANSWER: A", "answer:a"),
        ("ﬁnd x² now", "FIND X^2 NOW"),
        ("Straße", "STRASSE"),
        ("2 H₂O + CO₂", "2 H2O + CO2"),
        ("2ⁿ", "2^n"),
    ],
)
def test_what_does_not_change_a_texts_meaning_is_left_out(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("1 2", "12"), ("-3", "3"), ("a lot", "alot"), ("x₂", "x²")),
        *(("3²", "32"), ("x¹⁰", "x10"), ("2ⁿ", "2n"), ("2ˣ", "2x"), ("Ca²⁺", "Ca2+")),
        *(("101₂", "1012"), ("log₂8", "log28"), ("10₁₂", "101₂"), ("2ₙ", "2n")),
    ],
)
def test_what_changes_it_is_not(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_broken_pictures_are_counted_and_compared_with_nothing(tmp_path: Path) -> None:
    from clipstem.config import Verify

    whole = encoded(1, side=40)
    rows = [row(n, image=f"{n}.png", problem="Same?") for n in range(4)]
    tmp_path.mkdir(exist_ok=True)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(whole if number < 2 else whole[:-300])
    dataset = prepared(tmp_path, write_jsonl(tmp_path, rows), verify=Verify.header, tune_fraction=0)
    made = curated(dataset, tmp_path / "curated")
    assert made.broken == 2 and made.findings == {"contradiction": 2, "duplicate": 2}
    assert table_of(tmp_path / "curated")["q3"]["weight"] == 1

"""What was found of a question, and what it therefore weighs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from curating import curated, data, ids_of, predicted, table_of
from preparing import row

from clipstem import weights
from clipstem.shards import Dataset


def review_of(out: Path) -> dict[str, dict[str, Any]]:
    lines = (out / "review.jsonl").read_text().splitlines()
    return {it["id"]: it for it in map(json.loads, lines)}


def test_each_finding_does_to_the_weight_what_is_said(tmp_path: Path) -> None:
    same = {"problem": "Two and two?", "options": ["four", "five"]}
    rows = [
        row(0, **same, answer=0),
        row(1, **same, answer=0),
        row(2, **same, answer=1),
        row(3, problem="Alone?"),
        row(4, problem="Even?", answer=0),
        row(5, problem="EVEN?", answer=1),
        row(6, problem="Leaks?"),
        row(7, problem="leaks ?", split="valid"),
        row(8, problem="Twice?", answer=1),
        row(9, problem="Twice?", answer=1),
        row(10, problem="Unknown?", answer=None),
        row(11, problem="unknown?", answer=0),
    ]
    made = curated(data(tmp_path, rows), tmp_path / "curated")
    table, review = table_of(tmp_path / "curated"), review_of(tmp_path / "curated")
    assert {id: it["weight"] for id, it in table.items()} == {
        **{"q0": 0.5, "q1": 0.5, "q2": 0.0},  # most of them say four
        **{"q3": 1.0, "q4": 0.0, "q5": 0.0, "q6": 0.0},
        **{"q8": 0.5, "q9": 0.5, "q10": 0.5, "q11": 0.5},
    }
    assert table["q2"]["findings"] == ["contradiction", "duplicate"]
    assert made.findings == {"leak": 1, "contradiction": 5, "duplicate": 9}
    assert made.leaks_into == {"valid": 1} and made.left_out == 4
    assert review.keys() == table.keys() - {"q3"}
    assert next(iter(review)) == "q6"  # the gravest first
    (leak,) = review["q6"]["findings"]
    assert leak == {"finding": "leak", "why": "is in valid too: 'q7'", "others": ["q7"]}
    assert review["q2"]["problem"] == "Two and two?"
    assert review["q2"]["options"] == ["four", "five"] and review["q2"]["answer"] == 1
    assert weights.read(tmp_path / "curated/weights.parquet")["q9"] == 0.5


def test_suspected_labels_are_listed_with_the_option_that_is_likely_right(
    lots: Dataset, tmp_path: Path
) -> None:
    predicted(lots, tmp_path / "p.parquet", sure=0.995, wrong=6)
    made = curated(
        lots, tmp_path / "curated", predictions=[str(tmp_path / "p.parquet")], unseen=True
    )
    table, review = table_of(tmp_path / "curated"), review_of(tmp_path / "curated")
    first = ids_of(lots)[:6]
    assert [id for id, it in table.items() if it["findings"] == ["label"]] == first
    assert [id for id, it in table.items() if it["weight"] == 0] == first
    assert made.findings == {"label": 6, "too easy": 54} and review.keys() == set(first)
    (finding,) = review[first[0]]["findings"]
    assert finding["instead"] == (table_answer(lots, first[0]) + 1) % 3
    assert "99.5 %" in finding["why"]
    order = sorted(table, key=lambda id: table[id]["easy_to_hard"])
    assert set(order[-6:]) == set(first)
    assert table[first[0]]["margin"] == pytest.approx(0.0025 - 0.995)


def table_answer(dataset: Dataset, id: str) -> int:
    index = dataset.index("train").to_pydict()
    return int(index["answer"][index["id"].index(id)])


def test_a_question_that_no_model_gets_right_without_being_sure_is_hard(
    lots: Dataset, tmp_path: Path
) -> None:
    made = predicted(lots, tmp_path / "sure.parquet", sure=0.95)
    probs_QK = made.probs_QK.copy()
    answer_Q = made.answer_Q
    probs_QK[0] = 0.3
    probs_QK[0, (answer_Q[0] + 1) % 3] = 0.4
    replace(made, probs_QK=probs_QK).write(tmp_path / "p.parquet")
    found = curated(
        lots, tmp_path / "curated", predictions=[str(tmp_path / "p.parquet")], unseen=True
    )
    assert found.findings == {"too hard": 1}
    assert table_of(tmp_path / "curated")[ids_of(lots)[0]]["weight"] == 1


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_balance_evens_out_skills_and_keeps_the_sum(balance: float, tmp_path: Path) -> None:
    rows = [row(n, skill="many" if n % 4 else "few", problem=f"{n}?") for n in range(40)]
    made = curated(data(tmp_path, rows), tmp_path / "curated", balance=balance)
    total = {unit.skill: unit.weight for unit in made.units}
    assert sum(total.values()) == pytest.approx(40)
    assert total["many"] / total["few"] == pytest.approx(3 ** (1 - balance))
    found = [it["weight"] for it in table_of(tmp_path / "curated").values()]
    assert sum(found) == pytest.approx(40)


def test_a_unit_whose_questions_are_all_left_out_stays_out(tmp_path: Path) -> None:
    rows = [row(n, skill="a", problem="Same?", answer=n) for n in range(2)]
    rows += [row(n, skill="b", problem=f"{n}?") for n in range(2, 6)]
    made = curated(data(tmp_path, rows), tmp_path / "curated", balance=1)
    assert {unit.skill: unit.weight for unit in made.units} == {"a": 0.0, "b": 4.0}

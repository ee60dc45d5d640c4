"""Generated answers of strangers and their scores: read, checked, and what is odd is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reranking import line, saved

from clipstem.question import ClipstemError
from clipstem.rerank import candidates
from clipstem.rerank.candidates import normal

# ---------------------------------------------------------------------------- final answers


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        ("1,000", "1000"),
        ("$1000", "1000"),
        ("1000.0", "1000"),
        (" 1000. ", "1000"),
        ("£1,234,567.50", "1234567.5"),
        ("007", "7"),
        (".5", "0.5"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("\N{MINUS SIGN}3", "-3"),
        ("-0.0", "0"),
        ("+5", "5"),
        ("0.10", "0.1"),
        ("12,34", "12,34"),  # no separator of thousands
        ("--5", "--5"),
        ("-+5", "-+5"),
        ("50%", "50%"),
        ("50.0 %.", "50%"),
        ("-1,000 %", "-1000%"),
        ("%", "%"),
        ("1/2", "1/2"),
        ("1e3", "1e3"),
        ("Paris.", "paris"),
        ("New   York", "new york"),
        (".", "."),
        ("$", "$"),
    ],
)
def test_equal_answers_have_one_spelling(final: str, expected: str) -> None:
    assert normal(final) == expected
    assert normal(expected) == expected


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_a_number_is_itself_however_it_is_written(number: int, zeros: int) -> None:
    written = {f"{number}", f"{number:,}", f"{number:,}.{'0' * zeros}", f" {number}.0"}
    assert {normal(it) for it in written} == {str(number)}


@given(st.text(max_size=30))
def test_normal_answers_stay_as_they_are(text: str) -> None:
    assert normal(normal(text)) == normal(text)


# ---------------------------------------------------------------------------- reading


def changed(**fields: Any) -> dict[str, Any]:
    """A line whose second candidate is another."""
    made = line()
    made["candidates"][1] = {
        key: value for key, value in {**made["candidates"][1], **fields}.items() if value is not ...
    }
    return made


def read(path: Path, **changes: Any) -> candidates.Read:
    given = {"leave_out": [], "needs_score": False, "max_skipped_fraction": 0.9, **changes}
    return candidates.read([path], **given)


BAD: list[tuple[str, Any, str]] = [
    ("no JSON", "{", "line: is not JSON in UTF-8"),
    ("no object", "[1]", "line: is [1]; expected an object"),
    ("deep", "[" * 100_000, "line: is not JSON in UTF-8"),
    ("many fields", {f"f{n}": 1 for n in range(200)}, "line: has 200 fields"),
    ("twice", line(99), "id: 'q99' stands in line 1 of"),
    ("no id", line(id=...), "id: is missing; expected a text"),
    ("id a number", line(id=3), "id: is 3; expected a text"),
    ("id empty", line(id=" "), "id: is empty"),
    ("id long", line(id="x" * 300), "id: has 300 characters"),
    ("half a character", line(id="\ud800"), "id: holds half of a character"),
    ("no problem", line(problem=...), "problem: is missing"),
    ("question for problem", line(problem=..., question="?"), "did you mean 'problem'?"),
    ("problem empty", line(problem=" "), "problem: is empty"),
    ("problem long", line(problem="x " * 20_000), "problem: has 40,000 characters"),
    ("no candidates", line(candidates=...), "candidates: is null; expected a list"),
    ("empty candidates", line(candidates=[]), "candidates: there are 0"),
    ("too many", line(candidates=[{"system": "a", "text": ""}] * 1000), "there are 1,000"),
    ("candidate a text", line(candidates=["x"]), 'candidates[0]: is "x"; expected an object'),
    ("no system", changed(system=...), "candidates[1].system: is missing"),
    ("model for system", changed(system=..., model="b"), "did you mean 'system'?"),
    ("no text", changed(text=...), "candidates[1].text: is missing"),
    ("text a number", changed(text=3), "candidates[1].text: is 3; expected a text"),
    ("text long", changed(text="x" * 200_000), "candidates[1].text: has 200,000 characters"),
    ("correct a number", changed(correct=1), "candidates[1].correct: is 1; expected true, false"),
    ("final a list", changed(final=[1]), "candidates[1].final: is [1]; expected a text"),
    ("final long", changed(final="9" * 20_000), "candidates[1].final: has 20,000 characters"),
    ("score a text", changed(score="high"), 'candidates[1].score: is "high"; expected a number'),
    ("score true", changed(score=True), "candidates[1].score: is true; expected a number"),
    ("score NaN", changed(score=float("nan")), "candidates[1].score: is NaN; expected a finite"),
    (
        "score endless",
        changed(score=float("inf")),
        "candidates[1].score: is Infinity; expected a f",
    ),
    ("score huge", changed(score=10**400), "candidates[1].score: is 1000"),
    ("picture away", line(image="none.png"), "image: 'none.png' is no file"),
    ("picture outside", line(image="../x.png"), "image: '../x.png' has '..'"),
    ("picture broken", line(image="broken.png"), "image: 'broken.png'"),
]


@pytest.mark.parametrize(("bad", "reason"), [it[1:] for it in BAD], ids=[it[0] for it in BAD])
def test_a_bad_line_is_skipped_and_explained(tmp_path: Path, bad: Any, reason: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    found = read(saved(tmp_path / "c.jsonl", line(99), "", bad, line(100)))
    assert [one.id for one in found.asked] == ["q99", "q100"]
    (skipped,) = found.skipped
    assert skipped.line == 3 and reason in f"{skipped.field}: {skipped.reason}"


def test_a_line_without_end_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MAX_LINE_BYTES", 1000)
    found = read(saved(tmp_path / "c.jsonl", line(), '{"id": "' + "x" * 5000))
    assert [it.reason for it in found.skipped] == ["is too long; expected at most 1,000 bytes"]


def test_what_is_odd_is_used_and_told(tmp_path: Path) -> None:
    (tmp_path / "p.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    nothing = [{"system": "a", "text": "", "final": None}] * 2
    contradictory = [
        {"system": "a", "text": "x", "final": "1", "correct": right} for right in (True, False)
    ]
    several = [{"system": "a", "text": "x", "final": f, "correct": True} for f in ("1/2", "0.5")]
    found = read(
        saved(
            tmp_path / "c.jsonl",
            changed(correct=None) | {"answer": None},
            line(1, answer=None, candidates=nothing),
            line(2, candidates=contradictory),
            line(3, candidates=several),
            line(4, image="p.png", candidates=nothing, subject="math", extra="kept out"),
        )
    )
    assert not found.skipped and found.asked[4].picture is not None
    assert found.asked[4].subject == "math" and found.asked[4].skill == "unknown"
    assert [it.correct for it in found.asked[4].candidates] == [False, False]  # never answered
    said = "\n".join(found.notes)
    for part in (
        "1 questions say of some candidates only whether they are right",
        "1 questions do not say which candidates are right",
        "1 questions have one final answer that is called right and wrong",
        "1 questions have several final answers that are called right",
        "4 candidates have no final answer",
    ):
        assert part in said


def test_the_gold_answer_says_what_is_right(tmp_path: Path) -> None:
    given = [{"system": "a", "text": "", "final": final} for final in ("$1,000", 1e3, "999")]
    (one,) = read(saved(tmp_path / "c.jsonl", line(answer=1000, candidates=given))).asked
    assert [it.correct for it in one.candidates] == [True, True, False]


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ([], {}, "holds no question with candidates"),
        ([line(), "{"], {"max_skipped_fraction": 0.1}, "1 bad lines are more than max_skipped"),
        ([line()], {"leave_out": ["c"]}, "'leave_out': there is no system 'c'; expected some of a"),
        ([line()], {"leave_out": ["a", "b"]}, "holds no question with candidates"),
        (
            [line(n, candidates=[{"system": f"s{n}", "text": "x"}]) for n in range(101)],
            {},
            "the candidates are of 101 systems; expected at most 100",
        ),
    ],
)
def test_files_that_are_of_no_use_are_refused(
    tmp_path: Path, lines: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClipstemError) as refused:
        read(saved(tmp_path / "c.jsonl", *lines), **changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_pipe_is_not_waited_for() -> None:
    with pytest.raises(ClipstemError, match="/dev/zero: there is no such file"):
        read(Path("/dev/zero"))


def test_the_readmes_line_is_one(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    shown = re.search(r'^\{"id": "q1", "problem": "What is 6.*$', readme, flags=re.M)
    assert shown
    (one,) = read(saved(tmp_path / "c.jsonl", shown[0])).asked
    assert [it.correct for it in one.candidates] == [True, False]


# ---------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: line is not JSON"),
        (['{"id": "q0", "scores": [1]}'], "line 1: scores is [1]; expected a list of 2 numbers"),
        (['{"id": "q0", "scores": [1, null]}'], "line 1: scores[1] is null; expected a number"),
        (['{"id": "q0", "scores": [1, NaN]}'], "line 1: scores[1] is NaN; expected a finite"),
        (['{"id": "q0", "scores": [1, 2]}'] * 2, "line 2: id 'q0' stands in an earlier line"),
        (['{"id": "other", "scores": 3}'], "has no scores for 1 of 1 questions; the first is 'q0'"),
    ],
)
def test_scores_of_strangers_are_checked(tmp_path: Path, lines: list[str], message: str) -> None:
    asked = read(saved(tmp_path / "c.jsonl", line())).asked
    with pytest.raises(ClipstemError) as refused:
        candidates.read_scores(saved(tmp_path / "s.jsonl", *lines), asked)
    assert message in str(refused.value)


def test_a_candidate_keeps_its_place_where_others_are_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.jsonl", line())
    (one,) = read(path, leave_out=["a"]).asked
    assert [it.place for it in one.candidates] == [1] and one.line_candidates == 2
    scores = saved(tmp_path / "s.jsonl", {"id": "q0", "scores": [None, 0.25]})
    score_C, scorer_Q = candidates.read_scores(scores, [one])
    assert score_C.tolist() == [0.25] and scorer_Q.tolist() == [0]

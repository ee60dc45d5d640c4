"""Exams, against one answer at a time, and against published and long-run figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipstem.config import Choices, ExamConfig, Rule
from clipstem.exam import (
    MASTERED_ABOVE,
    PEOPLE,
    TOP,
    Exam,
    draw_questions,
    final_scores,
    main,
    next_scores,
    sit,
)
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError

PUBLISHED = {  # accuracy on `test`, %: science, technology, engineering, math; and the exam score
    "chance": ((38.6, 25.0, 44.9, 39.1), 30.2),
    "zero-shot": ((50.3, 68.7, 55.1, 43.6), 43.9),
    "fine-tuned": ((87.0, 71.9, 67.7, 78.4), 60.5),
}
LONG_RUN = {0.25: 29.9, 0.369: 41.9, 0.467: 52.5, 0.544: 62.0, 0.70: 86.1, 0.763: 95.9, 0.80: 98.9}

# ---------------------------------------------------------------------------- one at a time


def one_answer(rule: Rule, score: int, right: bool) -> int:
    """The rules as they are written down: conditions on the score before the answer."""
    if right:
        ladder = next(gain for least, gain in FAST if score >= least)
        gain = {
            Rule.regular: max(2, 10 - score // 10),
            Rule.advanced: max(3, 10 - score // 10 + (1 if score >= 70 else 0)),
            Rule.fast: ladder,
            Rule.powerpath: max(4, 14 - score // 10),
        }[rule]
        return min(100, score + gain)
    places = [90, 80, 70, 60, 50, 40, 30, 20, 0]
    losses = {
        Rule.regular: [7, 6, 6, 5, 5, 4, 3, 2, 1],
        Rule.advanced: [8, 7, 6, 5, 5, 4, 3, 2, 1],
        Rule.fast: [8, 7, 6, 5, 4, 3, 3, 2, 1],
        Rule.powerpath: [8, 7, 6, 5, 5, 4, 3, 2, 1],
    }[rule]
    return max(0, score - next(x for at, x in zip(places, losses, strict=True) if score >= at))


FAST = [(80, 4), (70, 5), (60, 6), (50, 7), (40, 8), (30, 9), (20, 11), (10, 13), (0, 15)]


def one_exam(rule: Rule, answers: list[bool]) -> int:
    score = 0
    for right in answers:
        score = one_answer(rule, score, right)
        if score == 100:
            break
    return score


rules = st.sampled_from(Rule)


@given(rule=rules, seed=st.integers(0, 999), length=st.integers(0, 120), p=st.floats(0, 1))
def test_many_exams_at_once_are_one_answer_at_a_time(
    rule: Rule, seed: int, length: int, p: float
) -> None:
    right_NR = np.random.default_rng(seed).random((length, 5)) < p
    expected = [one_exam(rule, answers.tolist()) for answers in right_NR.T]
    assert final_scores(right_NR, rule).tolist() == expected


@pytest.mark.parametrize("rule", Rule)
def test_every_step_of_a_rule_is_the_written_one(rule: Rule) -> None:
    after = next_scores(rule)
    assert after.shape == (2, TOP + 1)
    for score in range(TOP):
        assert after[0, score] == one_answer(rule, score, False)
        assert after[1, score] == one_answer(rule, score, True)
    assert after[:, TOP].tolist() == [TOP, TOP]


@pytest.mark.parametrize(
    ("rule", "questions"),
    [(Rule.regular, 24), (Rule.advanced, 20), (Rule.fast, 14), (Rule.powerpath, 11)],
)
def test_a_perfect_run_takes_so_many_questions(rule: Rule, questions: int) -> None:
    for length, at_top in ((questions - 1, False), (questions, True), (questions + 9, True)):
        (score,) = final_scores(np.ones((length, 1), np.bool_), rule)
        assert (score == TOP) == at_top


# ---------------------------------------------------------------------------- published figures


def answered(
    accuracies: dict[str, float], questions: int, skills: int = 1, options: int = 4
) -> Predictions:
    """Predictions with these shares of right choices in each subject, spread over its skills."""
    subject_Q = [subject for subject in accuracies for _ in range(questions)]
    right_Q = np.concatenate(
        [np.arange(questions) < round(share * questions) for share in accuracies.values()]
    )
    number_Q = np.tile(np.arange(questions), len(accuracies))
    probs_QK = np.full((len(right_Q), options), 0.1)
    probs_QK[np.arange(len(right_Q)), np.where(right_Q, 0, 1)] = 1 - 0.1 * (options - 1)
    return predictions(
        probs_QK,
        np.zeros(len(right_Q), np.int64),
        subject_Q,
        [f"grade-{number % 3}" for number in number_Q % skills],
        [f"{subject}-{n % skills}" for subject, n in zip(subject_Q, number_Q, strict=True)],
    )


def predictions(
    probs_QK: NDArray[np.float64],
    answer_Q: NDArray[np.int64],
    subject_Q: list[str],
    grade_Q: list[str],
    skill_Q: list[str],
) -> Predictions:
    count, options = probs_QK.shape
    columns: dict[str, Any] = {
        "id": [f"q{number}" for number in range(count)],
        "row": list(range(count)),
        "subject": subject_Q,
        "grade": grade_Q,
        "skill": skill_Q,
        "kind": ["text_only"] * count,
        "num_options": [options] * count,
        "question_words": [3] * count,
        "truncated_tokens": [0] * count,
        "answer": answer_Q.tolist(),
    }
    return Predictions(columns, probs_QK, np.log(probs_QK).astype(np.float32), {"run": "r"})


def settings_for(**given: Any) -> ExamConfig:
    return ExamConfig(**{"predictions": "p.parquet", "repeats": 200, **given})


@pytest.mark.parametrize(("accuracy", "score"), LONG_RUN.items())
def test_long_run_means_are_the_known_ones(accuracy: float, score: float) -> None:
    found = answered({"math": accuracy}, 1000)
    exam = sit(found, settings_for(repeats=8000))
    assert exam.mean_of_skills.mean == pytest.approx(score, abs=0.7)


@pytest.mark.parametrize("model", PUBLISHED)
def test_thirteen_questions_come_near_the_published_scores(model: str) -> None:
    shares, score = PUBLISHED[model]
    found = answered({name: share / 100 for name, share in zip("STEM", shares, strict=True)}, 1000)
    exam = sit(found, settings_for(questions_per_skill=13, repeats=4000))
    assert exam.mean_of_subjects.mean == pytest.approx(score, abs=0.7)


def expected_score(p: float, length: int, rule: Rule = Rule.regular) -> float:
    """The exact mean: the probability of every score after every answer."""
    after = next_scores(rule)
    prob_S: NDArray[Any] = np.zeros(TOP + 1)
    prob_S[0] = 1
    for _ in range(length):
        wrong_S, right_S = (1 - p) * prob_S, p * prob_S
        prob_S = np.bincount(after[0], wrong_S, TOP + 1) + np.bincount(after[1], right_S, TOP + 1)
    return float(prob_S @ np.arange(TOP + 1))


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("choices", Choices)
def test_with_replacement_the_mean_is_the_exact_one(rule: Rule, choices: Choices) -> None:
    found = answered({"math": 0.75}, 40)
    config = settings_for(rule=rule, choices=choices, questions_per_skill=30, repeats=4000)
    p = 0.75 if choices is Choices.argmax else 0.75 * 0.7 + 0.25 * 0.1
    exam = sit(found, config)
    assert exam.mean_of_skills.mean == pytest.approx(expected_score(p, 30, rule), abs=1.2)
    assert exam.mean_of_skills.guessing == pytest.approx(expected_score(0.25, 30, rule), abs=1.2)


# ---------------------------------------------------------------------------- draws


@given(
    seed=st.integers(0, 999),
    questions=st.integers(1, 20),
    share=st.floats(0, 1),
    more=st.booleans(),
)
def test_without_replacement_no_question_comes_twice(
    seed: int, questions: int, share: float, more: bool
) -> None:
    rng = np.random.default_rng(seed)
    length = round(share * questions)
    place_NR = draw_questions(rng, questions, length, 6, replacement=False)
    assert place_NR.shape == (length, 6)
    for place_N in place_NR.T:
        assert len(set(place_N.tolist())) == length
        assert set(place_N.tolist()) <= set(range(questions))
    length += 7 * more
    place_NR = draw_questions(rng, questions, length, 6, replacement=True)
    assert place_NR.shape == (length, 6) and set(place_NR.ravel().tolist()) <= set(range(questions))


def test_draws_from_a_huge_skill_take_little_memory() -> None:
    tracemalloc.start()
    place_NR = draw_questions(np.random.default_rng(0), 171_601, 13, 200, replacement=False)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert place_NR.shape == (13, 200) and peak_bytes < 80 * 2**20  # at once it would be 262 MiB
    assert all(len(set(place_N)) == 13 for place_N in place_NR.T.tolist())


@pytest.mark.parametrize("replacement", [False, True])
def test_every_question_is_equally_likely_at_every_place(replacement: bool) -> None:
    rng = np.random.default_rng(0)
    place_NR = draw_questions(rng, 5, 3, 20_000, replacement)
    for place_R in place_NR:
        np.testing.assert_allclose(np.bincount(place_R) / 20_000, 0.2, atol=0.015)


@given(seed=st.integers(0, 99), replacement=st.booleans(), choices=st.sampled_from(Choices))
@settings(max_examples=25)
def test_the_rows_order_and_other_units_do_not_matter(
    seed: int, replacement: bool, choices: Choices
) -> None:
    found = answered({"math": 0.6, "art": 0.3}, 12, skills=3)
    config = settings_for(
        seed=seed, replacement=replacement, choices=choices, questions_per_skill=4, repeats=9
    )
    exam = sit(found, config)
    order = np.random.default_rng(seed).permutation(len(found))
    again = sit(taken(found, order), config)
    np.testing.assert_array_equal(exam.score_RU, again.score_RU)
    np.testing.assert_array_equal(exam.guess_RU, again.guess_RU)
    assert exam.units == again.units
    half = sit(taken(found, np.flatnonzero(np.array(found.columns["subject"]) == "math")), config)
    assert half.units == exam.units[3:]
    np.testing.assert_array_equal(half.score_RU, exam.score_RU[:, 3:])


def taken(found: Predictions, place_Q: NDArray[np.int64]) -> Predictions:
    columns: dict[str, Any] = {
        name: [column[place] for place in place_Q] for name, column in found.columns.items()
    }
    return Predictions(columns, found.probs_QK[place_Q], found.logits_QK[place_Q])


def test_another_seed_draws_other_questions() -> None:
    found = answered({"math": 0.6}, 40)
    scores = [sit(found, settings_for(seed=seed)).score_RU for seed in (0, 0, 1)]
    assert np.array_equal(scores[0], scores[1]) and not np.array_equal(scores[0], scores[2])


def test_all_of_a_skills_questions_in_any_order_are_an_exam_without_replacement() -> None:
    found = answered({"math": 1.0}, 10)
    exam = sit(found, settings_for(questions_per_skill=10, replacement=False))
    assert set(exam.score_RU.ravel().tolist()) == {exam.perfect}


# ---------------------------------------------------------------------------- what is summed up


def test_means_are_over_units_and_over_subjects() -> None:
    accuracies = {"math": 0.9, "art": 0.2}
    found = answered(accuracies, 60, skills=3)
    math = np.flatnonzero(np.array(found.columns["subject"]) == "math")
    found = taken(
        found, np.append(math, np.flatnonzero(np.array(found.columns["skill"]) == "art-0"))
    )
    exam = sit(found, settings_for())
    of = {
        (unit.skill, unit.grade): scores.mean
        for unit, scores in zip(exam.units, exam.of_units, strict=True)
    }
    assert sorted(of) == [("art-0", "grade-0"), *((f"math-{n}", f"grade-{n}") for n in range(3))]
    math_mean = np.mean([of[f"math-{n}", f"grade-{n}"] for n in range(3)])
    assert exam.by("subject")["math"].mean == pytest.approx(math_mean)
    assert exam.by("skill")["math/math-1"].mean == pytest.approx(of["math-1", "grade-1"])
    assert exam.by("grade")["grade-0"].mean == pytest.approx(
        (of["art-0", "grade-0"] + of["math-0", "grade-0"]) / 2
    )
    assert exam.mean_of_skills.mean == pytest.approx(np.mean(list(of.values())))
    assert exam.mean_of_subjects.mean == pytest.approx((math_mean + of["art-0", "grade-0"]) / 2)
    assert [score.units for score in exam.by("subject").values()] == [1, 3]


def test_skills_of_two_subjects_may_have_one_name() -> None:
    found = answered({"math": 1.0, "art": 0.0}, 30)
    found.columns["skill"] = ["shapes"] * 60
    scores = {name: score.mean for name, score in sit(found, settings_for()).by("skill").items()}
    assert scores == {"art/shapes": 0, "math/shapes": 100}


def test_mastered_is_above_90() -> None:
    exam = sit(answered({"math": 1.0, "art": 0.0}, 30), settings_for())
    shares = {name: score.mastered for name, score in exam.by("subject").items()}
    assert shares == {"art": 0.0, "math": 1.0}
    score_RU = np.array([[MASTERED_ABOVE, MASTERED_ABOVE + 1]])
    on_edge = Exam(exam.units, score_RU, score_RU, [], 0, exam.config)
    assert on_edge.mean_of_skills.mastered == 0.5


def test_the_interval_holds_95_of_100_single_exams() -> None:
    rng = np.random.default_rng(0)
    count, skills = 600, 12
    p_Q = rng.beta(3, 2, skills)[np.arange(count) % skills]
    probs_QK = np.where((rng.random(count) < p_Q)[:, None], [0.8, 0.2], [0.3, 0.7])
    skill_Q = [f"s{number % skills}" for number in range(count)]
    found = predictions(
        probs_QK, np.zeros(count, np.int64), ["math"] * count, ["grade-1"] * count, skill_Q
    )
    interval = sit(found, settings_for(repeats=1000, questions_per_skill=25)).mean_of_skills
    other = sit(found, settings_for(repeats=4000, questions_per_skill=25, seed=7))
    mean_R = other.score_RU.mean(axis=1)
    held = ((interval.low <= mean_R) & (mean_R <= interval.high)).mean()
    assert held == pytest.approx(0.95, abs=0.02)


def test_questions_without_answers_are_counted_and_not_asked() -> None:
    found = answered({"math": 0.5}, 40)
    known = sit(taken(found, np.arange(30)), settings_for())
    answer_Q = np.where(np.arange(40) < 30, found.answer_Q, -1)
    found.columns["answer"] = answer_Q.tolist()
    some = sit(found, settings_for())
    assert (known.unknown, some.unknown) == (0, 10)
    assert known.units == some.units
    np.testing.assert_array_equal(known.score_RU, some.score_RU)


def test_small_skills_are_named() -> None:
    found = answered({"math": 0.5}, 40)
    found = Predictions(
        {**found.columns, "skill": ["big"] * 30 + ["small"] * 10, "grade": ["grade-1"] * 40},
        found.probs_QK,
        found.logits_QK,
    )
    again = sit(found, settings_for(questions_per_skill=20))
    assert [(unit.skill, unit.questions) for unit in again.small] == [("small", 10)]
    assert [unit.skill for unit in again.units] == ["big", "small"] and not again.left_out
    without = sit(found, settings_for(questions_per_skill=20, replacement=False))
    assert [(unit.skill, unit.questions) for unit in without.left_out] == [("small", 10)]
    assert [unit.skill for unit in without.units] == ["big"] and not without.small


def test_a_skill_without_any_known_answer_is_named() -> None:
    found = answered({"math": 0.5, "art": 0.5}, 40)
    math_Q = np.array(found.columns["subject"]) == "math"
    found.columns["answer"] = np.where(math_Q, found.answer_Q, -1).tolist()
    exam = sit(found, settings_for())
    assert [unit.subject for unit in exam.units] == ["math"]
    assert [(unit.subject, unit.questions, unit.accuracy) for unit in exam.left_out] == [
        ("art", 0, None)
    ]
    assert exam.unknown == 40


def test_no_exam_without_answers_or_questions() -> None:
    found = answered({"math": 0.5}, 40)
    with pytest.raises(
        ClipstemError,
        match=r"p\.parquet: no skill has 41 questions \(the largest has 40\); give "
        "replacement=true or questions_per_skill=40 or less",
    ):
        sit(found, settings_for(questions_per_skill=41, replacement=False))
    found.columns["answer"] = [-1] * 40
    with pytest.raises(
        ClipstemError, match="none of the 40 questions has a known answer, so there"
    ):
        sit(found, settings_for())


# ---------------------------------------------------------------------------- the command


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["exam", *arguments])
    main()


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answered({"Social": 0.8, "math": 0.4}, 60, skills=6).write(Path("p.parquet"))
    run_main(monkeypatch, "predictions=p.parquet", "out=exam", "repeats=50")
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("Social", "mean of subjects", "rule=regular", "seed=0", str(PEOPLE), "math-5"):
        assert part in printed
    assert "12 skills have fewer than 100 questions, which come again: Social-0" in printed
    found = json.loads(Path("exam/exam.json").read_text())
    assert found["settings"] == {
        "predictions": "p.parquet",
        "out": "exam",
        "rule": "regular",
        "questions_per_skill": 100,
        "replacement": True,
        "choices": "argmax",
        "repeats": 50,
        "seed": 0,
    }
    assert set(found["subject"]) == {"Social", "math"} and len(found["skill"]) == 12
    assert found["people"] == PEOPLE and found["questions"] == 120
    assert len(found["skills_with_few_questions"]) == 12
    assert found["predictions_made_by"] == {"run": "r"} and found["exam_made_by"]["command"]
    table = pq.read_table("exam/exam.parquet")
    assert len(table) == 12
    names = map("/".join, zip(*(table[n].to_pylist() for n in ("subject", "skill")), strict=True))
    scores = dict(zip(names, table["mean"].to_pylist(), strict=True))
    assert {name: score["mean"] for name, score in found["skill"].items()} == pytest.approx(scores)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "predictions=p.parquet", "out=exam")
    assert "exam exists and is never overwritten" in capsys.readouterr().err


def test_grades_are_printed_in_the_order_of_school(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answered({"math": 0.5}, 20)
    found.columns["grade"] = ["grade-10", "grade-2", "kindergarten", "pre-k"] * 5
    found.write(tmp_path / "p.parquet")
    run_main(monkeypatch, f"predictions={tmp_path / 'p.parquet'}", "repeats=3")
    places = [
        re.search(rf"^\W*{grade} ", printed, re.M)
        for printed in [capsys.readouterr().out]
        for grade in ("pre-k", "kindergarten", "grade-2", "grade-10")
    ]
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts) and len(starts) == 4


def test_a_short_exam_says_that_nobody_can_master_a_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.parquet"
    found = answered({"[/math]": 0.5}, 20)  # no markup of the terminal
    found.write(path)
    run_main(monkeypatch, f"predictions={path}", "questions_per_skill=13", "repeats=10")
    printed = " ".join(capsys.readouterr().out.split())
    assert "[/math]" in printed
    assert "13 right answers make 78, so no skill can be mastered (above 90)" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "conf key 'predictions' is missing"),
        (["predictions=none.parquet"], "none.parquet: there is no such predictions file"),
        (["predictions=p", "repeats=0"], "conf key 'repeats': 0 is not above 0"),
        (["predictions=p", "questions_per_skill=0"], "'questions_per_skill': 0 is not above 0"),
        (["predictions=p", "length=3"], "conf key 'length' is unknown"),
        (["predictions=p", "seed=-1"], "conf key 'seed': -1 is not from 0 to below 4294967296"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, *arguments)
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed
    assert stopped.value.code == 2


def test_the_exam_needs_no_torch(tmp_path: Path) -> None:
    answered({"math": 0.5}, 20).write(tmp_path / "p.parquet")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "from clipstem.exam import main; main()"
    )
    arguments = ["predictions=p.parquet", "out=exam", "repeats=5"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    assert (tmp_path / "exam" / "exam.json").is_file()

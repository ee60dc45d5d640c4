"""The report's numbers: plain ones, published ones, and what cannot be said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting import (
    MADE,
    SUBJECTS,
    answered,
    config,
    saved,
    school,
    table,
    taken,
)
from scipy import stats

from clipstem import metrics
from clipstem.config import ExamRules
from clipstem.report import analyses, comparisons, published, sittings
from clipstem.report.__main__ import build
from clipstem.report.answers import Labels, gather


def test_accuracies_are_the_plain_ones(two_models: list[Path]) -> None:
    answers = gather(two_models)
    rows = table(analyses.accuracy(answers, 50, 0)).rows
    tuned = school(2, 0.8)
    right_Q = tuned.choice_Q == tuned.answer_Q
    subject_Q = np.array(tuned.columns["subject"])
    macro = np.mean([right_Q[subject_Q == subject].mean() for subject in SUBJECTS])
    assert (rows[1][0], rows[1][1], rows[1][4]) == (
        "tuned",
        f"{100 * macro:.1f}",
        f"{100 * right_Q.mean():.1f}",
    )
    assert rows[2] == ("chance", "33.3", "–", "–", "33.3", "–", "–")
    of_subjects = table(analyses.by_subject(answers)).rows
    assert [row[0] for row in of_subjects] == [
        "science",
        "engineering",
        "math",
    ]  # the paper's order
    assert of_subjects[2][4].startswith(f"{100 * right_Q[subject_Q == 'math'].mean():.1f} [")


def test_below_ten_skills_nothing_is_said_about_others(tmp_path: Path) -> None:
    few = answered([n % 3 > 0 for n in range(45)], skill=[f"s{n % 9}" for n in range(45)])
    rows = table(analyses.accuracy(gather([saved(tmp_path / "a.parquet", few)]), 50, 0)).rows
    assert rows[0][3] == rows[0][6] == "–" != rows[0][2]


@pytest.mark.parametrize("row", published.MODELS, ids=lambda row: row.name)
def test_published_averages_are_the_macro_accuracies(
    row: published.Published, tmp_path: Path
) -> None:
    questions = 4000
    number = np.arange(questions)
    share_Q = np.array(row.subjects)[number % 4] / 100
    predictions = answered(
        number // 4 < np.round(share_Q * 1000),
        subject=[published.SUBJECTS[n % 4] for n in number],
        skill=[f"s{n % 40}" for n in number],
    )
    answers = gather([saved(tmp_path / "a.parquet", predictions)])
    found = table(analyses.accuracy(answers, 20, 0)).rows[0]
    assert float(found[1]) == pytest.approx(row.average, abs=0.1)  # as rounded as the table is
    subjects = table(analyses.by_subject(answers)).rows
    assert [line[3].split()[0] for line in subjects] == [f"{share:.1f}" for share in row.subjects]


@pytest.mark.parametrize("name", published.RELIABILITY)
def test_published_reliability_points_are_found_again(name: str, tmp_path: Path) -> None:
    """A thousand questions at each centre, of which the published share is right."""
    points = published.RELIABILITY[name]
    bins = len(points)
    number = np.arange(1000 * bins)
    right_Q = number // bins < np.round(10 * np.array(points))[number % bins]
    confidence_Q = np.array(published.RELIABILITY_CENTRES)[number % bins] / 100
    predictions = answered(right_Q, 5, confidence_Q, temperature=2.0)
    answers = gather([saved(tmp_path / "a.parquet", predictions)])
    rows = table(analyses.calibration(answers, 10)).rows
    after = {row[0]: row[-1] for row in rows if row[-1] != "–"}
    assert after == {
        f"{centre}.0": f"{point:.1f}"
        for centre, point in zip(published.RELIABILITY_CENTRES, points, strict=True)
    }
    gap = np.abs(np.array(points) - published.RELIABILITY_CENTRES).mean()
    assert f"{gap:.1f} % after the temperature" in table(analyses.calibration(answers, 10)).caption


def test_reliability_before_the_temperature_is_of_the_logits(tmp_path: Path) -> None:
    predictions = answered([True, False] * 50, 2, 0.65, temperature=3.0)
    answers = gather([saved(tmp_path / "a.parquet", predictions)])
    rows = table(analyses.calibration(answers, 10)).rows
    before = metrics.probabilities(predictions.logits_QK, predictions.num_options_Q).max()
    assert rows[0] == ["65.0", "0", "–", "–", "100", "65.0", "50.0"]
    assert rows[1] == ["85.0", "100", f"{100 * before:.1f}", "50.0", "0", "–", "–"]


def test_without_logits_nothing_is_said_of_before_the_temperature(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", answered([True, False] * 50, 2, 0.65))
    pq.write_table(pq.read_table(path).drop_columns(["logits"]), path)
    found = table(analyses.calibration(gather([path]), 10))
    assert found.columns == ["bin's centre", "n after", "held after", "right after"]
    assert found.rows == [["65.0", "100", "65.0", "50.0"]]
    assert "no logits given" in found.caption and "% before" not in found.caption


def test_the_paired_comparison_counts_question_by_question(two_models: list[Path]) -> None:
    answers = gather(two_models)
    a, b = (model.right_Q for model in answers.models)
    row = table(comparisons.paired(answers)).rows[0]
    assert row[0] == "tuned − zero-shot"
    assert row[1] == f"{100 * (b.mean() - a.mean()):+.1f}"
    assert (row[3], row[4]) == (str((b & ~a).sum()), str((a & ~b).sum()))
    p = stats.binomtest(int((b & ~a).sum()), int((a ^ b).sum())).pvalue
    assert row[5] == row[6] == ("< 0.001" if p < 0.001 else f"{p:.3f}")


def test_disagreement_adds_up(two_models: list[Path]) -> None:
    section = comparisons.disagreement(gather(two_models))
    row = table(section).rows[0]
    shares = [float(line[1]) for line in table(section, 1).rows]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares[0] == float(row[3]) and shares[2] == float(row[2])


def test_the_worst_case_is_right_under_every_change(two_models: list[Path]) -> None:
    answers = gather(two_models)
    section = comparisons.robustness(answers)
    tuned = answers.models[1]
    typos = next(variant for variant in tuned.variants if variant.name == "typos")
    both = (tuned.right_Q & typos.right_Q).mean()
    assert table(section).rows[0][:2] == ("tuned", "typos 0.1")
    assert table(section, 1).rows == [
        ("tuned", "1", "180", f"{100 * tuned.right_Q.mean():.1f}", f"{100 * both:.1f}")
    ]


def test_blanked_pictures_are_no_matter_of_robustness(two_models: list[Path]) -> None:
    rows = table(comparisons.sight(gather(two_models))).rows
    assert [row[:2] for row in rows] == [("tuned", "blank picture")]


def test_options_that_look_the_same_are_a_guess(tmp_path: Path) -> None:
    """Always the first of two blank pictures would be right in two of three questions."""
    plain = answered([True, True, False] * 4, 2, answer=[0, 1, 0] * 4)
    blank = replace(plain, probs_QK=np.full((12, 2), 0.5))
    changed = {"name": "blank_picture", "strength": None, "seed": 0}
    paths = [
        saved(tmp_path / "a.parquet", plain),
        saved(tmp_path / "b.parquet", blank, weights_sha256="a", perturbation=changed),
    ]
    found = table(comparisons.sight(gather(paths)))
    share = 100 * (plain.choice_Q == plain.answer_Q).mean()
    (row,) = found.rows
    assert row[3:] == (f"{share:.1f}", "50.0", f"{50 - share:+.1f}".replace("-", "−"), "–", "–")
    assert "counts 1/n" in found.notes[0]


def test_a_variant_of_fewer_questions_is_compared_on_those(two_models: list[Path]) -> None:
    changed = {"name": "case", "strength": None, "seed": 0}
    some = taken(school(3, 0.5), np.arange(60))
    path = saved(Path("case.parquet"), some, weights_sha256="tuned", perturbation=changed)
    rows = table(comparisons.robustness(gather([*two_models[:2], path]))).rows
    assert rows[0][2] == "60"


def test_positions_are_counted_for_each_number_of_options(tmp_path: Path) -> None:
    rows = comparisons.positions(
        gather([saved(tmp_path / "a.parquet", answered([True, False, False, True] * 3, 2))])
    ).rows
    assert rows == [("1 of 2", "12", "50.0", "50.0"), ("2 of 2", "12", "50.0", "50.0")]


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=30))
def test_every_number_is_in_one_range(values: list[int]) -> None:
    found = analyses.binned(np.array(values), (0, 1, 4, 6), "words")
    names = {
        -1: "unknown",
        0: "0 words",
        1: "1 to 3 words",
        4: "4 to 5 words",
        6: "6 or more words",
    }
    expected = [names[max(edge for edge in names if edge <= value)] for value in values]
    assert [found.names[number] for number in found.number_Q] == expected
    assert found.counts.min() > 0


def test_words_are_sorted_as_people_do() -> None:
    found = Labels.of(["grade-10", "grade-2", "x", "grade-2"], first=["x"])
    assert found.names == ("x", "grade-2", "grade-10")
    assert found.number_Q.tolist() == [2, 1, 0, 1]


def test_skills_of_two_subjects_may_have_one_name(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.parquet",
        answered([True, False], skill=["s", "s"], subject=["math", "science"]),
    )
    answers = gather([path])
    rows = table(analyses.every_skill(answers, {})).rows
    assert [row[:3] for row in rows] == [("s", "math", "grade-2"), ("s", "science", "grade-2")]
    assert [row[5] for row in rows] == ["100.0", "0.0"]


def test_a_skill_of_an_unnamed_subject_has_a_score(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", answered([True] * 6, subject=["", "math"] * 3))
    answers = gather([path])
    (exam,) = sittings.sit(answers, ExamRules(repeats=3)).values()
    assert sittings.of_skills(answers, exam) == [100, 100]


def test_unknown_lengths_and_cuts_are_said_to_be(two_models: list[Path]) -> None:
    unknown = replace(
        school(1, 0.5), columns={**school(1, 0.5).columns, "question_words": [-1] * 180}
    )
    path = saved(Path("a.parquet"), unknown)
    assert table(analyses.by_length(gather([path]))).rows[0][0] == "unknown"


def test_one_of_a_thing_is_in_the_singular(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", answered([True, False, True]))
    (line,) = build(config([path]), MADE).summary
    assert line.startswith("1 model, 3 questions of 1 skill in 1 subject. ")


def test_what_treats_questions_as_independent_says_so(two_models: list[Path]) -> None:
    answers = gather(two_models)
    for section in (analyses.by_subject(answers), analyses.by_training_questions(answers)):
        assert "as if questions were independent" in " ".join(table(section).notes)
    assert "as if questions were independent" in table(comparisons.paired(answers)).notes[0]
    columns = table(analyses.probability_quality(answers, 5)).columns
    assert columns[1] == "negative log-likelihood, nats"


def test_what_cannot_be_said_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", answered([True, False, True]))
    report = build(config([path]), MADE)
    lines = [p for c in report.chapters for s in c.sections for p in s.parts if isinstance(p, str)]
    for start in (
        "No predictions file says how many questions of each skill",
        "No predictions file says how many parameters",
        "Give several predictions files to compare models.",
        "Nothing can be said: no predictions for questions with blanked",
        "Nothing can be said: no predictions for perturbed questions",
        "The questions' texts and pictures were not given: see data=<prepared folder>.",
    ):
        assert any(line.startswith(start) for line in lines), start

"""The report: the same right numbers in HTML and Markdown, and nothing foreign alive in them."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from samples import picture, question
from scipy import stats

from clipstem import metrics, shards
from clipstem.config import ExamRules, PrepareConfig, ReportConfig, Source
from clipstem.pairs import LOWEST_LOGIT
from clipstem.prediction import COLUMNS, Predictions
from clipstem.prepare import prepare
from clipstem.question import ClipstemError
from clipstem.report import analyses, comparisons, gallery, page, published, sittings
from clipstem.report.__main__ import build, write_report
from clipstem.report.answers import Labels, gather
from clipstem.report.page import Report, Section, Table

GOLDEN = Path(__file__).parent / "golden_report.md"
MADE = {
    "command": "python -m clipstem.report predictions=[a.parquet] out=report",
    "commit": None,
    "python": "3",
    "versions": {"numpy": "2"},
}
QUICK: dict[str, Any] = {
    "exam": ExamRules(repeats=20, questions_per_skill=12),
    "repeats": 50,
}
HOSTILE = "<script>alert(1)</script> | `b` **c** [d](http://evil.example) $e$ & \\ _f_"


def answered(
    right: Sequence[bool] | NDArray[np.bool_],
    num_options: int = 3,
    confidence: float | NDArray[np.float64] = 0.8,
    temperature: float = 1.0,
    **columns: Sequence[Any],
) -> Predictions:
    """Questions whose answers go round the options, answered as said with that confidence."""
    right_Q = np.asarray(right, bool)
    questions = len(right_Q)
    answer_Q = np.arange(questions) % num_options
    choice_Q = np.where(right_Q, answer_Q, (answer_Q + 1) % num_options)
    confidence_Q = np.broadcast_to(confidence, questions)
    others_Q = (1 - confidence_Q) / (num_options - 1)
    probs_QK = np.repeat(others_Q[:, None], num_options, axis=1)
    probs_QK[np.arange(questions), choice_Q] = confidence_Q
    logits_QK = (temperature * np.log(probs_QK)).astype(np.float32)
    given: dict[str, Sequence[Any]] = {
        "id": [f"q{number}" for number in range(questions)],
        "row": list(range(questions)),
        "subject": ["science"] * questions,
        "grade": ["grade-2"] * questions,
        "skill": ["magnets"] * questions,
        "kind": ["text_options"] * questions,
        "num_options": [num_options] * questions,
        "question_words": [7] * questions,
        "truncated_tokens": [0] * questions,
        "answer": answer_Q.tolist(),
    }
    return Predictions({**given, **columns}, probs_QK, logits_QK)


def saved(path: Path, predictions: Predictions, **provenance: Any) -> Path:
    facts = {"model": path.stem, "weights_sha256": path.stem, "temperature": 1.0, "split": "valid"}
    replace(predictions, provenance={**facts, **provenance}).write(path)
    return path


def taken(predictions: Predictions, places: Sequence[int] | NDArray[np.int64]) -> Predictions:
    """Some of the questions, in another order."""
    columns: dict[str, Sequence[Any]] = {
        name: [values[place] for place in places] for name, values in predictions.columns.items()
    }
    return Predictions(columns, predictions.probs_QK[places], predictions.logits_QK[places])


def table(section: Section, place: int = 0) -> Table:
    return [part for part in section.parts if isinstance(part, Table)][place]


def config(paths: Sequence[Path], out: Path | str = "report", **given: Any) -> ReportConfig:
    return ReportConfig(predictions=[str(path) for path in paths], out=str(out), **QUICK, **given)


SUBJECTS = ("engineering", "math", "science")
GRADES = ("grade-10", "grade-2", "pre-k", "kindergarten")


def school(seed: int, share: float) -> Predictions:
    """180 questions of twelve skills in three subjects and four grades."""
    number = np.arange(180)
    rng = np.random.default_rng(seed)
    return answered(
        rng.random(180) < share,
        confidence=np.round(rng.uniform(0.4, 0.99, 180), 3),
        temperature=2.0,
        subject=[SUBJECTS[n % 3] for n in number],
        grade=[GRADES[n // 3 % 4] for n in number],
        skill=[f"skill-{n // 3 % 4}" for n in number],
        question_words=(number % 30).tolist(),
    )


def files_of_two_models() -> list[Path]:
    """Files of two models and of one of them on perturbed questions, in the current folder."""
    trained = {f"skill-{number}": 10 ** (number + 1) for number in range(4)}
    facts = {"parameters": 151_000_000, "train_questions_of_skill": trained}
    changed = {"name": "blank_picture", "strength": None, "seed": 0}
    typos = {"name": "typos", "strength": 0.1, "seed": 0}
    return [
        saved(Path("zero-shot.parquet"), school(1, 0.4), parameters=102_000_000),
        saved(Path("tuned.parquet"), school(2, 0.8), **facts),
        saved(Path("blank.parquet"), school(3, 0.35), weights_sha256="tuned", perturbation=changed),
        saved(Path("typos.parquet"), school(4, 0.7), weights_sha256="tuned", perturbation=typos),
    ]


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return files_of_two_models()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        return build(config(files_of_two_models(), bins=7), MADE)


# ---------------------------------------------------------------------------- reading files


def test_models_are_brought_to_the_questions_that_they_share(tmp_path: Path) -> None:
    whole = school(0, 0.6)
    some = taken(whole, np.arange(170)[::-1])
    found = gather([saved(tmp_path / "a.parquet", whole), saved(tmp_path / "b.parquet", some)])
    assert len(found.questions) == 170
    first, second = found.models
    assert np.array_equal(first.right_Q, second.right_Q)
    assert np.array_equal(first.right_Q, (whole.choice_Q == whole.answer_Q)[:170])
    (left_out,) = found.excluded
    assert left_out == f"{tmp_path}/a.parquet: 10 questions that another file does not have."


@settings(max_examples=8)
@given(st.permutations(range(24)))
def test_the_order_of_the_rows_changes_nothing(order: list[int]) -> None:
    whole = answered([n % 5 > 1 for n in range(24)], skill=[f"s{n % 4}" for n in range(24)])
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.parquet", Path(folder) / "b.parquet"
        found = gather([saved(a, whole), saved(b, taken(whole, order))])
    first, second = found.models
    assert np.array_equal(first.probs_QK, second.probs_QK)
    assert np.array_equal(first.right_Q, second.right_Q)


def test_a_blind_models_own_questions_are_not_changed_ones(tmp_path: Path) -> None:
    changed = {"name": "blank_picture", "strength": None, "seed": 0}
    own = {"perturbation": changed, "train_perturb": "blank_picture", "weights_sha256": "blind"}
    paths = [
        saved(tmp_path / "seeing.parquet", answered([True] * 6), weights_sha256="seeing"),
        saved(tmp_path / "blind.parquet", answered([False] * 6), **own),
    ]
    models = gather(paths).models
    assert [len(model.variants) for model in models] == [0, 0]


def test_questions_without_an_answer_are_left_out_with_their_number(tmp_path: Path) -> None:
    answers = [n % 3 if n > 9 else -1 for n in range(30)]
    path = saved(tmp_path / "a.parquet", answered([True] * 30, answer=answers), without_picture=4)
    found = gather([path])
    assert len(found.questions) == 20
    assert found.excluded == (
        f"{path}: 10 questions without a known answer.",
        f"{path}: 4 questions have no picture and were not scored.",
    )


def test_skills_without_any_answer_and_columns_not_read_are_named(tmp_path: Path) -> None:
    skills = ["poles"] * 3 + ["magnets"] * 3
    path = saved(
        tmp_path / "a.parquet", answered([True] * 6, skill=skills, answer=[-1] * 3 + [0, -1, 2])
    )
    pq.write_table(pq.read_table(path).append_column("comment", [["x"] * 6]), path)
    assert gather([path]).excluded == (
        f"{path}: 4 questions without a known answer.",
        f"{path}: no question with a known answer in science/poles.",
        f"{path}: columns that were not read: comment.",
    )


def test_an_empty_grade_has_a_name(tmp_path: Path) -> None:
    found = gather([saved(tmp_path / "a.parquet", answered([True] * 4, grade=["", "", "x", "x"]))])
    assert found.questions.grade.names == ("(no name)", "x")


def test_grades_are_in_the_order_of_school(two: list[Path]) -> None:
    names = gather(two[:1]).questions.grade.names
    assert names == ("pre-k", "kindergarten", "grade-2", "grade-10")


def test_models_are_called_by_run_model_or_file(tmp_path: Path) -> None:
    same = answered([True, False])
    (tmp_path / "x").mkdir()
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    saved(a, same, run="runs/first", model="m")
    saved(b, same, run="runs/second", model="m")
    saved(c := tmp_path / "c.parquet", same, model="m")
    saved(d := tmp_path / "x" / "c.parquet", same, model="m")

    def names(*paths: Path) -> list[str]:
        return [model.name for model in gather(paths).models]

    assert names(a, b) == ["first", "second"]
    assert names(a, c) == ["first", "m"]
    assert names(b, c, d) == [str(path.with_suffix("")) for path in (b, c, d)]
    assert [model.name for model in gather([a, b], ["new", "old"]).models] == ["new", "old"]


def other_answers(tmp_path: Path) -> list[Path]:
    other = answered([True] * 6, answer=[(n + 1) % 3 for n in range(6)])
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6)),
        saved(tmp_path / "b.parquet", other),
    ]


def no_answers(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6, answer=[-1] * 6))]


def nothing_shared(tmp_path: Path) -> list[Path]:
    ids = [f"other{n}" for n in range(6)]
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6)),
        saved(tmp_path / "b.parquet", answered([True] * 6, id=ids)),
    ]


def twice(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6))] * 2


def only_perturbed(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a.parquet", answered([True] * 6), perturbation={"name": "case"})]


def of_unnamed_weights(tmp_path: Path) -> list[Path]:
    facts: dict[str, Any] = {"perturbation": {"name": "case"}, "weights_sha256": None}
    return [
        saved(tmp_path / "a.parquet", answered([True] * 6), **facts),
        saved(tmp_path / "b.parquet", answered([True] * 6), weights_sha256=None),
    ]


def of_other_weights(tmp_path: Path) -> list[Path]:
    plain = saved(tmp_path / "b.parquet", answered([True] * 6))
    return [*only_perturbed(tmp_path), plain]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            no_answers,
            r"a\.parquet: none of its 6 questions has a known answer \(STEM's test withholds "
            r"them\), so there is nothing to report; give predictions for valid",
        ),
        (
            other_answers,
            r"b\.parquet: question 'q0' has answer 1, but 0 in .*a\.parquet \(6 such questions\); "
            "these are predictions for different data and cannot be compared",
        ),
        (
            nothing_shared,
            r"a\.parquet, .*b\.parquet: share no question, so they cannot be compared",
        ),
        (twice, "a: a file is given twice"),
        (only_perturbed, "all are of perturbed questions; give the model's plain predictions too"),
        (
            of_unnamed_weights,
            r"a\.parquet: is of perturbed questions, but does not say of which weights "
            r"\(weights_sha256\), so that no model can be found for it",
        ),
        (
            of_other_weights,
            r"a\.parquet: is of perturbed questions, and 0 of the plain files are of the same "
            r"weights \(weights_sha256\); give exactly one",
        ),
    ],
)
def test_files_that_cannot_be_reported_on_are_named(
    make: Callable[[Path], list[Path]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClipstemError, match=message):
        gather(make(tmp_path))


def test_names_must_be_one_for_each_model(two: list[Path]) -> None:
    with pytest.raises(ClipstemError, match="conf key 'names': a, a are not 2 different names"):
        gather(two, ["a", "a"])


def test_an_existing_folder_is_not_overwritten(two: list[Path]) -> None:
    Path("report").mkdir()
    with pytest.raises(ClipstemError, match="report exists and is never overwritten"):
        write_report(config(two))


# ---------------------------------------------------------------------------- numbers


def test_accuracies_are_the_plain_ones(two: list[Path]) -> None:
    answers = gather(two)
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


def test_the_paired_comparison_counts_question_by_question(two: list[Path]) -> None:
    answers = gather(two)
    a, b = (model.right_Q for model in answers.models)
    row = table(comparisons.paired(answers)).rows[0]
    assert row[0] == "tuned − zero-shot"
    assert row[1] == f"{100 * (b.mean() - a.mean()):+.1f}"
    assert (row[3], row[4]) == (str((b & ~a).sum()), str((a & ~b).sum()))
    p = stats.binomtest(int((b & ~a).sum()), int((a ^ b).sum())).pvalue
    assert row[5] == row[6] == ("< 0.001" if p < 0.001 else f"{p:.3f}")


def test_disagreement_adds_up(two: list[Path]) -> None:
    section = comparisons.disagreement(gather(two))
    row = table(section).rows[0]
    shares = [float(line[1]) for line in table(section, 1).rows]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares[0] == float(row[3]) and shares[2] == float(row[2])


def test_the_worst_case_is_right_under_every_change(two: list[Path]) -> None:
    answers = gather(two)
    section = comparisons.robustness(answers)
    tuned = answers.models[1]
    typos = next(variant for variant in tuned.variants if variant.name == "typos")
    both = (tuned.right_Q & typos.right_Q).mean()
    assert table(section).rows[0][:2] == ("tuned", "typos 0.1")
    assert table(section, 1).rows == [
        ("tuned", "1", "180", f"{100 * tuned.right_Q.mean():.1f}", f"{100 * both:.1f}")
    ]


def test_blanked_pictures_are_no_matter_of_robustness(two: list[Path]) -> None:
    rows = table(comparisons.sight(gather(two))).rows
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


def test_a_variant_of_fewer_questions_is_compared_on_those(two: list[Path]) -> None:
    changed = {"name": "case", "strength": None, "seed": 0}
    some = taken(school(3, 0.5), np.arange(60))
    path = saved(Path("case.parquet"), some, weights_sha256="tuned", perturbation=changed)
    rows = table(comparisons.robustness(gather([*two[:2], path]))).rows
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


def test_unknown_lengths_and_cuts_are_said_to_be(two: list[Path]) -> None:
    unknown = replace(
        school(1, 0.5), columns={**school(1, 0.5).columns, "question_words": [-1] * 180}
    )
    path = saved(Path("a.parquet"), unknown)
    assert table(analyses.by_length(gather([path]))).rows[0][0] == "unknown"


def test_one_of_a_thing_is_in_the_singular(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", answered([True, False, True]))
    (line,) = build(config([path]), MADE).summary
    assert line.startswith("1 model, 3 questions of 1 skill in 1 subject. ")


def test_what_treats_questions_as_independent_says_so(two: list[Path]) -> None:
    answers = gather(two)
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


# ---------------------------------------------------------------------------- HTML and Markdown


class Cells(HTMLParser):
    """The text of each table's cells, row by row; and all that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        fetched = {"src", "href", "action", "data", "srcset", "poster"}
        self.fetched += [value for name, value in attrs if name in fetched]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        if tag == "img" and self.inside:
            self.rows[-1][-1] += dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    plain = [[re.sub(r"!\[(.*?)\]\(.*?\)", r"\1", cell) for cell in row] for row in rows]
    return [
        [unescape(re.sub(r"\\([\\`*_|~$([\]])", r"\1", cell.strip())) for cell in row]
        for row in plain
        if not set("".join(row)) <= set(" -:")
    ]


def test_html_and_markdown_hold_the_same_tables(made: Report) -> None:
    in_html = [[" ".join(cell.split()) for cell in row] for row in Cells(page.html(made)).rows]
    in_markdown = markdown_cells(page.markdown(made))
    assert in_html == in_markdown
    parts = [p for c in made.chapters for s in c.sections for p in s.parts]
    tables = [part for part in parts if isinstance(part, Table)]
    assert len(in_html) == sum(len(one.rows) + 1 for one in tables) > 150


def test_the_markdown_is_the_golden_one(made: Report, tmp_path: Path) -> None:
    """Without the last chapter, which has hashes of files that other versions write otherwise."""
    found = page.markdown(replace(made, chapters=made.chapters[:-1]))
    (tmp_path / "found.md").write_text(found)
    assert found == GOLDEN.read_text(), f"differs from {GOLDEN}: see {tmp_path / 'found.md'}"


def test_a_report_repeats_itself_exactly(made: Report, two: list[Path]) -> None:
    again = build(config(two, bins=7), MADE)
    assert page.html(again) == page.html(made)
    assert page.markdown(again) == page.markdown(made)
    assert page.files(again) == page.files(made)


def test_the_markdown_refers_to_files_that_are_there(two: list[Path]) -> None:
    write_report(config(two))
    text = Path("report/report.md").read_text()
    linked = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    there = {str(p.relative_to("report")) for p in Path("report").rglob("*") if p.is_file()}
    assert linked == there - {"report.html", "report.md"}
    assert len(linked) > 8


def outside(html: str) -> list[str]:
    """What a browser would have to fetch from elsewhere."""
    found = Cells(html).fetched + re.findall(r"url\(([^)]+)\)|@import", html)
    return [one for one in found if not one.startswith(("#", "data:image/webp;base64,"))]


def test_the_page_needs_no_network(made: Report) -> None:
    html = page.html(made)
    assert outside(html) == []
    assert set(re.findall(r"https?://[^\s\"'<]*", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_the_page_is_accessible(made: Report) -> None:
    html = page.html(made)
    assert html.count("<table") == html.count("<caption>")
    assert html.count("<svg ") == html.count('<svg role="img" aria-label=')
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([a-z][a-z-]*)"', html)) <= set(ids)


# ---------------------------------------------------------------------------- texts and pictures


def predictions_for(folder: Path, split: str, **columns: Sequence[Any]) -> Predictions:
    """Random answers to a prepared split."""
    index = shards.open_dataset(str(folder)).index(split)
    num_options_Q = index["num_options"].to_numpy()
    rng = np.random.default_rng(0)
    logits_QK = rng.normal(size=(len(index), num_options_Q.max())).astype(np.float32)
    logits_QK[np.arange(logits_QK.shape[1]) >= num_options_Q[:, None]] = LOWEST_LOGIT
    given = {name: index[name].to_pylist() for name in COLUMNS if name in index.column_names}
    given["truncated_tokens"] = [0] * len(index)
    probs_QK = metrics.probabilities(logits_QK, num_options_Q)
    return Predictions({**given, **columns}, probs_QK, logits_QK)


@pytest.fixture(scope="session")
def hostile_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose every text tries to be something else."""
    folder = tmp_path_factory.mktemp("hostile")
    Image.new("RGB", (900, 30), "red").save(folder / "wide.png")
    lines = [
        {
            "id": f"{HOSTILE}{number}",
            **dict.fromkeys(("subject", "grade", "skill", "problem"), HOSTILE),
            "image": "wide.png",
            "options": [HOSTILE, "b"],
            "answer": number % 2,
        }
        for number in range(8)
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    out = folder / "data"
    prepare(
        PrepareConfig(
            out=str(out),
            source=Source.jsonl,
            path=str(folder / "questions.jsonl"),
            split="valid",
            workers=1,
        )
    )
    return out


def test_hostile_texts_stay_texts(hostile_data: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", predictions_for(hostile_data, "valid"), note=HOSTILE)
    report = build(config([path], names=[HOSTILE], data=str(hostile_data)), MADE)
    html, markdown = page.html(report), page.markdown(report)
    tags = re.findall(r"<(\w+)", html)
    assert tags.count("script") == 1 and "alert(1)</script>" not in html
    assert outside(html) == []
    assert HOSTILE in [cell for row in Cells(html).rows for cell in row]
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(http", markdown)
    rows = markdown_cells(markdown)
    assert HOSTILE in [cell for row in rows for cell in row]
    assert all(b"<script" not in data for data in page.files(report).values())


@pytest.mark.parametrize(
    ("name", "written"),
    [("# x", r"\# x"), ("- x", r"\- x"), ("+ x", r"\+ x"), ("1. x", r"1\. x"), ("+1.5", "+1.5")],
)
def test_a_line_that_begins_with_a_name_stays_a_line(name: str, written: str) -> None:
    made = Report("t", [name], [page.Chapter("c", [Section("s", [name])])])
    assert page.markdown(made).splitlines().count(written) == 2


def test_a_bracket_does_not_end_an_image() -> None:
    made = Report("t", [], [page.Chapter("c", [Section("s", [page.Chart("n", "c", "a] [b", "")])])])
    assert "\n![a\\] \\[b](charts/n.svg)\n" in page.markdown(made)


def test_mistakes_are_the_most_confident_ones_one_a_skill(drawn_data: Path, tmp_path: Path) -> None:
    predictions = predictions_for(drawn_data, "valid")
    answers = gather([saved(tmp_path / "a.parquet", predictions)])
    shown = gallery.mistakes(
        answers, answers.models[0], gallery.find(str(drawn_data), answers), 3, "m"
    ).mistakes
    wrong = np.flatnonzero(predictions.choice_Q != predictions.answer_Q)
    by_confidence = wrong[np.argsort(-predictions.probs_QK.max(axis=1)[wrong], kind="stable")]
    expected: dict[str, str] = {}
    for place in by_confidence:
        expected.setdefault(predictions.columns["skill"][place], predictions.columns["id"][place])
    assert [re.findall(r"\((.*)\)$", one.title)[0] for one in shown] == list(expected.values())[:3]
    for one in shown:
        held = [float(option.probability) for option in one.options]
        assert sum(held) == pytest.approx(100, abs=0.3)
        (chosen,) = (option for option in one.options if option.is_choice)
        assert float(chosen.probability) == max(held) and not chosen.is_answer


def test_pictures_are_inside_the_page_and_small(drawn_data: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", predictions_for(drawn_data, "valid"))
    report = build(config([path], data=str(drawn_data)), MADE)
    html = page.html(report)
    found = [base64.b64decode(data) for data in re.findall(r"webp;base64,([^\"]+)", html)]
    files = page.files(report)
    assert sorted(found) == sorted(data for name, data in files.items() if name[:8] == "pictures")
    sizes = [Image.open(io.BytesIO(data)).size for data in found]
    assert len(found) > 4 and max(max(size) for size in sizes) <= gallery.PROBLEM_PX
    assert [row for row in markdown_cells(page.markdown(report)) if row[0] == "picture 1"]


def test_lengths_count_the_option_that_is_alone(two: list[Path]) -> None:
    answers = gather(two[:1])
    asked = [question(["aaa", "b", "bb"], picture(1)), question(["aa", "bb", "c"], picture(1))]
    rows = comparisons.lengths(answers, np.array([0, 2]), asked).rows
    chose = answers.models[0].choice_Q
    assert rows[0] == ("longest", "1", "100.0", f"{100 * (chose[0] == 0):.1f}")
    right = [answers.questions.answer_Q[0] == 1, answers.questions.answer_Q[2] == 2]
    assert rows[1][:3] == ("shortest", "2", f"{100 * np.mean(right):.1f}")


def test_data_that_the_predictions_are_not_for_is_named(drawn_data: Path, tmp_path: Path) -> None:
    strange = gather([saved(tmp_path / "a.parquet", answered([True, False]))])
    with pytest.raises(ClipstemError, match=r"has none of the questions of .*a\.parquet in valid"):
        gallery.find(str(drawn_data), strange)
    predictions = predictions_for(drawn_data, "valid")
    other = [(answer + 1) % 2 for answer in predictions.columns["answer"]]
    columns = {**predictions.columns, "answer": other}
    answers = gather([saved(tmp_path / "b.parquet", replace(predictions, columns=columns))])
    with pytest.raises(ClipstemError, match=r"have the ids of .*b\.parquet, but other answers"):
        gallery.find(str(drawn_data), answers)


# ---------------------------------------------------------------------------- the command


def test_a_report_needs_neither_torch_nor_webdataset(two: list[Path]) -> None:
    code = (
        "import sys; from clipstem.report.__main__ import main; main()\n"
        "assert not {'torch', 'webdataset', 'lightning'} & set(sys.modules)"
    )
    arguments = ["predictions=[zero-shot.parquet,tuned.parquet]", "out=made", "exam.repeats=20"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "made/report.html"
    assert Path("made/report.html").stat().st_size > 50_000


def test_how_it_was_made_is_all_there(made: Report) -> None:
    text = page.markdown(replace(made, chapters=made.chapters[-1:]))
    assert f"```bash\n{MADE['command']}\n```" in text
    for line in ("| bins | 7 |", "| exam.rule | regular |", "| numpy | 2 |", "| seed | 0 |"):
        assert line in text
    assert len(re.findall(r"\| \S+\.parquet \| [0-9a-f]{64} \|", text)) == 4

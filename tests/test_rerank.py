"""Generated answers: read, voted for and measured, against counting by hand and one at a time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression

from clipstem import prediction
from clipstem.config import RerankConfig, Scores
from clipstem.question import ClipstemError
from clipstem.report import page
from clipstem.report import rerank as shown
from clipstem.rerank import candidates, choosing, drawn, figures
from clipstem.rerank.__main__ import Reranked, choices, main, predictions, rerank
from clipstem.rerank.candidates import normal
from clipstem.rerank.choosing import Judge, Slate, best_of, choose, features, learn, subsets
from clipstem.statistics import auc

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


def line(number: int = 0, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"q{number}",
        "problem": f"What is {number} + 1?",
        "answer": str(number + 1),
        "candidates": [
            {"system": "a", "text": "it is so", "final": str(number + 1), "correct": True},
            {"system": "b", "text": "no idea", "final": "7000", "correct": False},
        ],
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def changed(**fields: Any) -> dict[str, Any]:
    """A line whose second candidate is another."""
    made = line()
    made["candidates"][1] = {
        key: value for key, value in {**made["candidates"][1], **fields}.items() if value is not ...
    }
    return made


def saved(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(it) if isinstance(it, dict) else it}\n" for it in lines))
    return path


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
    given = [{"system": "a", "text": "", "final": final} for final in ("$1,000", 1000.0, "999")]
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


GSM8K = os.environ.get("CLIPSTEM_CANDIDATES")


@pytest.mark.skipif(GSM8K is None, reason="CLIPSTEM_CANDIDATES names no folder of candidates")
def test_real_candidates_are_read_and_track_records_beat_the_majority() -> None:
    files = [Path(str(GSM8K), f"{split}.jsonl") for split in ("train", "valid")]
    found = candidates.read(files, ["abel-70b"], False, 0.0)
    assert len(found.asked) == 1100 and not found.skipped
    lines = [line for it in files for line in it.read_text().splitlines()]
    made = [normal(str(json.loads(line)["answer"])) for line in lines]
    agree = [
        (candidate.final == answer) == candidate.correct
        for one, answer in zip(found.asked, made, strict=True)
        for candidate in one.candidates
    ]
    assert np.mean(agree) > 0.999  # our normal answers are those of who made the data
    config = RerankConfig(out="o", scores=Scores.none, subsets=1)
    measured = rerank(config, found).figures.methods["mix_without_scores"]
    assert measured.over_majority.interval is not None
    assert measured.over_majority.interval.low > 0.03
    assert measured.over_best_system.interval is not None
    assert measured.over_best_system.interval.low > 0


# ---------------------------------------------------------------------------- choosing


@st.composite
def slates(draw: st.DrawFn) -> Slate:
    count = draw(st.integers(1, 6))

    def some(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    numbers: dict[int, int] = {}
    finals = [numbers.setdefault(it, len(numbers)) for it in some(st.integers(0, 3))]
    return Slate(
        system_C=np.array(some(st.integers(0, 2))),
        final_C=np.array(finals),
        right_C=np.array(some(st.booleans())),
        score_C=np.array(some(st.sampled_from([-1.0, 0.0, 0.5, 2.0]))),
    )


def judge(seed: int = 0) -> Judge:
    rng = np.random.default_rng(seed)
    widths = {"mix": (7, True), "mix_without_scores": (5, False)}
    mixes = {
        name: choosing.Mix(rng.normal(size=width), 0.3, scored)
        for name, (width, scored) in widths.items()
    }
    return Judge(np.array([0.2, 0.7, 0.4]), mixes, slope=1.5, intercept=-0.2)


def one_choice(method: str, slate: Slate, members: list[int], judge: Judge) -> int:
    """The same for one subset, by loops over its candidates."""
    score_C = slate.score_C
    assert score_C is not None

    def highest(places: list[int], value: Callable[[int], float]) -> int:
        return next(it for it in places if value(it) == max(map(value, places)))

    def score(place: int) -> float:
        return float(score_C[place])

    if method == "best_system":
        return highest(members, lambda it: judge.rate_S[slate.system_C[it]])
    if method == "best_score":
        return highest(members, score)
    gives: dict[int, list[int]] = {}
    for it in members:
        gives.setdefault(int(slate.final_C[it]), []).append(it)
    shares = {final: len(who) / len(members) for final, who in gives.items()}
    worth: dict[int, float] = {}
    for final, who in sorted(gives.items()):
        if method == "majority":
            worth[final] = len(who)
        elif method == "weighted_vote":
            worth[final] = sum(1 / (1 + np.exp(0.2 - 1.5 * score(it))) for it in who)
        else:
            mix = judge.mixes[method]
            own = []
            for system in range(3):
                of_system = [it for it in members if slate.system_C[it] == system]
                own.append(len({*of_system} & {*who}) / max(1, len(of_system)))
            others = [share for key, share in shares.items() if key != final]
            own += [shares[final], shares[final] - max(others, default=0.0)]
            if mix.with_scores:
                own += [max(map(score, who)), sum(map(score, who)) / len(who)]
            worth[final] = float(np.dot(own, mix.weight_X) + mix.bias)
    best = max(worth.values())
    final = next(final for final in sorted(worth) if worth[final] >= best - 1e-12)
    return highest(gives[final], score if method in choosing.WITH_SCORES else lambda it: 0.0)


@settings(max_examples=60)
@given(slates(), st.sampled_from(choosing.METHODS), st.integers(0, 5))
def test_choices_of_all_subsets_are_one_subset_at_a_time(
    slate: Slate, method: str, seed: int
) -> None:
    count = len(slate.final_C)
    for size in range(1, count + 1):
        member_BC = subsets(count, size, 1000, np.random.default_rng(0))
        expected = [
            one_choice(method, slate, list(members), judge(seed))
            for members in combinations(range(count), size)
        ]
        assert choose(method, slate, member_BC, judge(seed)).tolist() == expected


@given(slates(), st.data())
def test_best_of_n_is_counted_by_hand(slate: Slate, data: st.DataObject) -> None:
    right_C = slate.right_C
    assert right_C is not None
    count, size = len(right_C), data.draw(st.integers(1, 7))
    found = best_of(size, slate, judge(), choosing.METHODS, 1000, [0])
    size = min(size, count)
    wrong = int((~right_C).sum())
    assert found["any_right"] == pytest.approx(1 - comb(wrong, size) / comb(count, size))
    expected = []
    for members in combinations(range(count), size):
        votes = Counter(int(slate.final_C[it]) for it in members)
        final = min(votes, key=lambda key: (-votes[key], key))
        expected.append(right_C[next(it for it in members if slate.final_C[it] == final)])
    assert found["majority"] == pytest.approx(np.mean(expected))
    assert all(0 <= value <= found["any_right"] + 1e-12 for value in found.values())


def test_drawn_subsets_are_of_their_size_and_the_same_each_time() -> None:
    made = [subsets(30, 10, 50, np.random.default_rng(1)) for _ in range(2)]
    assert (made[0] == made[1]).all()
    assert made[0].shape == (50, 30) and (made[0].sum(axis=1) == 10).all()
    assert choosing.sizes(7) == [1, 2, 3, 4, 5, 6, 7]
    assert choosing.sizes(40)[15:] == [16, 20, 24, 29, 35, 40]


def test_majority_by_lot_is_the_mean_of_the_tied() -> None:
    tied = Slate(np.zeros(4, np.int64), np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]) > 0, None)
    assert choosing.majority_by_lot(tied) == 0.5


def test_a_judge_learns_whom_to_believe() -> None:
    """System 0 is always right, two others are wrong together."""
    wise = [
        Slate(np.array([1, 2, 0]), np.array([0, 0, 1]), np.array([False, False, True]), None),
        Slate(np.array([1, 2, 0]), np.array([0, 0, 0]), np.array([True, True, True]), None),
    ] * 20
    learnt = learn(wise, 3, np.arange(len(wise)))
    assert learnt.rate_S == pytest.approx([41 / 42, 21 / 42, 21 / 42])
    whole = wise[0].whole_1C
    assert choose("majority", wise[0], whole, learnt) == 0
    assert choose("mix_without_scores", wise[0], whole, learnt) == 2
    assert choose("best_system", wise[0], whole, learnt) == 2
    odds_F = choosing.final_odds(wise[0], learnt)
    assert odds_F[1] > 10 * odds_F[0]


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_one_option_a_question_is_a_logistic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_NX = rng.normal(size=(60, 3)) * [1, 10, 0.1] + [0, 5, 1]
    right_N = rng.random(60) < 1 / (1 + np.exp(-x_NX[:, 0]))
    weight_X, bias = choosing.conditional_logit(x_NX, np.arange(60), right_N)
    spread_X = x_NX.std(axis=0)
    expected = LogisticRegression(tol=1e-8).fit((x_NX - x_NX.mean(axis=0)) / spread_X, right_N)
    assert weight_X * spread_X == pytest.approx(expected.coef_[0], abs=1e-3)
    assert bias + weight_X @ x_NX.mean(axis=0) == pytest.approx(expected.intercept_[0], abs=1e-3)


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_a_conditional_logit_has_the_least_loss(seed: int) -> None:
    """Written out one question at a time; no step to any side is better."""
    rng = np.random.default_rng(seed)
    question_N = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    x_NX = rng.normal(size=(len(question_N), 2))
    x_NX = (x_NX - x_NX.mean(axis=0)) / x_NX.std(axis=0)
    right_N = rng.random(len(question_N)) < 0.3
    found = np.append(*choosing.conditional_logit(x_NX, question_N, right_N))

    def loss(theta: Any) -> float:
        total = theta[:-1] @ theta[:-1] / 2
        for question in range(30):
            odds = np.exp(x_NX[question_N == question] @ theta[:-1] + theta[-1])
            right = odds[right_N[question_N == question]]
            total -= np.log((right.sum() if len(right) else 1.0) / (1 + odds.sum()))
        return float(total)

    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 0.01:
        assert loss(found + step) > loss(found)


def test_features_have_names() -> None:
    one = Slate(np.array([0, 1]), np.array([0, 1]), None, np.array([0.0, 1.0]))
    for with_scores in (True, False):
        names = choosing.feature_names(["a", "b"], with_scores)
        assert features(one, one.whole_1C, 2, with_scores).shape == (1, 2, len(names))


# ---------------------------------------------------------------------------- end to end


def drawn_file(path: Path, questions: int = 60, seed: int = 0) -> Path:
    return saved(path, *drawn.lines(questions, seed))


def with_scores(path: Path, questions: int = 60, knows: float = 1.0) -> Path:
    """Scores that know something, and no system's level; or with knows=0 nothing at all."""
    rng = np.random.default_rng(0)
    made = list(drawn.lines(questions, 0))
    for one in made:
        for it in one["candidates"]:
            it["score"] = float(rng.normal(knows * it["correct"]))
    return saved(path, *made)


def reranked(path: Path, **changes: Any) -> Reranked:
    config = RerankConfig(candidates=[str(path)], out="o", **{"scores": Scores.none, **changes})
    needs = config.scores is Scores.given and config.scores_file is None
    return rerank(config, candidates.read([path], config.leave_out, needs, 0.01))


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["rerank", *arguments])
    GlobalHydra.instance().clear()
    main()


def test_no_question_judges_itself(tmp_path: Path) -> None:
    """What is chosen of a part does not depend on what is said of its candidates."""
    path = with_scores(tmp_path / "c.jsonl")
    before = reranked(path, scores=Scores.given)
    made = [json.loads(it) for it in path.read_text().splitlines()]
    for one, fold in zip(made, before.fold_Q, strict=True):
        for it in one["candidates"] if fold == 1 else ():
            it["correct"] = not it["correct"]
    after = reranked(saved(path, *made), scores=Scores.given)
    assert (before.fold_Q == after.fold_Q).all()
    here_Q = before.fold_Q == 1
    probs = [predictions(it).probs_QK for it in (before, after)]
    assert (probs[0][here_Q] == probs[1][here_Q]).all()
    assert (probs[0][~here_Q] != probs[1][~here_Q]).any()
    kept = [[row["choices"] for row in choices(it)] for it in (before, after)]
    assert all(a == b for a, b, here in zip(*kept, here_Q, strict=True) if here)


def test_equal_problems_are_judged_together(tmp_path: Path) -> None:
    made = list(drawn.lines(40, 0))
    again = [{**one, "id": f"{one['id']}-b", "problem": one["problem"].upper()} for one in made]
    found = reranked(saved(tmp_path / "c.jsonl", *made, *again))
    assert (found.fold_Q[:40] == found.fold_Q[40:]).all()
    assert len(set(found.fold_Q)) == 4


def test_predictions_have_the_mixs_accuracy_and_are_calibrated(tmp_path: Path) -> None:
    found = reranked(with_scores(tmp_path / "c.jsonl", 400), scores=Scores.given)
    made = predictions(found)
    made.write(tmp_path / "p.parquet")
    again = prediction.read(tmp_path / "p.parquet")
    right_Q = again.choice_Q == again.answer_Q
    assert right_Q.mean() == pytest.approx(found.figures.methods["mix"].right.value)
    assert again.columns["id"] == [one.id for one in found.read.asked]
    assert abs(again.probs_QK.max(axis=1).mean() - right_Q.mean()) < 0.05
    last_Q = again.num_options_Q - 1  # "none of these" is never chosen
    assert (again.choice_Q < last_Q).all() and (again.answer_Q == last_Q).any()


def test_scores_that_know_something_add_to_the_mix(tmp_path: Path) -> None:
    found = reranked(with_scores(tmp_path / "c.jsonl", 400), scores=Scores.given).figures
    assert found.scores is not None and found.scores.given_systems is not None
    for one in found.systems.values():
        assert one.auc is not None and 0.6 < one.auc.value < 0.9  # 0.76 in the long run
    assert 0.65 < found.scores.given_systems.value < 0.95
    assert found.scores.mix.difference > 0
    assert found.scores.taken == found.scores.judges == 4 and "highest score" in found.weights
    assert found.any_right.value >= found.methods["mix"].right.value
    assert found.best_of.right["mix"][-1] == found.methods["mix"].right
    assert found.best_of.sizes == (1, 2, 3, 4) and all(found.best_of.exact)


def test_scores_that_know_nothing_are_hardly_taken(tmp_path: Path) -> None:
    made = reranked(with_scores(tmp_path / "c.jsonl", 400, knows=0.0), scores=Scores.given)
    found = made.figures
    assert found.scores is not None
    assert found.scores.taken <= 1 and found.scores.judges == 4  # by chance they seem to help
    pairs = zip(made.slates, made.judges, strict=True)
    one, judge = next(it for it in pairs if not it[1].mixes["mix"].with_scores)
    assert judge.mixes["mix"] is judge.mixes["mix_without_scores"]
    # Nor do they choose among those who give the same answer.
    for one, judge in zip(made.slates, made.judges, strict=True):
        own, without = (
            choose(it, one, one.whole_1C, judge) for it in ("mix", "mix_without_scores")
        )
        assert judge.mixes["mix"].with_scores or own == without


def test_scores_of_two_scorers_are_not_compared(tmp_path: Path) -> None:
    found = reranked(with_scores(tmp_path / "c.jsonl", 200), scores=Scores.given)
    whole = figures.Known(
        *(found.slates, found.judges, np.arange(200), np.zeros(200, np.int64)),
        ["careful", "short", "steps", "wordy"],
    )
    apart = replace(whole, stratum_Q=found.fold_Q)
    levels = [
        replace(it, score_C=it.score_C + 100 * fold)
        for it, fold in zip(found.slates, found.fold_Q, strict=True)
        if it.score_C is not None
    ]
    shifted = replace(apart, slates=levels)
    for number, (name, one) in enumerate(figures.of_systems(whole).items()):
        own = [
            (it, int(place))
            for it in whole.slates
            for place in np.flatnonzero(it.system_C == number)
        ]
        score_N = np.array([it.score_C[place] for it, place in own if it.score_C is not None])
        right_N = np.array([it.known_C[place] for it, place in own])
        expected = auc(score_N, right_N)
        assert one.auc is not None and expected is not None and one.auc.interval is not None
        assert one.auc.value == pytest.approx(expected.value)
        assert one.auc.interval.low < one.auc.value < one.auc.interval.high
        assert shown_auc(shifted, name) == pytest.approx(shown_auc(apart, name))
        assert shown_auc(apart, name) == pytest.approx(expected.value, abs=0.05)
    scores = [figures.of_scores(it) for it in (apart, shifted)]
    assert scores[0] is not None and scores[1] is not None
    assert scores[0].given_systems == scores[1].given_systems
    assert scores[0].ordered == scores[1].ordered


def shown_auc(known: figures.Known, system: str) -> float:
    found = figures.of_systems(known)[system].auc
    assert found is not None
    return found.value


def test_pairs_are_counted_one_by_one(tmp_path: Path) -> None:
    found = reranked(with_scores(tmp_path / "c.jsonl", 40), scores=Scores.given)
    pairs = [
        (np.sign(one.score_C[a] - one.score_C[b]) + 1) / 2
        for one in found.slates
        if one.score_C is not None
        for a in np.flatnonzero(one.known_C)
        for b in np.flatnonzero(~one.known_C)
    ]
    assert found.figures.scores is not None
    assert found.figures.scores.pairs == len(pairs)
    assert found.figures.scores.ordered == pytest.approx(np.mean(pairs))


def test_what_nobody_knows_is_answered_and_not_measured(tmp_path: Path) -> None:
    made = list(drawn.lines(40, 0))
    for one in made[::2]:
        one["answer"] = None
        for it in one["candidates"]:
            it["correct"] = None
    found = reranked(saved(tmp_path / "c.jsonl", *made))
    assert (found.figures.asked, found.figures.known) == (40, 20)
    answers = predictions(found).answer_Q
    assert (answers[::2] == -1).all() and (answers[1::2] >= 0).all()
    assert len(choices(found)) == 40


def test_a_system_that_is_left_out_has_no_say(tmp_path: Path) -> None:
    path = drawn_file(tmp_path / "c.jsonl")
    found = reranked(path, leave_out=["careful"])
    assert "careful" not in found.figures.systems and len(found.figures.systems) == 3
    assert all(row["scores"] == [None] * 4 for row in choices(found))


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ([line(n) for n in range(3)], {}, "3 different questions say of every candidate"),
        (
            [line(n, answer=None, candidates=[{"system": "a", "text": "x"}]) for n in range(9)],
            {},
            "0 different questions say of every candidate whether it is right",
        ),
        (
            [line(n, candidates=line(n)["candidates"][:1]) for n in range(9)],
            {},
            "candidates to learn from none is wrong; expected both",
        ),
        (
            [line(n, candidates=line(n)["candidates"][1:]) for n in range(9)],
            {},
            "candidates to learn from none is right; expected both",
        ),
    ],
)
def test_too_little_to_learn_from_is_refused(
    tmp_path: Path, lines: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClipstemError, match=message):
        reranked(saved(tmp_path / "c.jsonl", *lines), **changes)


def test_two_systems_agreeing_on_everything_are_no_mistake(tmp_path: Path) -> None:
    """Questions without a choice: one final answer each, right or wrong."""
    made = []
    for n in range(12):
        finals = [{"system": s, "text": "x", "final": str(n % 2 + n)} for s in ("a", "b")]
        made.append(line(n, answer=str(n + 1), candidates=finals))
    found = reranked(saved(tmp_path / "c.jsonl", *made)).figures
    assert {it.right.value for it in found.methods.values()} == {0.5}


def test_the_verb_writes_what_it_prints_and_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_scores(Path("c.jsonl"))
    with Path("c.jsonl").open("a") as more:
        more.write("{\n")
    arguments = ["candidates=[c.jsonl]", "scores=given", "max_skipped_fraction=0.1"]
    run_main(monkeypatch, *arguments, "out=r")
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("60 questions, 240 candidates", "weighted vote", "any right: the"):
        assert part in printed
    assert "1 lines are no questions: see skipped.jsonl" in printed
    names = {path.name for path in Path("r").iterdir()}
    assert names == {
        *("rerank.json", "choices.jsonl", "predictions.parquet", "best_of_n.svg", "skipped.jsonl")
    }
    found = shown.read(Path("r/rerank.json"))
    assert f"{100 * found.methods['mix'].right.value:.1f}" in printed
    assert found.settings["scores"] == "given" and found.made_by["command"]
    # ---- its choices are scores for another
    run_main(
        monkeypatch,
        *("candidates=[c.jsonl]", "scores=given", "scores_file=r/choices.jsonl", "out=again"),
        "max_skipped_fraction=0.1",
    )
    assert shown.read(Path("again/rerank.json")).methods == found.methods
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *arguments, "out=r")
    assert "r exists and is never overwritten" in capsys.readouterr().err


def test_exam_and_report_read_its_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipstem import exam
    from clipstem.report import __main__ as report

    monkeypatch.chdir(tmp_path)
    run_main(monkeypatch, "scores=none", "questions=60", "out=r")
    for verb, arguments in (
        (exam, ["predictions=r/predictions.parquet", "repeats=5"]),
        (report, ["predictions=[r/predictions.parquet]", "out=report", "exam.repeats=5"]),
    ):
        monkeypatch.setattr("sys.argv", [verb.__name__, *arguments])
        GlobalHydra.instance().clear()
        verb.main()
    assert "rerank: mix" in Path("report/report.md").read_text()


def test_given_scores_need_no_torch(tmp_path: Path) -> None:
    with_scores(tmp_path / "c.jsonl", 20)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "from clipstem.rerank.__main__ import main; main()"
    )
    arguments = ["candidates=[c.jsonl]", "scores=given", "out=r"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    assert (tmp_path / "r" / "rerank.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "conf key 'out' is missing"),
        (["out=r", "candidates=[none.jsonl]"], "none.jsonl: there is no such file"),
        (["out=r", "scores=given"], "conf key 'candidates' is missing"),
        (["out=r", "scores=none", "scores_file=x"], "'scores_file': needs scores=given"),
        (["out=r", "folds=2"], "conf key 'folds': 2 is below 3"),
        (["out=r", "scores=none", "folds=1"], "conf key 'folds': 1 is below 2"),
        (["out=r", "subsets=0"], "conf key 'subsets': 0 is not above 0"),
        (["out=r", "candidate=[x]"], "conf key 'candidate' is unknown; did you mean 'candidates'?"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, *arguments)
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed
    assert stopped.value.code == 2 and not Path("r").exists()


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


# ---------------------------------------------------------------------------- drawn candidates


def test_drawn_candidates_are_what_they_say() -> None:
    made = list(drawn.lines(400, 0))
    assert made == list(drawn.lines(400, 0)) and len({one["id"] for one in made}) == 400
    rates: Counter[str] = Counter()
    for one in made:
        for it in one["candidates"]:
            assert it["correct"] == (it["final"] == one["answer"])
            assert it["text"].endswith((it["final"], f"{it['final']}."))
            rates[it["system"]] += it["correct"]
    assert rates.most_common()[0][0] == "careful" and rates.most_common()[-1][0] == "short"
    assert 0.4 < rates["short"] / 400 < rates["careful"] / 400 < 0.97


# ---------------------------------------------------------------------------- in the report


def content(tmp_path: Path) -> dict[str, Any]:
    found = reranked(with_scores(tmp_path / "c.jsonl", 30), scores=Scores.given)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(found.figures)))
    return plain


def test_the_report_shows_every_figure(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content(tmp_path)))
    found = shown.read(tmp_path / "r.json")
    made = page.Report("t", (), (page.Chapter("c", (shown.section(found),)),))
    text = page.markdown(made)
    for one in (*found.methods.values(),):
        assert page.percent(one.right.value) in text
    for name in (*found.systems, "any right (the bound)", "best system", "charts/best-of-n.svg"):
        assert name in text
    assert "<svg" in page.html(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.pop("methods"), "lacks methods"),
        (lambda it: it.update(asked="many"), "asked is 'many'; expected a whole number"),
        (lambda it: it.update(any_right={"value": float("nan"), "interval": None}), "is nan"),
        (lambda it: it.update(any_right={"value": 3.0, "interval": None}), "is 3; expected 0 to 1"),
        (lambda it: it["methods"].pop("majority"), "expected majority, and others"),
        (lambda it: it["methods"].update(x=it["methods"]["mix"]), "methods are"),
        (lambda it: it["best_of"]["exact"].pop(), "are not equally long"),
        (lambda it: it["best_of"].update(sizes=[]), "best_of has no sizes"),
        (lambda it: it["best_of"]["sizes"].reverse(), "sizes do not rise"),
        (lambda it: it["best_of"]["sizes"].__setitem__(0, 0), "sizes do not rise from 1"),
        (lambda it: it["best_of"]["sizes"].append(10**400), "expected a whole number below 2^63"),
        (
            lambda it: it["any_right"].update(interval={"low": -1e200, "high": 1.0}),
            "any_right.interval.low is -1e+200; expected a number below 1e15",
        ),
        (lambda it: it.update(notes=[1]), "notes[0] is 1; expected a text"),
        (lambda it: it.update(systems=[]), "systems is []; expected an object"),
    ],
)
def test_figures_of_strangers_are_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    made = content(tmp_path)
    change(made)
    (tmp_path / "r.json").write_text(json.dumps(made))
    with pytest.raises(ClipstemError) as refused:
        shown.read(tmp_path / "r.json")
    assert message in str(refused.value) and "expected the rerank.json of" in str(refused.value)


def test_other_files_are_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, message in (("[" * 100_000, "is not JSON"), ("[]", "expected an object")):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ClipstemError, match=message):
            shown.read(tmp_path / "r.json")
    with pytest.raises(ClipstemError, match="there is no such file"):
        shown.read(Path("/dev/zero"))
    monkeypatch.setattr(shown, "MAX_BYTES", 1)
    with pytest.raises(ClipstemError, match="has more than 1 bytes"):
        shown.read(tmp_path / "r.json")


def test_figures_come_back_as_they_were_written(tmp_path: Path) -> None:
    made = content(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(made))
    assert json.loads(json.dumps(asdict(shown.read(tmp_path / "r.json")))) == made

"""Routing, against questions counted one by one, other libraries, and what must not be known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score

from clipstem import prediction
from clipstem.config import ExamConfig, Method, RouteConfig
from clipstem.exam import sit
from clipstem.prediction import Predictions
from clipstem.question import ClipstemError
from clipstem.report import page
from clipstem.report import route as report_route
from clipstem.report.page import Chart, Table
from clipstem.route import gate
from clipstem.route.__main__ import main, write
from clipstem.route.asked import gather
from clipstem.route.decisions import Routed, decide, route, rules
from clipstem.route.deferral import Graded, deferred_first
from clipstem.route.figures import Figures, figures
from clipstem.route.fitting import plain
from clipstem.route.gate import AGREEMENT, MOST_POINTS, NEVER, NUMBERS, WORDS, Curve, curve
from clipstem.statistics import paired_loss_at_most

Flags = NDArray[np.bool_]
MADE = {"command": "python -m clipstem.route", "versions": {}}
SKILLS = ("weather", "magnets", "levers", "shapes")

# ---------------------------------------------------------------------------- made-up answers


def answered(
    right_Q: Flags, confidence_Q: NDArray[np.float64], first: int = 0, **facts: Any
) -> Predictions:
    """Questions of four skills with four options, answered as said with that confidence."""
    questions = len(right_Q)
    number_Q = np.arange(first, first + questions)
    answer_Q = number_Q % 4
    choice_Q = np.where(right_Q, answer_Q, (answer_Q + 1) % 4)
    probs_QK = np.repeat(((1 - confidence_Q) / 3)[:, None], 4, axis=1)
    probs_QK[np.arange(questions), choice_Q] = confidence_Q
    skill_Q = [SKILLS[number // 4 % 4] for number in number_Q]
    columns: dict[str, Sequence[Any]] = {
        "id": [f"q{number:04}" for number in number_Q],
        "row": number_Q.tolist(),
        "subject": ["science" if skill in SKILLS[:2] else "math" for skill in skill_Q],
        "grade": ["grade-2"] * questions,
        "skill": skill_Q,
        "kind": ["text_options"] * questions,
        "num_options": [4] * questions,
        "question_words": [7] * questions,
        "truncated_tokens": [0] * questions,
        "answer": answer_Q.tolist(),
    }
    provenance = {"model": "small", "weights_sha256": "f" * 64, "split": "valid", **facts}
    return Predictions(columns, probs_QK, np.log(probs_QK).astype(np.float32), provenance)


def school(
    folder: Path, name: str, questions: int = 240, first: int = 0, seed: int = 0
) -> dict[str, Path]:
    """Files of a fast model that is bad at half of the skills, of two samples, and of a tool."""
    rng = np.random.default_rng([seed, first])
    ease_Q = np.where(np.arange(first, first + questions) // 4 % 4 < 2, 0.95, 0.35)
    luck_Q = rng.random(questions)
    confidence_Q = np.round(0.4 + 0.55 * rng.random(questions), 3)
    made = {"fast": answered(luck_Q < ease_Q, confidence_Q, first)}
    for strength in (1, 2):
        noisy_Q = np.clip(luck_Q + rng.normal(0, 0.05 * strength, questions), 0, 1) < ease_Q
        change = {"name": "noise", "strength": float(strength), "seed": 0}
        made[f"noise{strength}"] = answered(noisy_Q, confidence_Q, first, perturbation=change)
    right_Q = rng.random(questions) < 0.97
    made["tool"] = answered(right_Q, np.full(questions, 0.9), first, weights_sha256="t" * 64)
    paths = {key: folder / f"{name}-{key}.parquet" for key in made}
    for key, found in made.items():
        found.write(paths[key])
    return paths


def config(out: Path | str = "out", **given: Any) -> RouteConfig:
    quick: dict[str, Any] = {"folds": 3, "method": Method.logistic, "repeats": 100}
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return RouteConfig(**{"out": str(out), **quick, **texts})


def of_school(folder: Path, samples: bool = True, **given: Any) -> RouteConfig:
    """Fit on one split's files, score on another's."""
    valid = school(folder, "valid")
    test = school(folder, "test", first=1000)
    if samples:
        given["samples"] = [str(test["noise1"]), str(test["noise2"])]
        given["fit_samples"] = [str(valid["noise1"]), str(valid["noise2"])]
    files = {"fast": test["fast"], "tool": test["tool"]}
    fit = {"fit_fast": valid["fast"], "fit_tool": valid["tool"]}
    return config(folder / "out", **{**files, **fit, **given})


def run_route(settings: RouteConfig) -> tuple[Routed, Figures]:
    routed = route(settings, MADE)
    return routed, figures(routed, settings, MADE)


# ---------------------------------------------------------------------------- counted one by one


@st.composite
def graded(draw: st.DrawFn) -> tuple[NDArray[np.float64], Flags, Flags, Flags]:
    """Scores of which many are equal, and who is right; hard and easy ones among them."""
    questions = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    score_Q = rng.integers(0, draw(st.integers(1, 30)), questions) / 30
    hard_Q = rng.random(questions) < 0.4
    hard_Q[:2] = (True, False)
    return score_Q, rng.random(questions) < 0.6, rng.random(questions) < 0.8, hard_Q


def one_by_one(
    deferred: Sequence[bool], fast_right_Q: Flags, tool_right_Q: Flags, hard_Q: Flags
) -> tuple[float, float, float, list[int]]:
    """Calls, accuracy, tool-usage accuracy, and EN, ET, HN, HT as the paper counts them."""
    counts = {"EN": 0, "ET": 0, "HN": 0, "HT": 0}
    right = 0
    for asks_tool, fast, tool, hard in zip(
        deferred, fast_right_Q, tool_right_Q, hard_Q, strict=True
    ):
        counts[("H" if hard else "E") + ("T" if asks_tool else "N")] += 1
        right += bool(tool if asks_tool else fast)
    easy = counts["EN"] / (counts["EN"] + counts["ET"])
    hard = counts["HT"] / (counts["HN"] + counts["HT"])
    calls = (counts["ET"] + counts["HT"]) / len(hard_Q)
    return calls, right / len(hard_Q), (easy + hard) / 2, list(counts.values())


@given(graded())
def test_a_curve_is_every_threshold_counted_one_by_one(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags],
) -> None:
    score_Q, rest = made[0], made[1:]
    found = curve(*made)
    assert found.threshold_T == (NEVER, *sorted(set(score_Q.tolist()), reverse=True))
    for t, threshold in enumerate(found.threshold_T):
        deferred = [score >= threshold for score in score_Q]
        calls, accuracy, usage, _ = one_by_one(deferred, *rest)
        assert (found.calls_T[t], found.accuracy_T[t], found.tool_usage_T[t]) == pytest.approx(
            (calls, accuracy, usage)
        )
        routed_Q = np.where(deferred, rest[1], rest[0])
        assert found.loss_T[t] == pytest.approx(paired_loss_at_most(rest[1], routed_Q))


@given(graded(), st.integers(0, 999))
def test_an_outcome_is_the_papers_measure(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], seed: int
) -> None:
    rest = made[1:]
    deferred_Q = np.random.default_rng(seed).random(len(rest[0])) < 0.5
    found = Graded(*rest, 10, 0).outcome(deferred_Q, cost_before=0.5, tool_cost=3.0)
    calls, accuracy, usage, counts = one_by_one(deferred_Q.tolist(), *rest)
    assert (found.calls, found.accuracy, found.tool_usage) == pytest.approx(
        (calls, accuracy, usage)
    )
    assert [found.easy_direct, found.easy_tool, found.hard_direct, found.hard_tool] == counts
    assert found.cost == pytest.approx(0.5 + 3 * calls)
    assert usage == pytest.approx(balanced_accuracy_score(rest[2], deferred_Q))


@given(graded(), st.floats(0, 1))
def test_choices_on_a_curve_are_the_best_of_all_points(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], calls: float
) -> None:
    found = curve(*made)
    points = list(zip(found.calls_T, found.accuracy_T, found.tool_usage_T, strict=True))
    within = points[found.within(calls)]
    assert within[0] <= calls + 1e-9
    assert within[1] == max(point[1] for point in points if point[0] <= calls + 1e-9)
    enough = [
        share for share, loss in zip(found.calls_T, found.loss_T, strict=True) if loss <= calls
    ]
    assert points[found.losing_at_most(calls)][0] == min(enough, default=1.0)
    assert points[found.best_usage()][2] == max(point[2] for point in points)


def test_a_long_curve_keeps_points_all_along() -> None:
    rng = np.random.default_rng(0)
    score_Q, right_Q = rng.random(5000), rng.random(5000) < 0.5
    found = curve(score_Q, right_Q, ~right_Q, ~right_Q)
    assert len(found.calls_T) == MOST_POINTS + 1
    assert np.diff(found.calls_T).max() < 2 / MOST_POINTS
    assert (found.calls_T[0], found.calls_T[-1]) == (0, 1)


@given(graded(), st.floats(0, 1))
def test_the_first_to_be_deferred_are_those_of_the_largest_scores(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags], calls: float
) -> None:
    score_Q = made[0]
    found_Q = deferred_first(score_Q, calls)
    assert found_Q.sum() == pytest.approx(calls * len(score_Q), abs=1e-8)
    order_Q = np.argsort(-score_Q, kind="stable")
    assert (np.diff(found_Q[order_Q]) <= 1e-12).all()


def test_equal_scores_are_as_drawn_among_them() -> None:
    score_Q = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    drawn = [
        [1, *(place in chosen for place in range(3)), 0] for chosen in combinations(range(3), 2)
    ]
    assert deferred_first(score_Q, 3 / 5).tolist() == pytest.approx(np.mean(drawn, axis=0).tolist())


@settings(max_examples=20)
@given(graded())
def test_random_deferral_has_half_of_tool_usage_and_the_oracle_is_the_best(
    made: tuple[NDArray[np.float64], Flags, Flags, Flags],
) -> None:
    score_Q, fast_Q, tool_Q, _ = made
    judge = Graded(*made[1:], 10, 0)
    gain_Q = tool_Q.astype(int) - fast_Q
    for calls in (0.0, 0.3, 0.7, 1.0):
        blind = judge.outcome(np.full(len(score_Q), calls), 0, 1)
        assert blind.tool_usage == pytest.approx(0.5)
        assert blind.accuracy == pytest.approx((1 - calls) * fast_Q.mean() + calls * tool_Q.mean())
        best = judge.outcome(deferred_first(gain_Q, calls), 0, 1).accuracy
        assert best >= judge.outcome(deferred_first(score_Q, calls), 0, 1).accuracy - 1e-12


def test_differences_are_those_of_the_outcomes() -> None:
    rng = np.random.default_rng(3)
    fast_Q, tool_Q, hard_Q = rng.random((3, 300)) < 0.5
    judge = Graded(fast_Q, tool_Q, hard_Q, 400, 0)
    one_Q, other_Q = rng.random((2, 300)) < 0.5
    one, other = (judge.outcome(it, 0, 1) for it in (one_Q, other_Q))
    accuracy, usage = (
        judge.accuracy_difference(one_Q, other_Q),
        judge.usage_difference(one_Q, other_Q),
    )
    assert accuracy.value == pytest.approx(one.accuracy - other.accuracy)
    assert usage is not None and one.tool_usage is not None and other.tool_usage is not None
    assert usage.value == pytest.approx(one.tool_usage - other.tool_usage)
    assert accuracy.interval.low < accuracy.value < accuracy.interval.high
    assert usage.interval.low < usage.value < usage.interval.high
    same = judge.accuracy_difference(one_Q, one_Q)
    assert (same.value, same.interval.low, same.interval.high) == (0, 0, 0)


# ---------------------------------------------------------------------------- gates


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_plain_trees_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_QF, hard_Q = rng.normal(size=(200, 4)), rng.random(200) < 0.3
    grown = GradientBoostingClassifier(n_estimators=10, random_state=seed).fit(x_QF, hard_Q)
    trees = [plain(it.tree_, grown.learning_rate) for it in grown.estimators_[:, 0]]
    share = hard_Q.mean()
    found_Q = np.log(share / (1 - share)) + sum(t.values(x_QF.astype(np.float32)) for t in trees)
    assert np.allclose(found_Q, grown.decision_function(x_QF), atol=1e-9)


@pytest.mark.parametrize("method", [Method.logistic, Method.boosting])
def test_a_gate_learns_which_skills_are_hard_and_says_how_probably(
    method: Method, tmp_path: Path
) -> None:
    routed, made = run_route(of_school(tmp_path, samples=False, method=method))
    assert made.scored is not None and made.method == method.value
    assert made.scored.hard_auroc is not None and made.scored.confidence_auroc is not None
    assert made.scored.hard_auroc > made.scored.confidence_auroc + 0.15
    hard_Q = routed.asked.hard_Q(0.5)
    for skills in (SKILLS[:2], SKILLS[2:]):
        here_Q = np.isin(routed.asked.fast.columns["skill"], skills)
        said = routed.decisions.hard_prob_Q[here_Q].mean()
        assert said == pytest.approx(hard_Q[here_Q].mean(), abs=0.12)


def test_the_best_method_is_that_of_less_loss_on_questions_left_out(tmp_path: Path) -> None:
    _, made = run_route(of_school(tmp_path, method=Method.best))
    assert set(made.log_loss) == {"confidence", "logistic", "boosting"}
    assert made.log_loss[made.method] == min(made.log_loss.values())


def told(found: Predictions) -> Predictions:
    """The same choices, with a confidence that tells right ones from wrong ones, mostly."""
    rng = np.random.default_rng(0)
    right_Q = found.choice_Q == found.answer_Q
    confidence_Q = np.clip(0.5 + 0.3 * right_Q + rng.normal(0, 0.1, len(found)), 0.3, 0.99)
    return replace(found, probs_QK=answered(right_Q, confidence_Q).probs_QK)


def test_a_gate_by_confidence_alone_ranks_as_the_confidence_does(tmp_path: Path) -> None:
    settings = of_school(tmp_path, samples=False, method=Method.confidence)
    routed, made = run_route(settings)
    hard = 1 - (routed.asked.fast_right_Q).mean()
    assert routed.gate.slope == 0 and len(set(routed.decisions.hard_prob_Q.tolist())) == 1
    assert routed.decisions.hard_prob_Q[0] == pytest.approx(hard, abs=0.1)
    each_changed([settings.fast, str(settings.fit_fast)], told)
    routed, made = run_route(settings)
    sure_Q = routed.asked.fast.probs_QK.max(axis=1)
    order_Q = np.argsort(-sure_Q, kind="stable")
    assert (np.diff(routed.decisions.hard_prob_Q[order_Q]) >= -1e-12).all()
    assert routed.gate.scorer.weights[0] < 0 and not any(routed.gate.scorer.weights[1:])
    assert made.scored is not None and made.scored.below_confidence == 0
    assert made.scored.hard_auroc == pytest.approx(made.scored.confidence_auroc)


def test_samples_tell_hard_questions_from_easy_ones(tmp_path: Path) -> None:
    with_them = run_route(of_school(tmp_path / "a"))[1]
    asked = gather(with_them.fast, with_them.tool, with_them.settings["samples"])
    right_AQ = [it.choice_Q == it.answer_Q for it in (asked.fast, *asked.samples)]
    for easy_at in (1 / 3, 0.5, 2 / 3, 1.0):
        expected = [sum(answers) / 3 < easy_at - 1e-9 for answers in zip(*right_AQ, strict=True)]
        assert asked.hard_Q(easy_at).tolist() == expected
    assert with_them.fast_passes == 3 and with_them.samples == ("noise 1", "noise 2")
    only_labels = run_route(of_school(tmp_path / "b", agreement=False))[1]
    assert only_labels.fast_passes == 1
    assert only_labels.scored is not None and with_them.scored is not None
    assert only_labels.scored.hard == with_them.scored.hard


def test_what_a_leaf_would_look_at_does_not_matter() -> None:
    """A stranger may write any number there; other questions are still on their way then."""
    tree = gate.Tree((0, 99, 1, -7, 99), (0.0,) * 5, (1, -1, 3, -1, -1), (2, -1, 4, -1, -1), VALUES)
    tree.check(2)
    x_QF = np.array([[-1, 0], [1, -1], [1, 1]], np.float32)
    assert tree.values(x_QF).tolist() == [1.0, 3.0, 4.0]


VALUES = (0.0, 1.0, 2.0, 3.0, 4.0)


def test_a_gates_file_decides_the_same_without_scikit_learn(tmp_path: Path) -> None:
    settings = of_school(tmp_path, method=Method.boosting)
    routed, made = run_route(settings)
    write(routed, made, Path(settings.out))
    assert json.loads((tmp_path / "out/gate.json").read_text())["method"] == "boosting"
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None\n"
        "from clipstem.route.__main__ import main; main()"
    )
    arguments = ["gate=out/gate.json", f"fast={settings.fast}", f"tool={settings.tool}"]
    arguments += [f"samples=[{','.join(settings.samples)}]", "out=again", "repeats=100"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    tables = [pq.read_table(tmp_path / f"{it}/decisions.parquet") for it in ("out", "again")]
    assert tables[0].equals(tables[1])
    again = json.loads((tmp_path / "again/route.json").read_text())
    assert again["scored"] == json.loads(json.dumps(asdict(made)["scored"]))


def changed(path: Path, change: Callable[[Predictions], Predictions]) -> None:
    """Replace a predictions file."""
    change(prediction.read(path)).write(path, replace=True)


def test_decisions_know_neither_the_answers_nor_the_tool(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    before = route(settings, MADE).decisions
    files = [settings.fast, *settings.samples, str(settings.tool)]
    each_changed(files, with_columns(answer=[-1] * 240))
    changed(Path(str(settings.tool)), lambda it: replace(it, probs_QK=it.probs_QK[:, ::-1]))
    after = route(settings, MADE).decisions
    for name, values in vars(before).items():
        assert np.array_equal(values, getattr(after, name)), name


def test_no_part_is_routed_by_a_gate_that_has_seen_it(tmp_path: Path) -> None:
    """What the tool answers to a part changes its thresholds only elsewhere."""
    files = school(tmp_path, "valid")
    settings = config(tmp_path / "out", fast=files["fast"], tool=files["tool"])
    before = route(settings, MADE)
    here_Q = before.fold_Q == 1

    def worse(found: Predictions) -> Predictions:
        probs_QK = found.probs_QK.copy()
        probs_QK[here_Q] = np.roll(probs_QK[here_Q], 1, axis=1)
        return replace(found, probs_QK=probs_QK)

    changed(files["tool"], worse)
    after = route(settings, MADE)
    assert np.array_equal(
        before.decisions.threshold_NQ[:, here_Q], after.decisions.threshold_NQ[:, here_Q]
    )
    assert not np.array_equal(before.decisions.threshold_NQ, after.decisions.threshold_NQ)
    assert sorted(np.bincount(before.fold_Q)) == [80, 80, 80]
    assert after.gate.questions == 240


def test_what_no_gate_is_fitted_on_is_routed_too_by_the_gate_that_is_kept(tmp_path: Path) -> None:
    files = school(tmp_path, "valid")
    rest = tmp_path / "rest"
    rest.mkdir()
    fast, tool = (prediction.read(files[key]) for key in ("fast", "tool"))
    usable_P = np.setdiff1d(np.arange(240), [0, 7, 100])
    for key, found in (("fast", fast), ("tool", tool)):
        found.at(usable_P).write(rest / f"{key}.parquet")
    without = config(tmp_path / "o", fast=rest / "fast.parquet", tool=rest / "tool.parquet")
    expected = route(without, MADE)
    answer = [-1 if row == 0 else found for row, found in enumerate(fast.answer_Q.tolist())]
    each_changed([str(files["fast"])], with_columns(answer=answer))
    changed(files["tool"], lambda it: it.at(np.setdiff1d(np.arange(240), [7, 100])))
    settings = config(tmp_path / "out", fast=files["fast"], tool=files["tool"])
    routed, made = run_route(settings)
    assert routed.gate == expected.gate
    assert np.array_equal(routed.fold_Q[usable_P], expected.fold_Q)
    assert np.array_equal(routed.decisions.deferred_NQ[:, usable_P], expected.decisions.deferred_NQ)
    others_P = np.array([0, 7, 100])
    kept = decide(routed.gate, routed.asked.at(others_P), settings)
    assert routed.fold_Q[others_P].tolist() == [-1, -1, -1]
    assert np.array_equal(routed.decisions.hard_prob_Q[others_P], kept.hard_prob_Q)
    assert np.array_equal(routed.decisions.deferred_NQ[:, others_P], kept.deferred_NQ)
    why = "3 questions without a known answer or one of the tool's"
    assert {f"{why}: no gate is fitted on them", f"{why}: routed, not scored"} < set(made.notes)
    assert made.questions == 240 and made.scored is not None and made.scored.questions == 237
    write(routed, made, Path(settings.out))
    for name in ("predictions", "decisions"):
        assert pq.read_table(tmp_path / f"out/{name}.parquet").num_rows == 240


# ---------------------------------------------------------------------------- end to end


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["route", *arguments])
    main()


def arguments_of(settings: RouteConfig) -> list[str]:
    given = {name: value for name, value in vars(settings).items() if value not in (None, [])}
    listed = {
        name: f"[{','.join(value)}]" if isinstance(value, list) else getattr(value, "value", value)
        for name, value in given.items()
    }
    return [f"{name}={value}" for name, value in listed.items()]


def test_what_a_routing_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = of_school(tmp_path)
    run_main(monkeypatch, *arguments_of(settings))
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "always the tool",
        "tool usage",
        "at most 1 point below the tool",
        "240 questions go",
    ):
        assert part in printed
    out = Path(settings.out)
    assert {path.name for path in out.iterdir()} == {
        *("route.json", "gate.json", "curve.svg", "predictions.parquet", "decisions.parquet")
    }
    made = json.loads((out / "route.json").read_text())
    point = made["scored"]["points"][0]
    decisions = pq.read_table(out / "decisions.parquet").to_pydict()
    deferred_Q = np.array(decisions["deferred"])
    assert deferred_Q.sum() == made["deferred"] > 0
    assert (np.array(decisions["hard_probability"]) >= decisions["threshold"]).tolist() == (
        decisions["deferred"]
    )
    routed = prediction.read(out / "predictions.parquet")
    fast, tool = (prediction.read(Path(str(it))) for it in (settings.fast, settings.tool))
    expected_QK = np.where(deferred_Q[:, None], tool.probs_QK, fast.probs_QK)
    assert np.array_equal(routed.probs_QK, expected_QK)
    assert (routed.choice_Q == routed.answer_Q).mean() == pytest.approx(point["gate"]["accuracy"])
    assert routed.provenance["routed"]["deferred"] == made["deferred"]
    assert routed.provenance["split"] == "valid"
    assert len(sit(routed, ExamConfig(predictions="p", repeats=5)).units) == 4
    # The paper's measure once more, from the files alone.
    calls, accuracy, usage, _ = one_by_one(
        decisions["deferred"],
        fast.choice_Q == fast.answer_Q,
        tool.choice_Q == tool.answer_Q,
        np.array(decisions["hard"]),
    )
    found = [point["gate"][name] for name in ("calls", "accuracy", "tool_usage")]
    assert found == pytest.approx([calls, accuracy, usage])
    section = report_route.section(report_route.read(out / "route.json"))
    assert [type(part) for part in section.parts[:5]] == [str, Table, Chart, Table, Table]
    assert (out / "curve.svg").read_text() == next(
        part.svg for part in section.parts if isinstance(part, Chart)
    )
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *arguments_of(settings))
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_a_budget_is_kept_on_the_fitting_questions_and_told_on_the_others(tmp_path: Path) -> None:
    settings = of_school(tmp_path, fast_cost=0.1, tool_cost=2.0, budget=0.7, cost_unit="cents")
    _, made = run_route(settings)
    assert made.scored is not None
    first = made.scored.points[0]
    assert [rule.name for rule in rules(settings)] == [it.rule for it in made.scored.points]
    assert first.rule == "0.7 cents a question" == made.rule
    assert 0.1 * 3 + 2 * first.promised_calls <= 0.7 + 1e-9
    assert first.gate.cost == pytest.approx(0.3 + 2 * first.gate.calls) == made.cost
    assert first.confidence.cost == pytest.approx(0.1 + 2 * first.confidence.calls)
    steps = made.scored.steps
    assert (steps[0].cost, steps[-1].cost) == pytest.approx((0.1, 2.3))
    assert steps[0].gate is None and steps[-1].gate is not None
    assert steps[-1].gate.calls == 1
    assert steps[-1].random == pytest.approx(made.scored.tool_accuracy)
    assert steps[0].random == pytest.approx(made.scored.fast_accuracy) == steps[0].oracle
    for step in steps:
        assert step.oracle is not None and step.confidence is not None
        assert step.oracle >= step.confidence.accuracy - 1e-12


def test_without_a_tool_it_says_whom_to_ask_and_takes_only_those_answers(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    asked = replace(settings, tool=None, out=str(tmp_path / "asked"))
    routed, made = run_route(asked)
    write(routed, made, Path(asked.out))
    assert made.scored is None and not (tmp_path / "asked/predictions.parquet").exists()
    deferred_Q = routed.decisions.deferred_NQ[0]
    assert "no tool was given: these are the questions to ask it" in made.notes
    tool = prediction.read(Path(str(settings.tool)))
    tool.at(np.flatnonzero(deferred_Q)[1:]).write(Path(str(settings.tool)), replace=True)
    routed, made = run_route(settings)
    assert made.scored is None and made.deferred == deferred_Q.sum()
    assert any(
        it.startswith("1 deferred questions have no answer of the tool's") for it in made.notes
    )
    write(routed, made, Path(settings.out))
    found = prediction.read(tmp_path / "out/predictions.parquet")
    fast = prediction.read(Path(settings.fast))
    kept_Q = ~deferred_Q
    kept_Q[np.flatnonzero(deferred_Q)[0]] = True
    assert np.array_equal(found.probs_QK[kept_Q], fast.probs_QK[kept_Q])
    assert np.array_equal(found.probs_QK[~kept_Q], tool.probs_QK[~kept_Q])


def test_questions_that_a_file_lacks_are_counted(tmp_path: Path) -> None:
    settings = of_school(tmp_path)
    sample = Path(settings.samples[0])
    changed(sample, lambda it: it.at(np.arange(239)[::-1]))
    columns = {"answer": [-1, *prediction.read(Path(settings.fast)).answer_Q.tolist()[1:]]}
    changed(Path(settings.fast), lambda it: replace(it, columns={**it.columns, **columns}))
    routed, made = run_route(settings)
    assert made.questions == 239 and made.scored is not None and made.scored.questions == 238
    assert f"{settings.fast}: 1 questions that another file does not have" in made.notes
    assert (
        "1 questions without a known answer or one of the tool's: routed, not scored" in made.notes
    )
    assert routed.asked.fast.columns["id"] == routed.asked.samples[0].columns["id"]


def test_samples_may_say_what_is_hard_on_the_fitting_questions_alone(tmp_path: Path) -> None:
    settings = replace(of_school(tmp_path, agreement=False), samples=[])
    _, made = run_route(settings)
    assert made.fast_passes == 1 and made.scored is not None
    assert "what is hard is told by 3 answers on the fitting questions, by 1 here" in made.notes


def test_a_skill_that_no_fitting_question_has_is_counted(tmp_path: Path) -> None:
    settings = of_school(tmp_path, samples=False)
    new = ["new", *prediction.read(Path(settings.fast)).columns["skill"][1:]]
    for path in (settings.fast, str(settings.tool)):
        changed(Path(path), with_columns(skill=new))
    assert "1 questions of a skill that no fitting question has" in run_route(settings)[1].notes


# ---------------------------------------------------------------------------- what is refused


def each_changed(paths: Sequence[str], change: Callable[[Predictions], Predictions]) -> None:
    for path in paths:
        changed(Path(path), change)


def with_facts(**facts: Any) -> Callable[[Predictions], Predictions]:
    return lambda found: replace(found, provenance={**found.provenance, **facts})


def with_columns(**columns: Sequence[Any]) -> Callable[[Predictions], Predictions]:
    return lambda found: replace(found, columns={**found.columns, **columns})


def everywhere_right(found: Predictions) -> Predictions:
    right_QK = np.eye(4)[found.answer_Q]
    return replace(found, probs_QK=right_QK)


REFUSED: list[tuple[str, Callable[[RouteConfig], object], str]] = [
    (
        "perturbed answers as the tool",
        lambda it: changed(
            Path(str(it.tool)),
            with_facts(perturbation={"name": "blur"}),
        ),
        r"holds answers to perturbed questions \(blur\), which conf key 'tool' cannot be",
    ),
    (
        "perturbed answers as the fast model",
        lambda it: changed(
            Path(it.fast),
            with_facts(perturbation={"name": "blur"}),
        ),
        "which conf key 'fast' cannot be",
    ),
    (
        "another model's sample",
        lambda it: changed(
            Path(it.samples[0]),
            with_facts(weights_sha256="e" * 64),
        ),
        "noise1.parquet: is of the weights eeeeeeeeeeee, but",
    ),
    (
        "no common question",
        lambda it: changed(
            Path(it.samples[0]),
            with_columns(id=[f"x{n}" for n in range(240)]),
        ),
        "share no question; give answers to the same split",
    ),
    (
        "a tool for other questions",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(id=[f"x{n}" for n in range(240)]),
        ),
        "has none of the questions of",
    ),
    (
        "another question of the same id",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(skill=["other"] * 240),
        ),
        "question 'q1000' has skill other, but levers in .*answers to different questions",
    ),
    (
        "another answer",
        lambda it: changed(
            Path(str(it.tool)),
            with_columns(answer=[3] * 240),
        ),
        "question 'q1000' has answer 3, but 0 in",
    ),
    (
        "other samples than were fitted on",
        lambda it: setattr(it, "fit_samples", it.fit_samples[::-1]),
        "samples are noise 1, noise 2, fit_samples noise 2, noise 1; expected the same",
    ),
    (
        "questions of the fit",
        lambda it: vars(it).update(fast=it.fit_fast, samples=it.fit_samples, tool=it.fit_tool),
        "240 questions of .* are in .* too, such as 'q0000'",
    ),
    (
        "only easy questions",
        lambda it: each_changed([str(it.fit_fast), *it.fit_samples], everywhere_right),
        "of 240 fitting questions 240 are easy and 0 hard for the fast model; expected at least 6",
    ),
    (
        "no known answer to fit on",
        lambda it: changed(
            Path(str(it.fit_fast)),
            with_columns(answer=[-1] * 240),
        ),
        "none of the 240 fitting questions has a known answer",
    ),
    (
        "a fast model that the gate does not know",
        lambda it: each_changed([it.fast, *it.samples], with_facts(weights_sha256="e" * 64)),
        "is of the weights eeeeeeeeeeee, the gate was fitted on ffffffffffff",
    ),
    (
        "no questions",
        lambda it: changed(Path(str(it.tool)), lambda found: found.at(np.arange(0))),
        "has no questions",
    ),
    ("no file", lambda it: Path(it.samples[1]).unlink(), "there is no such predictions file"),
]


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in REFUSED], ids=[it[0] for it in REFUSED]
)
def test_files_that_do_not_go_together_are_refused(
    change: Callable[[RouteConfig], object], message: str, tmp_path: Path
) -> None:
    settings = of_school(tmp_path)
    change(settings)
    with pytest.raises(ClipstemError, match=message):
        route(settings, MADE)


NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tool_cost": NAN}, "conf key 'tool_cost': nan is not a finite number"),
        ({"fast_cost": float("inf")}, "conf key 'fast_cost': inf is not a finite number"),
        ({"tool_cost": 0.0}, "conf key 'tool_cost': 0.0 is not above 0"),
        ({"points_below_tool": NAN}, "conf key 'points_below_tool': nan is not a finite number"),
        ({"easy_at": NAN}, "conf key 'easy_at': nan is not above 0 and at most 1"),
        ({"easy_at": 0.0}, "conf key 'easy_at': 0.0 is not above 0 and at most 1"),
        ({"folds": 2}, "conf key 'folds': 2 is below 3"),
        (
            {"budget": 1.5},
            "conf key 'budget': 1.5 tool calls a question is not between 0, which the fast model "
            "costs by itself, and 1, with the tool asked always",
        ),
        (
            {"budget": 0.2, "fast_cost": 0.1, "samples": ["s", "t"]},
            "conf key 'budget': 0.2 tool calls a question is not between 0.3",
        ),
        ({"budget": NAN}, "conf key 'budget': nan tool calls a question is not between 0"),
        ({"tool": None}, "conf key 'tool' is missing; it can be left out with gate=<file>"),
        ({"fit_fast": "a"}, "conf key 'fit_tool' is missing; give the tool's answers"),
        ({"fit_samples": ["a"]}, "'fit_tool', 'fit_samples': need fit_fast=<file> beside them"),
        ({"gate": "g", "fit_fast": "a", "fit_tool": "b"}, "'gate', 'fit_fast': give one of them"),
        ({"samples": ["f"]}, "conf key 'samples': f is given twice; expected different files"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError) as error:
        config(**{"fast": "f", "tool": "t", **given})
    assert message in str(error.value)


def test_fitting_says_which_library_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of_school(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ClipstemError, match=r'pip install "clipstem\[route\]"'):
        route(settings, MADE)


def loop(gate: dict[str, Any]) -> None:
    gate["scorer"]["trees"] = [
        {"feature": [0], "threshold": [0.0], "left": [0], "right": [0], "value": [1.0]}
    ]


GATES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a list", lambda it: [it], "is a list|expected an object"),
    ("no scorer", lambda it: it.pop("scorer"), "lacks scorer"),
    ("a newer format", lambda it: it.update(format_version=9), "has format 9"),
    ("a slope that is NaN", lambda it: it.update(slope=NAN), "slope is nan; expected a number"),
    ("a slope that is a text", lambda it: it.update(slope="1"), "slope is '1'"),
    ("other features", lambda it: it["scorer"].update(features=["x"]), "features are x; expected"),
    ("too few weights", lambda it: it["scorer"].update(weights=[1.0]), "has 1 weights; expected"),
    ("no encodings", lambda it: it["scorer"].update(encodings={}), "encodings are not of kind"),
    ("a tree that never ends", loop, "node 0 has the children 0 and 0"),
    (
        "a tree that looks beyond",
        lambda it: it["scorer"].update(
            trees=[
                {
                    **{"feature": [99, 0, 0], "threshold": [0.0] * 3, "value": [1.0] * 3},
                    **{"left": [1, -1, -1], "right": [2, -1, -1]},
                }
            ]
        ),
        "node 0 looks at feature 99",
    ),
    (
        "a tree without nodes",
        lambda it: it["scorer"].update(
            trees=[{name: [] for name in ("feature", "threshold", "left", "right", "value")}]
        ),
        "lists are empty",
    ),
    ("samples that it does not see", lambda it: it.update(samples=[]), "has 0 samples"),
    ("a curve without points", lambda it: it["curve"].update(calls_T=[]), "curve has lists of"),
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RouteConfig, Path]:
    """A routing that was written, and its settings."""
    settings = of_school(tmp_path_factory.mktemp("fitted"))
    routed, made = run_route(settings)
    write(routed, made, Path(settings.out))
    return settings, Path(settings.out)


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in GATES], ids=[it[0] for it in GATES]
)
def test_a_strangers_gate_is_checked(
    change: Callable[[dict[str, Any]], object],
    message: str,
    fitted: tuple[RouteConfig, Path],
    tmp_path: Path,
) -> None:
    values = json.loads((fitted[1] / "gate.json").read_text())
    instead = change(values)
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(instead if isinstance(instead, list) else values))
    with pytest.raises(ClipstemError, match=message) as error:
        gate.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_gates_file_may_be_nothing_of_the_sort(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match=r"there is no such file; expected a gate\.json"):
        gate.read(tmp_path)
    for text in (b"", b"\xff", b"[" * 100_000, b'{"format_version": 1}'):
        (tmp_path / "gate.json").write_bytes(text)
        with pytest.raises(ClipstemError, match=r"is not JSON|lacks .*; expected a gate\.json"):
            gate.read(tmp_path / "gate.json")


def test_a_gate_is_applied_to_the_samples_that_it_was_fitted_on(
    fitted: tuple[RouteConfig, Path], tmp_path: Path
) -> None:
    settings, out = fitted
    given: dict[str, Any] = {"fast": settings.fast, "tool": settings.tool}
    given |= {"gate": out / "gate.json"}
    with pytest.raises(ClipstemError, match=r"sees the samples noise 1, noise 2.*are none"):
        route(config(tmp_path, **given), MADE)
    given |= {"samples": settings.samples, "fast_cost": 0.1, "budget": 0.2}
    with pytest.raises(ClipstemError, match=r"is not between 0.3"):
        route(config(tmp_path, **given), MADE)


FIGURES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no questions", lambda it: it.pop("questions"), "lacks questions"),
    ("a text for a number", lambda it: it.update(cost="1"), "cost is '1'"),
    (
        "a cost beyond all",
        lambda it: it.update(cost=1e200),
        "expected a number below 1e15",
    ),
    ("a count beyond all", lambda it: it.update(questions=10**400), "whole number below 2"),
    ("no points", lambda it: it["scored"].update(points=[]), "has no points or no steps"),
    ("a NaN", lambda it: it["scored"].update(hard=NAN), "scored.hard is nan"),
]


@pytest.mark.parametrize(
    ("change", "message"), [it[1:] for it in FIGURES], ids=[it[0] for it in FIGURES]
)
def test_the_report_believes_no_strangers_figures(
    change: Callable[[dict[str, Any]], object],
    message: str,
    fitted: tuple[RouteConfig, Path],
    tmp_path: Path,
) -> None:
    values = json.loads((fitted[1] / "route.json").read_text())
    change(values)
    (tmp_path / "route.json").write_text(json.dumps(values))
    with pytest.raises(ClipstemError, match=message):
        report_route.read(tmp_path / "route.json")
    with pytest.raises(ClipstemError, match="there is no such file"):
        report_route.read(tmp_path)


def test_the_reports_section_says_what_the_figures_say(fitted: tuple[RouteConfig, Path]) -> None:
    found = report_route.read(fitted[1] / "route.json")
    assert found.scored is not None
    said, table, chart, gains, skills = report_route.section(found).parts[:5]
    assert isinstance(said, str) and f"{found.deferred} of 240 questions go to the tool" in said
    assert isinstance(table, Table) and isinstance(gains, Table) and isinstance(skills, Table)
    assert isinstance(chart, Chart) and "random" in chart.svg
    first = found.scored.points[0].gate
    assert table.rows[2][3] == f"{100 * first.accuracy:.1f}"
    assert [int(cell) for cell in table.rows[2][5:]] == [
        *(first.easy_direct, first.easy_tool, first.hard_direct, first.hard_tool)
    ]
    assert len(gains.rows) == 4 * len(found.scored.points) and len(skills.rows) == 4
    assert {len(row) for part in (table, gains, skills) for row in part.rows} == {
        *(len(part.columns) for part in (table, gains, skills))
    }


def test_what_a_stranger_wrote_is_text_in_the_report(
    fitted: tuple[RouteConfig, Path], tmp_path: Path
) -> None:
    script = "<script>alert(1)</script>"
    values = json.loads((fitted[1] / "route.json").read_text())
    values |= {"cost_unit": script, "fast": script, "rule": script, "notes": [script]}
    values["scored"]["points"][0]["rule"] = values["scored"]["skills"][0]["skill"] = script
    (tmp_path / "route.json").write_text(json.dumps(values))
    section = report_route.section(report_route.read(tmp_path / "route.json"))
    shown = page.html(page.Report("title", (), (page.Chapter("chapter", (section,)),)))
    assert "&lt;script&gt;alert(1)" in shown and script not in shown


def test_features_are_known_before_the_answer() -> None:
    assert not {"answer", "choice", "row", "id"} & {*NUMBERS, *AGREEMENT, *WORDS}
    empty = Curve((NEVER,), (0.0,), (0.5,), (0.5,), (0.5,))
    assert empty.within(0.0) == empty.losing_at_most(0.1) == empty.best_usage() == 0

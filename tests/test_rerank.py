"""The verb rerank, from candidates to what others read: no question judges itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from reranking import line, reranked, saved, with_scores

from clipstem import prediction
from clipstem.config import RerankConfig, Scores
from clipstem.question import ClipstemError
from clipstem.report import rerank as shown
from clipstem.rerank import candidates, drawn
from clipstem.rerank.__main__ import choices, main, predictions, rerank
from clipstem.rerank.candidates import normal

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


def drawn_file(path: Path, questions: int = 60, seed: int = 0) -> Path:
    return saved(path, *drawn.lines(questions, seed))


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

"""What ways to choose and scores are worth: pairs counted one by one, scorers never mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reranking import line, reranked, saved, with_scores

from clipstem.config import Scores
from clipstem.rerank import figures
from clipstem.rerank.choosing import choose
from clipstem.statistics import auc


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


def test_two_systems_agreeing_on_everything_are_no_mistake(tmp_path: Path) -> None:
    """Questions without a choice: one final answer each, right or wrong."""
    made = []
    for n in range(12):
        finals = [{"system": s, "text": "x", "final": str(n % 2 + n)} for s in ("a", "b")]
        made.append(line(n, answer=str(n + 1), candidates=finals))
    found = reranked(saved(tmp_path / "c.jsonl", *made)).figures
    assert {it.right.value for it in found.methods.values()} == {0.5}

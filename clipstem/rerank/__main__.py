"""`python -m clipstem.rerank out=folder`: choose among generated answers, and say how well.

Whatever is learnt (a scorer, track records, the weights of the mix) is learnt from other questions
than it judges. Q questions, C candidates of all questions, K folds, F final answers of a question.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from clipstem import run, splits
from clipstem.atomic import new_folder
from clipstem.command import verb
from clipstem.config import RerankConfig, Scores, plain
from clipstem.console import console, progress_bar
from clipstem.metrics import probabilities
from clipstem.prediction import UNKNOWN, Predictions
from clipstem.question import UNKNOWN_ANSWER, ClipstemError
from clipstem.report.page import (
    NOTHING,
    between,
    count,
    decimal,
    decimals,
    percent,
    signed_percent,
)
from clipstem.report.rerank import chart
from clipstem.rerank import candidates, drawn, figures
from clipstem.rerank.candidates import Asked, Read
from clipstem.rerank.choosing import (
    METHODS,
    Judge,
    Slate,
    as_words,
    choose,
    final_odds,
    learn,
    methods_of,
    sizes,
    slate,
)
from clipstem.rerank.figures import Figures, Known, Share
from clipstem.statistics import Paired

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_FOLD = -1  # of a question of which not everything is known
NONE_RIGHT = "none of these"  # the last option of every prediction


@dataclass(frozen=True)
class Reranked:
    """Every question with the judge that has not seen it.

    Attributes:
        read: the questions.
        slates, judges: of each question.
        fold_Q: the part it is in; `NO_FOLD` where not all of its candidates are known.
        scorer_Q: a number for whose scores its candidates have.
        overall: the judge that has learnt from all known questions.
        figures: of the known questions.
    """

    read: Read
    slates: list[Slate]
    judges: list[Judge]
    fold_Q: Ints
    scorer_Q: Ints
    overall: Judge
    figures: Figures


def rerank(config: RerankConfig, read: Read) -> Reranked:
    """Score, learn and choose; every known question is judged by what has learnt from others.

    Raises:
        ClipstemError: if there are too few known questions, or what learns finds nothing to learn.
    """
    asked = read.asked
    systems = sorted({it.system for one in asked for it in one.candidates})
    group_Q = _groups(asked)
    fold_Q = _folds(asked, group_Q, config)
    known = np.flatnonzero(fold_Q != NO_FOLD)
    unscored = [slate(one, systems, None) for one in asked]
    for fold in range(config.folds):  # what would fail, fails before minutes of training
        others = known[fold_Q[known] != fold]
        learn([unscored[q] for q in others], len(systems), group_Q[others])
    score_KC, scorer_Q, facts = _scores(asked, fold_Q, config)
    ends = np.cumsum([len(one.candidates) for one in asked])[:-1]

    def seen_by(judge: int) -> list[Slate]:
        if score_KC is None:
            return unscored
        own = np.split(score_KC[judge], ends)
        return [slate(one, systems, score_C) for one, score_C in zip(asked, own, strict=True)]

    everything = seen_by(config.folds)
    slates = list(everything)
    overall = learn([everything[q] for q in known], len(systems), group_Q[known])
    judge_of: dict[int, Judge] = {NO_FOLD: overall}
    for fold in range(config.folds):
        here = seen_by(fold)
        others = known[fold_Q[known] != fold]
        judge_of[fold] = learn([here[q] for q in others], len(systems), group_Q[others])
        for q in np.flatnonzero(fold_Q == fold):
            slates[q] = here[q]
    judges = [judge_of[int(fold)] for fold in fold_Q]
    measured = Known(
        *([slates[q] for q in known], [judges[q] for q in known]),
        *(group_Q[known], scorer_Q[known]),
        systems,
    )
    notes = _notes(read)
    if config.scores is Scores.given and len(np.unique(scorer_Q)) > 1:
        notes.append(
            "the scores are those of an earlier run, whose scorers have learnt from labels of "
            "these questions: no judge has seen its own questions' labels, but the scores that it "
            "has learnt from may have"
        )
    said = _figures(measured, overall, read, config, facts, notes)
    return Reranked(read, slates, judges, fold_Q, scorer_Q, overall, said)


def _groups(asked: Sequence[Asked]) -> Ints:
    """A number for each question, the same where problem and picture, or the picture alone, are."""
    tokens: dict[object, int] = {}
    of_question: list[tuple[int, int]] = []
    for number, one in enumerate(asked):
        shown = one.picture.sha256 if one.picture else None
        problem = " ".join(one.problem.casefold().split())
        keys: list[object] = [(problem, shown)] if shown is None else [(problem, shown), shown]
        of_question += [(number, tokens.setdefault(key, len(tokens))) for key in keys]
    question_T, token_T = np.array(of_question, np.int64).T
    return splits.components(question_T, token_T, len(asked))


def _folds(asked: Sequence[Asked], group_Q: Ints, config: RerankConfig) -> Ints:
    """Which part each known question is in; groups stay together."""
    known = np.flatnonzero([one.is_known for one in asked])
    if (groups := len(np.unique(group_Q[known]))) < config.folds:
        raise ClipstemError(
            f"{groups:,} different questions say of every candidate whether it is right; expected "
            f"at least folds={config.folds} of them (give 'correct', or 'answer' and 'final')"
        )
    fold_Q = np.full(len(asked), NO_FOLD)
    shares = [1 / config.folds] * config.folds
    fold_Q[known] = splits.divide(group_Q[known], shares, config.seed)
    return fold_Q


def _scores(
    asked: Sequence[Asked], fold_Q: Ints, config: RerankConfig
) -> tuple[Floats | None, Ints, dict[str, Any]]:
    """score_KC, a row for the judge of each fold and one for that of no fold; scorer_Q, whose they
    are; and what is known of these.

    Given scores are the same for every judge: what they have learnt from cannot be left out.
    """
    scorer_Q = np.zeros_like(fold_Q)
    if config.scores is Scores.none:
        return None, scorer_Q, {}
    if config.scores is Scores.given:
        if config.scores_file is not None:
            score_C, scorer_Q = candidates.read_scores(Path(config.scores_file), asked)
        else:
            every = (it.score for one in asked for it in one.candidates)
            score_C = np.array([score for score in every if score is not None])
        return np.tile(score_C, (config.folds + 1, 1)), scorer_Q, {}
    from clipstem.rerank import verifier  # torch, only now

    with progress_bar("training scorers", verifier.work(asked, fold_Q, config)) as advance:
        scored = verifier.cross_fitted(asked, fold_Q, config, advance)
    return scored.score_KC, fold_Q, scored.facts


def _figures(
    known: Known,
    overall: Judge,
    read: Read,
    config: RerankConfig,
    facts: dict[str, Any],
    notes: list[str],
) -> Figures:
    most = max(len(it.system_C) for it in known.slates)
    with progress_bar("best of N", len(sizes(most)) * len(known.slates)) as advance:
        best_of = figures.of_subsets(known, config.subsets, config.seed, advance)
    tied, by_lot = figures.ties(known)
    return Figures(
        settings=plain(config),
        asked=len(read.asked),
        known=len(known.slates),
        candidates=sum(len(one.candidates) for one in read.asked),
        systems=figures.of_systems(known),
        methods=figures.of_methods(known),
        any_right=figures.any_right(known),
        majority_ties=tied,
        majority_by_lot=by_lot,
        scores=figures.of_scores(known),
        best_of=best_of,
        weights=figures.weights(overall, known.systems),
        notes=tuple(notes),
        made_by={**run.environment(), "scorer": facts},
    )


def _notes(read: Read) -> list[str]:
    notes = list(read.notes)
    if read.skipped:
        notes.append(f"{len(read.skipped):,} lines are no questions: see skipped.jsonl")
    if read.only_left_out:
        notes.append(
            f"{len(read.only_left_out):,} questions have candidates of systems that are left out "
            "only: not asked"
        )
    return notes


# ---------------------------------------------------------------------------- predictions


def predictions(found: Reranked) -> Predictions:
    """The mix's probabilities of each question's final answers, and last of "none of these".

    A final answer that no candidate reaches is never chosen: "none of these" is never more probable
    than the most probable final answer, so that the accuracy of these predictions is that of the
    mix where one final answer is right. Where several are, the answer is the first of them.
    """
    rows = [final_odds(one, judge) for one, judge in zip(found.slates, found.judges, strict=True)]
    num_options_Q = np.array([len(odds_F) + 1 for odds_F in rows], np.int64)
    logits_QK = np.full((len(rows), num_options_Q.max()), np.finfo(np.float32).min, np.float32)
    answers = []
    for row, (odds_F, one) in enumerate(zip(rows, found.slates, strict=True)):
        logits_QK[row, : len(odds_F)] = np.log(odds_F)
        logits_QK[row, len(odds_F)] = min(0.0, logits_QK[row, : len(odds_F)].max())
        right = [] if one.right_C is None else [*np.flatnonzero(one.right_F), len(odds_F)]
        answers.append(int(right[0]) if right else UNKNOWN_ANSWER)
    asked = found.read.asked
    return Predictions(
        columns={
            "id": [one.id for one in asked],
            "row": list(range(len(asked))),
            **{
                name: [getattr(one, name) for one in asked]
                for name in ("subject", "grade", "skill")
            },
            "kind": ["candidates"] * len(asked),
            "num_options": num_options_Q.tolist(),
            "question_words": [len(one.problem.split()) for one in asked],
            "truncated_tokens": [UNKNOWN] * len(asked),
            "answer": answers,
        },
        probs_QK=probabilities(logits_QK, num_options_Q),
        logits_QK=logits_QK,
        provenance={"model": "rerank: mix", "temperature": 1.0, "split": "all"},
    )


def choices(found: Reranked) -> list[dict[str, Any]]:
    """What each method takes of each question, by the candidates' places in their lines.

    `scores` has a number for each candidate of the line, null for those that are left out, and
    `scorer` says whose they are: another rerank can take them by `scores_file`.
    """
    methods = methods_of(found.slates[0].score_C is not None)
    rows = []
    each = zip(found.read.asked, found.slates, found.judges, found.scorer_Q, strict=True)
    for one, numbers, judge, scorer in each:
        own = {it: int(choose(it, numbers, numbers.whole_1C, judge)[0]) for it in methods}
        taken = one.candidates[own["mix" if "mix" in own else "mix_without_scores"]]
        scores: list[float | None] = [None] * one.line_candidates
        for candidate, score in zip(one.candidates, _or_nothing(numbers), strict=True):
            scores[candidate.place] = score
        rows.append(
            {
                "id": one.id,
                "system": taken.system,
                "final": taken.final,
                "correct": taken.correct,
                "text": taken.text,
                "choices": {it: one.candidates[place].place for it, place in own.items()},
                "scores": scores,
                "scorer": int(scorer),
            }
        )
    return rows


def _or_nothing(slate: Slate) -> list[float | None]:
    return [None] * len(slate.system_C) if slate.score_C is None else slate.score_C.tolist()


# ---------------------------------------------------------------------------- what people see


def show(found: Figures, folder: str) -> None:
    """Print what each way to choose is worth."""
    table = Table(title=f"{found.known:,} questions, {found.candidates:,} candidates")
    for name in ("way to choose", "right, % [95 %]", "over majority", "over best system"):
        table.add_column(name, justify="left" if name == "way to choose" else "right")
    for name in (it for it in METHODS if it in found.methods):
        one = found.methods[name]
        compared = (_paired(one.over_majority), _paired(one.over_best_system))
        table.add_row(as_words(name), _share(one.right), *compared)
    table.add_section()
    table.add_row("any right: the bound", _share(found.any_right))
    console.print(table)
    systems = Table(title="systems")
    for name in ("system", "candidates", "right, %", "AUC of scores", "95 %"):
        systems.add_column(name, justify="left" if name == "system" else "right")
    for name, system in found.systems.items():
        auc = (NOTHING, NOTHING)
        if system.auc is not None:
            auc = decimal(system.auc.value), decimals(system.auc.interval)
        systems.add_row(name, count(system.candidates), percent(system.right), *auc)
    console.print(systems)
    for line in (*_said_of_scores(found), *found.notes, f"written: {folder}"):
        console.print(line, highlight=False, soft_wrap=True)


def _share(share: Share) -> str:
    return f"{percent(share.value)} {between(share.interval)}"


def _paired(paired: Paired) -> str:
    return f"{signed_percent(paired.difference)} {between(paired.interval)}"


def _said_of_scores(found: Figures) -> list[str]:
    lines = [
        f"the majority is tied in {found.majority_ties:,} questions, where the answer that stands "
        f"first is taken; by lot it would reach {percent(found.majority_by_lot)} %"
    ]
    if found.scores is not None:
        of = found.scores
        lines.append(
            f"scores add {_paired(of.mix)} points to the mix; they told enough to be taken in "
            f"{of.taken} of {of.judges} parts"
        )
        if of.ordered is not None and of.ordered_by_track_record is not None:
            lines.append(
                f"of {of.pairs:,} right and wrong candidates of one question scores put "
                f"{percent(of.ordered)} % in order, track records "
                f"{percent(of.ordered_by_track_record)} %"
            )
        if of.given_systems is not None:
            lines.append(f"given who wrote the two: {_share(of.given_systems)} %; 50 is nothing")
    return lines


# ---------------------------------------------------------------------------- the verb


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


@verb("rerank", RerankConfig)
def main(config: RerankConfig) -> None:
    with new_folder(Path(config.out)) as folder:
        files = [Path(name) for name in config.candidates]
        if not files:
            files = [folder / "candidates.jsonl"]
            files[0].write_text(_lines(list(drawn.lines(config.questions, config.seed))))
        read = candidates.read(
            files,
            config.leave_out,
            config.scores is Scores.given and config.scores_file is None,
            config.max_skipped_fraction,
        )
        found = rerank(config, read)
        content = json.dumps(dataclasses.asdict(found.figures), indent=1, ensure_ascii=False)
        (folder / "rerank.json").write_text(content + "\n")
        (folder / "choices.jsonl").write_text(_lines(choices(found)))
        (folder / "best_of_n.svg").write_text(chart(found.figures.best_of))
        predictions(found).write(folder / "predictions.parquet")
        if read.skipped:
            skipped = [dataclasses.asdict(it) for it in read.skipped]
            (folder / "skipped.jsonl").write_text(_lines(skipped))
    show(found.figures, config.out)


if __name__ == "__main__":
    main()

"""What `rerank` found, in the report: a `rerank.json`, as anybody may have written it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from clipstem import charts, facts
from clipstem.question import ClipstemError
from clipstem.report.page import (
    NOTHING,
    Chart,
    Part,
    Section,
    Table,
    between,
    count,
    decimal,
    decimals,
    p_value,
    percent,
    signed_percent,
)
from clipstem.rerank.choosing import METHODS, as_words
from clipstem.rerank.figures import BestOf, Figures, OfScores, Share
from clipstem.statistics import Paired

MAX_BYTES = 10_000_000  # of a rerank.json; ours with a hundred systems has a hundredth of it

BOUND = "any right"


def read(path: Path) -> Figures:
    """The figures of a `rerank.json`.

    Raises:
        ClipstemError: naming the file, and the field that is missing or of another type.
    """
    advice = "expected the rerank.json of python -m clipstem.rerank"
    return facts.read(Figures, path, MAX_BYTES, advice, check)


def check(found: Figures) -> None:
    """Refuse what is not fit to be shown.

    Raises:
        ClipstemError: without the file's name.
    """
    if "majority" not in found.methods or not found.methods.keys() <= {*METHODS}:
        raise ClipstemError(
            f"methods are {', '.join(found.methods) or 'none'}; expected majority, and others of "
            f"{', '.join(METHODS)}"
        )
    best_of = found.best_of
    if not best_of.sizes or not best_of.right.keys() <= {*METHODS, "any_right"}:
        raise ClipstemError("best_of has no sizes, or methods that are none")
    if any(low >= high for low, high in pairwise((0, *best_of.sizes))):
        raise ClipstemError("best_of: sizes do not rise from 1 or more")
    lengths = {len(best_of.exact), *map(len, best_of.right.values())}
    if lengths != {len(best_of.sizes)}:
        raise ClipstemError("best_of: sizes, exact and right are not equally long")
    shares = [it for every in best_of.right.values() for it in every]
    shares += [found.any_right, *(one.right for one in found.methods.values())]
    if wrong := [it.value for it in shares if not 0 <= it.value <= 1]:
        raise ClipstemError(f"a share of right choices is {wrong[0]:g}; expected 0 to 1")


def section(found: Figures) -> Section:
    """Ways to choose, best of N, systems, and what scores add."""
    parts: list[Part] = [
        f"{count(found.known)} of {count(found.asked)} questions with "
        f"{count(found.candidates)} candidates say which of these are right. What judges a "
        "question has learnt from others alone.",
        _methods(found),
        *_best_of(found.best_of),
        _systems(found),
    ]
    if found.scores is not None:
        parts.append(_scores(found.scores))
    return Section("Generated answers: which to take", (*parts, *found.notes))


def _methods(found: Figures) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            as_words(name),
            percent(one.right.value),
            between(one.right.interval),
            *_paired(one.over_majority),
            *_paired(one.over_best_system),
        )
        for name, one in found.methods.items()
    ]
    bound = percent(found.any_right.value), between(found.any_right.interval)
    rows.append((f"{BOUND} (the bound)", *bound, *[NOTHING] * 6))
    notes = (
        "Intervals are 95 %, of other questions like these; p is McNemar's. Best system: the one "
        "with the best track record. Mix: track records, agreement and scores that help in one "
        f"conditional logit. The majority is tied in {count(found.majority_ties)} questions, "
        "where the answer that stands first is taken; by lot it would reach "
        f"{percent(found.majority_by_lot)} %.",
    )
    columns = (
        *("way to choose", "right, %", "95 %"),
        *("over majority, points", "95 %", "p"),
        *("over best system, points", "95 %", "p"),
    )
    return Table("Right choices by the way to choose", columns, rows, notes=notes)


def _paired(paired: Paired) -> tuple[str, str, str]:
    return signed_percent(paired.difference), between(paired.interval), p_value(paired.p)


def _best_of(best_of: BestOf) -> tuple[Part, ...]:
    ways = list(best_of.right)
    rows = [
        (
            count(size) if best_of.exact[place] else f"{count(size)} (drawn)",
            *(_share(best_of.right[way][place]) for way in ways),
        )
        for place, size in enumerate(best_of.sizes)
    ]
    caption = "Best of N: right choices among N of a question's candidates, %"
    notes = ("The mean over all subsets of N candidates; drawn: over some, drawn at random.",)
    table = Table(caption, ("N", *map(as_words, ways)), rows, notes=notes)
    return table, Chart("best-of-n", f"{caption}.", ALT, chart(best_of))


ALT = "Share of right choices by the number of candidates, a line for each way to choose."


def chart(best_of: BestOf) -> str:
    """Best of N as SVG."""
    return charts.line(
        [float(size) for size in best_of.sizes],
        {as_words(name): [100 * it.value for it in every] for name, every in best_of.right.items()},
        "candidates",
        "right, %",
        ALT,
    )


def _share(share: Share) -> str:
    return f"{percent(share.value)} {between(share.interval)}"


def _systems(found: Figures) -> Table:
    rows = [
        (
            name,
            count(one.candidates),
            percent(one.right),
            NOTHING if one.auc is None else decimal(one.auc.value),
            NOTHING if one.auc is None else decimals(one.auc.interval),
        )
        for name, one in found.systems.items()
    ]
    notes = (
        "AUC: how often a right candidate of the system has a higher score than a wrong one of the "
        "same system, whatever the questions; 0.5 says that scores tell nothing within its style.",
    )
    columns = ("system", "candidates", "right, %", "AUC of scores", "95 %")
    return Table("Systems", columns, rows, notes=notes)


def _scores(found: OfScores) -> Table:
    given = found.given_systems
    rows = [
        ("the mix, less the mix without scores, points", *_paired(found.mix)[:2]),
        ("right and wrong candidates of one question in order, %", _maybe(found.ordered), NOTHING),
        ("the same by track records, %", _maybe(found.ordered_by_track_record), NOTHING),
        (
            f"the same by scores, {count(found.same_system_pairs)} pairs of one system, %",
            _maybe(found.same_system_ordered),
            NOTHING,
        ),
        (
            "which of two systems is right, given which two they are, %",
            _maybe(None if given is None else given.value),
            NOTHING if given is None else between(given.interval),
        ),
    ]
    notes = (
        f"The mix takes scores where they make questions that it has not learnt from more "
        f"likely: in {count(found.taken)} of {count(found.judges)} parts of the questions.",
        f"{count(found.pairs)} pairs of a right and a wrong candidate. The last row is 50 if "
        "scores know no more than who has written.",
    )
    return Table("What scores add", ("what", "value", "95 %"), rows, notes=notes)


def _maybe(share: float | None) -> str:
    return NOTHING if share is None else percent(share)

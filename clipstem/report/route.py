"""Routing in the report: what a `route.json` says, checked before it is believed."""

from __future__ import annotations

from pathlib import Path

from clipstem import facts
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
    percent,
    signed_percent,
)
from clipstem.route.deferral import Difference, Outcome
from clipstem.route.figures import CURVE_ALT, Figures, Scored, curve_svg

MAX_BYTES = 16 * 2**20  # of a route.json: STEM's 448 skills take a hundredth of it
SHOWN_SKILLS = 15


def read(path: Path) -> Figures:
    """The figures that `clipstem.route` has written.

    Raises:
        ClipstemError: if the file is missing, too large, or not as expected.
    """
    advice = "expected the route.json of python -m clipstem.route"
    return facts.read(Figures, path, MAX_BYTES, advice, check)


def check(found: Figures) -> None:
    """Refuse what is not fit to be shown.

    Raises:
        ClipstemError: without the file's name.
    """
    if found.scored is not None and not (found.scored.points and found.scored.steps):
        raise ClipstemError("has no points or no steps")


def section(found: Figures) -> Section:
    """What a routing came to."""
    said = (
        f"{count(found.deferred)} of {count(found.questions)} questions go to the tool "
        f"({found.tool or 'none was given'}), the others are answered by the fast model "
        f"({found.fast}): {decimal(found.cost)} {found.cost_unit} a question, by the rule "
        f"“{found.rule}”. The gate ({found.method}) was fitted on {count(found.fitted_on)} "
        f"questions{', part by part on the others' if found.cross_fitted else ''}."
    )
    parts: list[Part] = [said]
    if (scored := found.scored) is not None:
        chart = Chart(
            "routing", "Accuracy by mean cost of a question.", CURVE_ALT, curve_svg(found, scored)
        )
        parts += [_points(found, scored), chart, _gains(scored), _skills(scored)]
    return Section("Routing to a tool", (*parts, *found.notes))


def _points(found: Figures, scored: Scored) -> Table:
    def row(name: str, it: Outcome) -> tuple[str, ...]:
        return (
            name,
            percent(it.calls),
            decimal(it.cost),
            percent(it.accuracy),
            NOTHING if it.tool_usage is None else percent(it.tool_usage),
            *(count(round(n)) for n in (it.easy_direct, it.easy_tool)),
            *(count(round(n)) for n in (it.hard_direct, it.hard_tool)),
        )

    rows: list[tuple[str, ...]] = [
        ("always direct", percent(0.0), decimal(found.fast_cost), percent(scored.fast_accuracy)),
        ("always the tool", percent(1.0), decimal(found.tool_cost), percent(scored.tool_accuracy)),
    ]
    rows = [(*it, "50.0", NOTHING, NOTHING, NOTHING, NOTHING) for it in rows]
    for point in scored.points:
        rows.append(row(f"gate: {point.rule}", point.gate))
        rows.append(row(f"confidence: {point.rule}", point.confidence))
    columns = (
        *("routed by", "calls, %", f"cost, {found.cost_unit}", "accuracy, %", "tool usage, %"),
        *("easy, direct", "easy, tool", "hard, direct", "hard, tool"),
    )
    notes = (
        f"{count(scored.questions)} questions with known answers, {percent(scored.hard)} % of them "
        "hard: the fast model gets less than "
        f"{percent(found.easy_at)} % of its answers to them right, samples included. Tool-usage "
        "accuracy: the mean of the shares of easy questions answered directly and of hard ones "
        "given to the tool (arXiv 2411.00412); random deferral has 50 %. Thresholds were chosen "
        "on the fitting questions, for the confidence as for the gate.",
    )
    return Table("Accuracy and cost by rule", columns, rows, notes=notes)


def _gains(scored: Scored) -> Table:
    def cells(gain: Difference | None) -> tuple[str, str]:
        if gain is None:
            return NOTHING, NOTHING
        return signed_percent(gain.value), between(gain.interval)

    rows = [
        (point.rule, what, *cells(gain))
        for point in scored.points
        for what, gain in (
            ("accuracy less the tool's", point.below_tool),
            ("accuracy less the fast model's", point.above_fast),
            ("accuracy less that of as many least confident questions", point.accuracy_gain),
            ("tool-usage accuracy less that of as many least confident ones", point.usage_gain),
        )
    ]
    notes = ("Interval: paired bootstrap over the questions.",)
    columns = ("rule", "difference", "points", "95 % interval")
    return Table("The gate against other ways to route", columns, rows, words=2, notes=notes)


def _skills(scored: Scored) -> Table:
    rows = [
        (
            f"{it.subject}/{it.skill}",
            count(it.questions),
            percent(it.hard),
            percent(it.calls),
            count(it.hard_direct),
            count(it.easy_tool),
            *(percent(share) for share in (it.fast_accuracy, it.tool_accuracy, it.accuracy)),
        )
        for it in scored.skills[:SHOWN_SKILLS]
    ]
    columns = (
        *("skill", "questions", "hard, %", "calls, %", "hard kept", "easy deferred"),
        *("fast, %", "tool, %", "routed, %"),
    )
    caption = f"Where the gate fails: {len(rows)} of {count(len(scored.skills))} skills"
    return Table(caption, columns, rows, sortable=True)

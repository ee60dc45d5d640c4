"""`python -m clipstem.route fast=… tool=…`: the fast model answers, or defers to a tool.

A gate says how hard a question is for the fast model, and hard ones are deferred. It is scored on
questions that it was not fitted on. Source: Tool Usage Adaptation of Lyu et al. 2024, "Adapting
While Learning" (arXiv 2411.00412), for models that answer by predictions files. Q questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from clipstem import prediction, run
from clipstem.atomic import new_folder, require_new
from clipstem.command import verb
from clipstem.config import RouteConfig
from clipstem.console import console
from clipstem.prediction import Predictions
from clipstem.report.page import NOTHING, between, decimal, percent, signed_percent
from clipstem.route.decisions import Routed, route
from clipstem.route.deferral import Difference
from clipstem.route.figures import Figures, Scored, curve_svg, figures

SHOWN_SKILLS = 10  # in the terminal

# ---------------------------------------------------------------------------- files


def routed_predictions(routed: Routed, made: Figures) -> Predictions:
    """The answers as routed; logits are the logarithm of the probabilities, whose makers differ."""
    asked = routed.asked
    assert asked.tool is not None
    deferred_Q = routed.decisions.deferred_NQ[0] & asked.has_tool_Q
    both = prediction.joined([replace(it, provenance={}) for it in (asked.fast, asked.tool)])
    found = both.at(np.arange(len(asked)) + len(asked) * deferred_Q)
    with np.errstate(divide="ignore"):
        logits_QK = np.maximum(np.log(found.probs_QK), np.finfo(np.float32).min)
    kept = ("split", "source_rows", "without_picture", "data", "data_sha256")
    facts = {name: asked.fast.provenance[name] for name in kept if name in asked.fast.provenance}
    return replace(
        found,
        # What is known of the question stays the fast file's, its answer above all.
        columns={**found.columns, **asked.fast.columns},
        logits_QK=logits_QK.astype(np.float32),
        provenance={
            **facts,
            "model": f"{_called(asked.fast, made.fast)} or {_called(asked.tool, str(made.tool))}",
            "temperature": 1.0,
            "routed": {
                "fast": made.fast,
                "tool": made.tool,
                "deferred": int(deferred_Q.sum()),
                "questions": len(asked),
                "rule": made.rule,
                "cross_fitted": made.cross_fitted,
            },
            "made_by": made.made_by,
        },
    )


def _called(found: Predictions, path: str) -> str:
    facts = found.provenance
    return Path(facts["run"]).name if facts.get("run") else facts.get("model") or Path(path).stem


def decisions_table(routed: Routed) -> pa.Table:
    """A row a question: what the gate said, what was decided, and who chose what."""
    asked, decided = routed.asked, routed.decisions
    columns = asked.fast.columns
    unknown_Q = ~asked.known_Q
    return pa.table(
        {
            **{name: pa.array(columns[name]) for name in ("id", "subject", "grade", "skill")},
            "hard_probability": decided.hard_prob_Q,
            "threshold": decided.threshold_NQ[0],
            "deferred": decided.deferred_NQ[0],
            "fold": routed.fold_Q,
            "fast_choice": asked.fast.choice_Q,
            "tool_choice": pa.nulls(len(asked), pa.int64())
            if asked.tool is None
            else pa.array(asked.tool.choice_Q, mask=~asked.has_tool_Q),
            "answer": pa.array(asked.fast.answer_Q, mask=unknown_Q),
            "hard": pa.array(asked.hard_Q(routed.easy_at), mask=unknown_Q),
        }
    )


def write(routed: Routed, made: Figures, folder: Path) -> None:
    """Write `route.json`, `decisions.parquet` and `gate.json`; with a tool `predictions.parquet`,
    and `curve.svg` where there are figures.

    Raises:
        ClipstemError: if the folder exists.
    """
    with new_folder(folder) as partial:
        text = json.dumps(asdict(made), indent=1, ensure_ascii=False)
        (partial / "route.json").write_text(text + "\n")
        pq.write_table(decisions_table(routed), partial / "decisions.parquet")
        routed.gate.write(partial / "gate.json")
        if routed.asked.tool is not None:
            routed_predictions(routed, made).write(partial / "predictions.parquet")
        if made.scored is not None:
            (partial / "curve.svg").write_text(curve_svg(made, made.scored))


# ---------------------------------------------------------------------------- what people see


def show(made: Figures) -> None:
    """Print what was decided, what it comes to, and where it fails."""
    lines = [
        f"{made.deferred:,} of {made.questions:,} questions go to the tool "
        f"({made.rule}; {made.cost:.3g} {made.cost_unit} a question)"
    ]
    if made.scored is not None:
        console.print(_points_table(made, made.scored))
        console.print(_skills_table(made.scored))
        lines += list(_said(made, made.scored))
    for line in (*lines, *made.notes):
        console.print(line, highlight=False, soft_wrap=True)


def _said(made: Figures, scored: Scored) -> Iterator[str]:
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in made.log_loss.items())
    how = "each part by the others" if made.cross_fitted else "other questions"
    yield f"fitted on {made.fitted_on:,} ({how}); log-loss in nats: {losses}"
    yield (
        f"{percent(scored.hard)} % of {scored.questions:,} questions are hard for the fast model; "
        f"AUROC of the gate {_decimal(scored.hard_auroc)}, of the confidence "
        f"{_decimal(scored.confidence_auroc)}"
    )
    first = scored.points[0]
    for what, gain in (
        ("accuracy less the tool's", first.below_tool),
        ("above as many least confident questions, accuracy", first.accuracy_gain),
        ("above as many least confident questions, tool-usage accuracy", first.usage_gain),
    ):
        if gain is not None:
            yield f"{what}: {_points(gain)}"
    if scored.below_confidence:
        yield (
            f"surely below a threshold on the confidence at {scored.below_confidence} of "
            f"{len(scored.steps)} costs"
        )


def _decimal(value: float | None) -> str:
    return NOTHING if value is None else decimal(value)


def _points(gain: Difference) -> str:
    return f"{signed_percent(gain.value)} points {between(gain.interval)}"


def _points_table(made: Figures, scored: Scored) -> Table:
    table = Table(title="accuracy and cost")
    table.add_column("routed by", overflow="fold")
    for name in ("calls %", "cost", "accuracy %", "tool usage %"):
        table.add_column(name, justify="right")
    for name, calls, cost, accuracy in (
        ("always direct", 0.0, made.fast_cost, scored.fast_accuracy),
        ("always the tool", 1.0, made.tool_cost, scored.tool_accuracy),
    ):
        table.add_row(name, percent(calls), f"{cost:.3g}", percent(accuracy), "50.0")
    for point in scored.points:
        table.add_section()
        for name, it in (("gate", point.gate), ("confidence", point.confidence)):
            table.add_row(
                f"{name}: {point.rule}",
                percent(it.calls),
                f"{it.cost:.3g}",
                percent(it.accuracy),
                NOTHING if it.tool_usage is None else percent(it.tool_usage),
            )
    return table


def _skills_table(scored: Scored) -> Table:
    shown = scored.skills[:SHOWN_SKILLS]
    table = Table(title=f"most wrongly routed: {len(shown)} of {len(scored.skills):,} skills")
    table.add_column("skill", overflow="fold")
    names = ("questions", "hard %", "calls %", "hard kept", "easy deferred", "fast %", "tool %")
    for name in (*names, "routed %"):
        table.add_column(name, justify="right")
    for it in shown:
        table.add_row(
            it.skill,
            f"{it.questions:,}",
            percent(it.hard),
            percent(it.calls),
            f"{it.hard_direct:,}",
            f"{it.easy_tool:,}",
            *(percent(value) for value in (it.fast_accuracy, it.tool_accuracy, it.accuracy)),
        )
    return table


@verb("route", RouteConfig)
def main(config: RouteConfig) -> None:
    require_new(Path(config.out), "out=<folder>")  # before fitting, which takes a while
    environment = run.environment()
    routed = route(config, environment)
    made = figures(routed, config, environment)
    write(routed, made, Path(config.out))
    show(made)


if __name__ == "__main__":
    main()

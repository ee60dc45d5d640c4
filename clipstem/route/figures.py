"""How well questions were routed: all the figures of `route.json`.

Q questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clipstem.config import RouteConfig, plain
from clipstem.route import gate
from clipstem.route.asked import Asked
from clipstem.route.decisions import Decisions, Routed, Rule, rules
from clipstem.route.deferral import Difference, Graded, Outcome, deferred_first
from clipstem.route.gate import Flags, Floats
from clipstem.statistics import Interval, auc, numbered, wilson

ROUNDING = 1e-9  # of accuracies that are added up

STEPS = 20  # of the cost between the fast model alone and the tool always


@dataclass(frozen=True)
class Point:
    """One rule's routing, on questions that its threshold was not chosen on.

    Attributes:
        rule: by which the threshold was chosen on the fitting questions.
        threshold: deferred where a question is hard with at least this probability; the mean of
            the folds' where each has its own.
        promised_calls, promised_accuracy: on the fitting questions.
        gate: what the gate comes to.
        calls_interval: of its share of calls.
        below_tool: its accuracy less the tool's.
        above_fast: its accuracy less the fast model's.
        confidence: a threshold on the fast model's confidence, chosen in the same way.
        accuracy_gain, usage_gain: the gate less the least confident questions, as many as it has.
    """

    rule: str
    threshold: float
    promised_calls: float
    promised_accuracy: float
    gate: Outcome
    calls_interval: Interval
    below_tool: Difference
    above_fast: Difference
    confidence: Outcome
    accuracy_gain: Difference
    usage_gain: Difference | None


@dataclass(frozen=True)
class Step:
    """Accuracies at a mean cost of a question; None where nothing can cost that.

    The questions that are deferred for it are those of the largest scores: where each way to route
    could get, if its threshold were known. `random` asks nobody before it draws; `oracle` defers
    where the fast model is wrong and the tool right, and then where it does not matter.
    """

    cost: float
    gate: Outcome | None
    confidence: Outcome | None
    random: float | None
    oracle: float | None
    accuracy_gain: Difference | None
    usage_gain: Difference | None


@dataclass(frozen=True)
class Skill:
    """Where the gate succeeds and fails, as the first rule routes.

    Attributes:
        hard, calls: shares of its questions.
        tool_usage: None if all are easy, or all hard.
        hard_direct, easy_tool: how many hard ones were kept, and easy ones deferred.
    """

    subject: str
    skill: str
    questions: int
    hard: float
    calls: float
    tool_usage: float | None
    hard_direct: int
    easy_tool: int
    fast_accuracy: float
    tool_accuracy: float
    accuracy: float


@dataclass(frozen=True)
class Scored:
    """How well questions with known answers were routed.

    Attributes:
        questions: how many they are.
        hard: share that is hard for the fast model.
        fast_accuracy, tool_accuracy: always direct, and always the tool; with Wilson's intervals.
        only_fast_right, only_tool_right: shares of the questions.
        hard_auroc: how well the gate ranks hard above easy ones; `confidence_auroc` the same of
            the fast model's confidence. None if all are easy, or all hard.
        points: by each rule; the first one is how the predictions are routed.
        steps: the curve.
        below_confidence: steps at which the gate is surely below the confidence's threshold, in
            accuracy or tool-usage accuracy.
        skills: worst first.
    """

    questions: int
    hard: float
    fast_accuracy: float
    fast_interval: Interval
    tool_accuracy: float
    tool_interval: Interval
    only_fast_right: float
    only_tool_right: float
    hard_auroc: float | None
    confidence_auroc: float | None
    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    below_confidence: int
    skills: tuple[Skill, ...]


@dataclass(frozen=True)
class Figures:
    """What `route.json` holds.

    Attributes:
        questions, deferred, rule, cost: of the routed predictions, the cost as the mean of a
            question.
        fast_passes: how often the fast model answers a question before the gate decides.
        cross_fitted: whether the fitting questions are those that were routed, part by part.
        log_loss: of each way to fit the gate, nats, on questions that were left out.
        scored: None if no answer is known, or the tool does not answer all of those. What is
            cross-fitted is scored where the tool answers.
    """

    fast: str
    tool: str | None
    samples: tuple[str, ...]
    questions: int
    deferred: int
    rule: str
    cost: float
    cost_unit: str
    fast_cost: float
    tool_cost: float
    fast_passes: int
    cross_fitted: bool
    easy_at: float
    fitted_on: int
    method: str
    log_loss: dict[str, float]
    scored: Scored | None
    notes: tuple[str, ...]
    settings: dict[str, Any]
    made_by: dict[str, Any]


def figures(routed: Routed, config: RouteConfig, environment: dict[str, Any]) -> Figures:
    """All that is known of a routing."""
    asked, fitted = routed.asked, routed.gate
    deferred_Q = routed.decisions.deferred_NQ[0]
    passes = 1 + len(fitted.samples)
    notes = list(routed.notes)
    scored = None
    cross_fitted = config.gate is None and config.fit_fast is None
    known_Q = asked.known_Q
    if asked.tool is None:
        notes.append("no tool was given: these are the questions to ask it")
    elif missing := int((deferred_Q & ~asked.has_tool_Q).sum()):
        notes.append(
            f"{missing:,} deferred questions have no answer of the tool's: the fast one stands"
        )
    if not known_Q.any():
        notes.append("no answer is known, so there is no accuracy")
    elif asked.tool is not None and not (cross_fitted or asked.has_tool_Q[known_Q].all()):
        # It may have answered the deferred ones only: accuracies of these would say nothing.
        notes.append("the tool has not answered all questions, so there is no accuracy")
    elif asked.tool is not None:
        if unscored := int((~asked.usable_Q).sum()):
            notes.append(
                f"{unscored:,} questions without a known answer or one of the tool's: routed, not "
                "scored"
            )
        scored = score(routed, config)
    return Figures(
        fast=config.fast,
        tool=config.tool,
        samples=asked.sample_names,
        questions=len(asked),
        deferred=int(deferred_Q.sum()),
        rule=rules(config)[0].name,
        cost=passes * config.fast_cost + float(deferred_Q.mean()) * config.tool_cost,
        cost_unit=config.cost_unit,
        fast_cost=config.fast_cost,
        tool_cost=config.tool_cost,
        fast_passes=passes,
        cross_fitted=cross_fitted,
        easy_at=routed.easy_at,
        fitted_on=fitted.questions,
        method=fitted.method,
        log_loss=fitted.log_loss,
        scored=scored,
        notes=tuple(notes),
        settings=plain(config),
        made_by=environment,
    )


def score(routed: Routed, config: RouteConfig) -> Scored:
    """The figures over the questions whose answer is known, and that the tool has answered."""
    here_P = np.flatnonzero(routed.asked.usable_Q)
    asked = routed.asked.at(here_P)
    decided = Decisions(
        **{name: values[..., here_P] for name, values in vars(routed.decisions).items()}
    )
    hard_Q = asked.hard_Q(routed.easy_at)
    graded = Graded(asked.fast_right_Q, asked.tool_right_Q, hard_Q, config.repeats, config.seed)
    unsure_Q = 1 - gate.confidence(asked.fast)
    passes = 1 + len(routed.gate.samples)
    steps = tuple(_steps(graded, decided.hard_prob_Q, unsure_Q, passes, config))
    return Scored(
        questions=len(asked),
        hard=float(hard_Q.mean()),
        fast_accuracy=float(graded.fast_right_Q.mean()),
        fast_interval=wilson(graded.fast_right_Q.sum(), len(asked)),
        tool_accuracy=float(graded.tool_right_Q.mean()),
        tool_interval=wilson(graded.tool_right_Q.sum(), len(asked)),
        only_fast_right=float((graded.fast_right_Q & ~graded.tool_right_Q).mean()),
        only_tool_right=float((graded.tool_right_Q & ~graded.fast_right_Q).mean()),
        hard_auroc=_auroc(decided.hard_prob_Q, hard_Q),
        confidence_auroc=_auroc(unsure_Q, hard_Q),
        points=tuple(
            _point(graded, decided, number, rule, unsure_Q, passes, config)
            for number, rule in enumerate(rules(config))
        ),
        steps=steps,
        below_confidence=sum(
            any(gain is not None and gain.interval.high < -ROUNDING for gain in gains)
            for gains in ((step.accuracy_gain, step.usage_gain) for step in steps)
        ),
        skills=_skills(asked, graded, decided.deferred_NQ[0]),
    )


def _auroc(score_Q: Floats, hard_Q: Flags) -> float | None:
    found = auc(score_Q, hard_Q)
    return None if found is None else found.value


def _point(
    graded: Graded,
    decided: Decisions,
    number: int,
    rule: Rule,
    unsure_Q: Floats,
    passes: int,
    config: RouteConfig,
) -> Point:
    deferred_Q = decided.deferred_NQ[number]
    questions = len(deferred_Q)
    as_many_Q = deferred_first(unsure_Q, float(deferred_Q.mean()))
    outcome = partial(graded.outcome, tool_cost=config.tool_cost)
    return Point(
        rule=rule.name,
        threshold=float(decided.threshold_NQ[number].mean()),
        promised_calls=float(decided.promised_calls_NQ[number].mean()),
        promised_accuracy=float(decided.promised_accuracy_NQ[number].mean()),
        gate=outcome(deferred_Q, passes * config.fast_cost),
        calls_interval=wilson(int(deferred_Q.sum()), questions),
        below_tool=graded.accuracy_difference(deferred_Q, np.ones(questions)),
        above_fast=graded.accuracy_difference(deferred_Q, np.zeros(questions)),
        confidence=outcome(decided.confidence_NQ[number], config.fast_cost),
        accuracy_gain=graded.accuracy_difference(deferred_Q, as_many_Q),
        usage_gain=graded.usage_difference(deferred_Q, as_many_Q),
    )


def _steps(
    graded: Graded, hard_prob_Q: Floats, unsure_Q: Floats, passes: int, config: RouteConfig
) -> Iterator[Step]:
    fast, tool = config.fast_cost, config.tool_cost
    gain_Q = graded.tool_right_Q.astype(np.int64) - graded.fast_right_Q
    for cost in np.linspace(fast, passes * fast + tool, STEPS + 1).tolist():
        made: list[Floats | None] = []
        for score_Q, before in ((hard_prob_Q, passes * fast), (unsure_Q, fast), (gain_Q, fast)):
            calls = (cost - before) / tool
            made.append(deferred_first(score_Q, min(calls, 1.0)) if calls > -1e-9 else None)
        gate_Q, confidence_Q, oracle_Q = made
        assert confidence_Q is not None and oracle_Q is not None
        blind = (cost - fast) / (tool - fast) if tool > fast else None
        yield Step(
            cost=cost,
            gate=None if gate_Q is None else graded.outcome(gate_Q, passes * fast, tool),
            confidence=graded.outcome(confidence_Q, fast, tool),
            random=None
            if blind is None
            else graded.outcome(np.full(len(gain_Q), min(blind, 1.0)), fast, tool).accuracy,
            oracle=graded.outcome(oracle_Q, fast, tool).accuracy,
            accuracy_gain=None
            if gate_Q is None
            else graded.accuracy_difference(gate_Q, confidence_Q),
            usage_gain=None if gate_Q is None else graded.usage_difference(gate_Q, confidence_Q),
        )


def _skills(asked: Asked, graded: Graded, deferred_Q: Flags) -> tuple[Skill, ...]:
    columns = asked.fast.columns
    names, number_Q = numbered(zip(columns["subject"], columns["skill"], strict=True))
    found = []
    for number, (subject, skill) in enumerate(names):
        here_Q = number_Q == number
        only = replace(
            graded,
            fast_right_Q=graded.fast_right_Q[here_Q],
            tool_right_Q=graded.tool_right_Q[here_Q],
            hard_Q=graded.hard_Q[here_Q],
        )
        it = only.outcome(deferred_Q[here_Q], 0.0, 0.0)
        found.append(
            Skill(
                subject=subject,
                skill=skill,
                questions=int(here_Q.sum()),
                hard=float(only.hard_Q.mean()),
                calls=it.calls,
                tool_usage=it.tool_usage,
                hard_direct=round(it.hard_direct),
                easy_tool=round(it.easy_tool),
                fast_accuracy=float(only.fast_right_Q.mean()),
                tool_accuracy=float(only.tool_right_Q.mean()),
                accuracy=it.accuracy,
            )
        )
    return tuple(sorted(found, key=lambda it: -(it.hard_direct + it.easy_tool)))


CURVE_ALT = (
    "Accuracy by the mean cost of a question: the gate, a threshold on the confidence, random "
    "deferral, and an oracle."
)


def curve_svg(made: Figures, scored: Scored) -> str:
    """The cost–accuracy curve; random deferral goes from always direct to always the tool."""
    from clipstem import charts  # takes a while, and not every routing has a curve

    def percent(accuracy: float | None) -> float:
        return float("nan") if accuracy is None else 100 * accuracy

    def of(outcome: Outcome | None) -> float:
        return percent(None if outcome is None else outcome.accuracy)

    steps = scored.steps
    return charts.line(
        [step.cost for step in steps],
        {
            "gate": [of(step.gate) for step in steps],
            "confidence threshold": [of(step.confidence) for step in steps],
            "random": [percent(step.random) for step in steps],
            "oracle": [percent(step.oracle) for step in steps],
        },
        f"mean cost of a question, {made.cost_unit}",
        "accuracy, %",
        CURVE_ALT,
    )

"""Which questions are deferred: gates, and thresholds that are chosen on fitting questions only.

Q questions, N rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipstem.config import RouteConfig
from clipstem.console import progress_bar
from clipstem.question import ClipstemError
from clipstem.route import fitting, gate
from clipstem.route.asked import Asked, Ints, gather
from clipstem.route.fitting import Fitting
from clipstem.route.gate import Curve, Flags, Floats, Gate


@dataclass(frozen=True)
class Rule:
    """How a point is chosen on a curve of the fitting questions."""

    name: str
    choose: Callable[[Curve, int], int]  # of a curve, with so many passes of the fast model


def rules(config: RouteConfig) -> list[Rule]:
    """The first one decides how questions are routed."""

    def within_budget(curve: Curve, passes: int) -> int:
        assert config.budget is not None
        return curve.within((config.budget - passes * config.fast_cost) / config.tool_cost)

    def near_tool(curve: Curve, _: int) -> int:
        return curve.losing_at_most(config.points_below_tool / 100)

    points = f"{config.points_below_tool:g} point{'' if config.points_below_tool == 1 else 's'}"
    near = Rule(f"at most {points} below the tool", near_tool)
    usage = Rule("best tool-usage accuracy", lambda curve, _: curve.best_usage())
    if config.budget is None:
        return [near, usage]
    return [Rule(f"{config.budget:g} {config.cost_unit} a question", within_budget), near, usage]


@dataclass(frozen=True)
class Decisions:
    """What is decided about each question without its answer.

    Attributes:
        hard_prob_Q: how probably it is hard, as the gate says.
        deferred_NQ: whether it is deferred, by each rule.
        confidence_NQ: the same by a threshold on the fast model's confidence, chosen the same way.
        threshold_NQ: the gate's threshold.
        promised_calls_NQ, promised_accuracy_NQ: what the rule had on the fitting questions.
    """

    hard_prob_Q: Floats
    deferred_NQ: Flags
    confidence_NQ: Flags
    threshold_NQ: Floats
    promised_calls_NQ: Floats
    promised_accuracy_NQ: Floats


def decide(fitted: Gate, asked: Asked, config: RouteConfig) -> Decisions:
    """Apply a gate, with the thresholds that the rules choose on its fitting questions."""
    hard_prob_Q = fitted.hard_prob_Q(asked.fast, asked.samples)
    unsure_Q = 1 - gate.confidence(asked.fast)
    passes = 1 + len(fitted.samples)
    chosen = [rule.choose(fitted.curve, passes) for rule in rules(config)]
    plain = [rule.choose(fitted.confidence_curve, 1) for rule in rules(config)]
    thresholds = [fitted.curve.threshold_T[place] for place in chosen]
    others = [fitted.confidence_curve.threshold_T[place] for place in plain]

    def everywhere(values: Sequence[float]) -> Floats:
        return np.repeat(np.array(values)[:, None], len(asked), axis=1)

    return Decisions(
        hard_prob_Q=hard_prob_Q,
        deferred_NQ=np.stack([hard_prob_Q >= threshold for threshold in thresholds]),
        confidence_NQ=np.stack([unsure_Q >= threshold for threshold in others]),
        threshold_NQ=everywhere(thresholds),
        promised_calls_NQ=everywhere([fitted.curve.calls_T[place] for place in chosen]),
        promised_accuracy_NQ=everywhere([fitted.curve.accuracy_T[place] for place in chosen]),
    )


@dataclass(frozen=True)
class Routed:
    """Routed questions, and all that is needed to say how well.

    Attributes:
        gate: fitted on all fitting questions, to be kept.
        fold_Q: the part of each question; one gate decided for each part. −1 where no part's gate
            could be scored: `gate` decided.
        easy_at: what share of right answers makes a question easy.
        notes: what a reader of the figures should know.
    """

    asked: Asked
    decisions: Decisions
    gate: Gate
    fold_Q: Ints
    easy_at: float
    notes: tuple[str, ...]


def route(config: RouteConfig, environment: dict[str, Any]) -> Routed:
    """Fit a gate or read one, and decide which questions are deferred.

    Raises:
        ClipstemError: if a file is not as expected, or the gate cannot be fitted.
    """
    asked = gather(config.fast, config.tool, config.samples)
    if config.gate is not None:
        fitted = gate.read(Path(config.gate))
        _refuse_other_samples(fitted, asked, config)
        config.check_budget(1 + len(fitted.samples))
        return _applied(fitted, asked, config, asked.notes)
    if config.fit_fast is None:
        return _cross_fitted(asked, config, environment)
    others = gather(config.fit_fast, config.fit_tool, config.fit_samples)
    if config.agreement and others.sample_names != asked.sample_names:
        raise ClipstemError(
            f"samples are {_listed(asked.sample_names)}, fit_samples {_listed(others.sample_names)}"
            "; expected the same in the same order, because the gate learns how they agree"
        )
    both = set(asked.fast.columns["id"]) & set(others.fast.columns["id"])
    if both:
        raise ClipstemError(
            f"{len(both):,} questions of {config.fast} are in {config.fit_fast} too, such as "
            f"'{min(both)}'; expected other ones, or no fit_fast for parts in turn"
        )
    usable_P, left_out = _usable(others)
    if len(others.samples) != len(asked.samples):
        left_out.append(
            f"what is hard is told by {1 + len(others.samples)} answers on the fitting questions, "
            f"by {1 + len(asked.samples)} here"
        )
    with progress_bar("fitting", fitting.fits(config.folds, config.method)) as progress:
        fitted = _fitted(others.at(usable_P), config, environment, progress)
    return _applied(fitted, asked, config, (*asked.notes, *others.notes, *left_out))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _refuse_other_samples(fitted: Gate, asked: Asked, config: RouteConfig) -> None:
    if fitted.samples and fitted.samples != asked.sample_names:
        raise ClipstemError(
            f"{config.gate}: sees the samples {_listed(fitted.samples)}, in this order, but "
            f"samples are {_listed(asked.sample_names)}"
        )


def _usable(asked: Asked) -> tuple[Ints, list[str]]:
    """The places of the questions that a gate can be fitted on, and what is said of the others."""
    usable_P = np.flatnonzero(asked.usable_Q)
    if not len(usable_P):
        raise ClipstemError(
            f"none of the {len(asked):,} fitting questions has a known answer and one of the "
            "tool's; a gate is fitted on a split that has answers"
        )
    left_out = len(asked) - len(usable_P)
    notes = [
        f"{left_out:,} questions without a known answer or one of the tool's: no gate is fitted on "
        "them"
    ]
    return usable_P, notes if left_out else []


def _fitted(
    asked: Asked,
    config: RouteConfig,
    environment: dict[str, Any],
    progress: Callable[[int], None],
) -> Gate:
    seen = config.agreement
    given = Fitting(
        fast=asked.fast,
        samples=asked.samples if seen else (),
        hard_Q=asked.hard_Q(config.easy_at),
        tool_right_Q=asked.tool_right_Q,
        sample_names=asked.sample_names if seen else (),
        easy_at=config.easy_at,
    )
    return fitting.fit(given, config.method, config.folds, config.seed, environment, progress)


def _applied(fitted: Gate, asked: Asked, config: RouteConfig, notes: tuple[str, ...]) -> Routed:
    ours, theirs = asked.fast.provenance.get("weights_sha256"), fitted.fast_weights_sha256
    if ours and theirs and ours != theirs:
        raise ClipstemError(
            f"{config.fast}: is of the weights {ours[:12]}, the gate was fitted on {theirs[:12]}; "
            "each fast model needs a gate of its own"
        )
    unseen = tuple(
        f"{count:,} questions of a {name} that no fitting question has"
        for name, count in fitted.unseen_words(asked.fast).items()
    )
    decisions = decide(fitted, asked, config)
    whole_Q = np.zeros(len(asked), np.int64)
    return Routed(asked, decisions, fitted, whole_Q, fitted.easy_at, (*notes, *unseen))


def _cross_fitted(asked: Asked, config: RouteConfig, environment: dict[str, Any]) -> Routed:
    """Each part is routed by a gate that was fitted, and its thresholds chosen, on the others.

    The gate that is kept for new questions is fitted on all, and routes those that no gate can be
    fitted on: it has not seen them either.
    """
    usable_P, left_out = _usable(asked)
    usable = asked.at(usable_P)
    fold_Q = np.full(len(asked), -1)
    fold_Q[usable_P] = _folds(usable.hard_Q(config.easy_at), config.folds, config.seed)
    found: list[Decisions] = []
    places = [np.flatnonzero(fold_Q == fold) for fold in range(config.folds)]
    total = (config.folds + 1) * fitting.fits(config.folds, config.method)
    with progress_bar("fitting", total) as progress:
        for here_P in places:
            rest = asked.at(np.setdiff1d(usable_P, here_P))
            fitted = _fitted(rest, config, environment, progress)
            found.append(decide(fitted, asked.at(here_P), config))
        kept = _fitted(usable, config, environment, progress)
    if left_out:
        places.append(np.flatnonzero(fold_Q < 0))
        found.append(decide(kept, asked.at(places[-1]), config))
    back_Q = np.argsort(np.concatenate(places))
    decisions = Decisions(
        **{
            name: np.concatenate([getattr(it, name) for it in found], axis=-1)[..., back_Q]
            for name in vars(found[0])
        }
    )
    notes = (*asked.notes, *left_out)
    return Routed(asked, decisions, kept, fold_Q, config.easy_at, notes)


def _folds(hard_Q: Flags, folds: int, seed: int) -> Ints:
    """A part for each question, with the same share of hard ones in each."""
    rng = np.random.default_rng(seed)
    order_Q = np.lexsort((rng.permutation(len(hard_Q)), hard_Q))
    fold_Q = np.empty(len(hard_Q), np.int64)
    fold_Q[order_Q] = np.arange(len(hard_Q)) % folds
    return fold_Q

"""What an experiment's predictions amount to: its figures, and the Result line of its header.

A predictions file is known by its run and name, as in "realset_mini_0/valid". Accuracies are
fractions in the figures and per cent in the line; Q questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.console import MASTERED, accuracy_of_skill
from clipstem.metrics import Summary, summarize
from clipstem.prediction import Predictions
from clipstem.statistics import (
    Interval,
    paired_difference,
    these_skills_mean_interval,
)

Found = Mapping[str, Predictions]
Figures = dict[str, Any]


def headline(made: Predictions) -> Summary:
    return summarize(made.probs_QK, made.answer_Q, made.num_options_Q, made.columns["subject"])


def of_one_run(valid: Predictions) -> Figures:
    """The headline of a run, on `valid`."""
    summary = headline(valid)
    skills = accuracy_of_skill(valid)
    return {
        "questions": summary.questions,
        "macro": rounded(summary.macro),
        "micro": rounded(summary.micro),
        "chance_macro": rounded(summary.chance_macro),
        "chance_micro": rounded(summary.chance_micro),
        "nll": rounded(summary.nll),
        "subjects": {
            name: [rounded(a), rounded(c), n] for name, (a, c, n) in summary.subjects.items()
        },
        "skills": {name: rounded(value) for name, value in skills.items()},
        "mastered": sum(value >= MASTERED for value in skills.values()),
        "temperature": rounded(valid.provenance["temperature"]),
        "result": f"valid macro {percent(summary.macro)} % (chance {percent(summary.chance_macro)})"
        f", micro {percent(summary.micro)} % (chance {percent(summary.chance_micro)})",
    }


def of_realset_mini(found: Found) -> Figures:
    """The mean of the seeds on `valid`, with the interval for other questions of these skills.

    One skill holds most of the questions, so nothing can be said of other skills.
    """
    seeds = runs(found, r"realset_mini_\d/valid")
    right_Q, skills = mean_right_Q(seeds), seeds[0].columns["skill"]
    interval = these_skills_mean_interval(right_Q, skills)
    accuracies = [float(right_of(it).mean()) for it in seeds]
    chance = float((1 / seeds[0].num_options_Q).mean())
    return {
        "micro": rounded(right_Q.mean()),
        "interval": ends(interval),
        "seeds": [rounded(accuracy) for accuracy in accuracies],
        "chance_micro": rounded(chance),
        "result": f"valid micro {percent(right_Q.mean())} % {shown(interval)}, mean of "
        f"{len(seeds)} seeds ({percent(min(accuracies))} to {percent(max(accuracies))}); chance "
        f"{percent(chance)}",
    }


def of_realset_mini_blind(found: Found) -> Figures:
    """The same without pictures, and what the pictures add, question by question."""
    seeds, seeing = (
        runs(found, r"realset_mini_blind_\d/valid"),
        runs(found, r"realset_mini_\d/valid"),
    )
    right_Q = mean_right_Q(seeds)
    interval = these_skills_mean_interval(right_Q, seeds[0].columns["skill"])
    added = change(seeing, seeds, of_these_skills=True)
    return {
        "micro": rounded(right_Q.mean()),
        "interval": ends(interval),
        "seeds": [rounded(right_of(it).mean()) for it in seeds],
        "pictures_add": rounded(added.difference),
        "pictures_add_interval": ends(added.interval),
        "result": f"valid micro {percent(right_Q.mean())} % {shown(interval)}, mean of "
        f"{len(seeds)} seeds; pictures add {added}",
    }


def of_forgetting(found: Found) -> Figures:
    """Gains on the ten skills, losses on the thirty, and what the averages change on the ten."""

    def accuracy(pattern: str) -> float:
        return float(mean_right_Q(runs(found, pattern)).mean())

    ten, thirty = accuracy("forty/ten"), accuracy("forty/thirty")
    tuned = {name: accuracy(rf"{name}_\d/valid") for name in ("plain", "wise_ft", "ema", "soup")}
    after = {name: accuracy(rf"{name}_\d/thirty") for name in ("plain", "wise_ft")}
    gain = (tuned["wise_ft"] - ten) / (tuned["plain"] - ten)
    loss = (thirty - after["wise_ft"]) / (thirty - after["plain"])
    plain = runs(found, r"plain_\d/valid")
    changes = {name: change(runs(found, rf"{name}_\d/valid"), plain) for name in ("ema", "soup")}
    return {
        "ten": {"before": rounded(ten), **{name: rounded(it) for name, it in tuned.items()}},
        "thirty": {"before": rounded(thirty), **{name: rounded(it) for name, it in after.items()}},
        "wise_ft_keeps_of_gain": rounded(gain),
        "wise_ft_loses_of_loss": rounded(loss),
        "changes": {name: it.figures for name, it in changes.items()},
        "result": f"mean of {len(plain)} seeds. The ten: {percent(ten)} % before, "
        f"{percent(tuned['plain'])} tuned, {percent(tuned['wise_ft'])} WiSE-FT ({percent(gain)} % "
        f"of the gain); the thirty: {percent(thirty)}, {percent(after['plain'])}, "
        f"{percent(after['wise_ft'])} ({percent(loss)} % of the loss); on the ten EMA adds "
        f"{changes['ema']}, soup {changes['soup']}",
    }


def of_distill(found: Found) -> Figures:
    """What students keep of their teacher's gain over chance, on `valid`; macro over subjects."""
    (teacher,) = runs(found, "quickstart/students_valid")
    students = {name: runs(found, rf"{name}_\d/valid") for name in ("distill", "tenth")}
    taught = headline(teacher)
    seeds = {name: [headline(it).macro for it in every] for name, every in students.items()}
    accuracy = {name: float(np.mean(every)) for name, every in seeds.items()}
    kept = {
        name: (it - taught.chance_macro) / (taught.macro - taught.chance_macro)
        for name, it in accuracy.items()
    }
    added = change(students["distill"], students["tenth"])
    parameters = [it.provenance["parameters"] for it in (students["distill"][0], teacher)]
    return {
        "questions": taught.questions,
        "parameters": {"student": parameters[0], "teacher": parameters[1]},
        "teacher": rounded(taught.macro),
        "chance": rounded(taught.chance_macro),
        "accuracy": {name: rounded(it) for name, it in accuracy.items()},
        "seeds": {name: [rounded(it) for it in every] for name, every in seeds.items()},
        "gain_kept": {name: rounded(it) for name, it in kept.items()},
        "distill_adds_to": {"tenth": added.figures},
        "result": f"mean of {len(seeds['distill'])} seeds, valid macro: teacher "
        f"{percent(taught.macro)} % (chance {percent(taught.chance_macro)}), a student of "
        f"{percent(parameters[0] / parameters[1])} % of its parameters with a tenth of the labels "
        f"and the teacher {percent(accuracy['distill'])} ({percent(kept['distill'])} % of the "
        f"gain), on the tenth alone {percent(accuracy['tenth'])} (the teacher adds {added})",
    }


def of_picture_fit(found: Found) -> Figures:
    """Each way to fit a picture into a square, on `valid`, and its change from the crop."""
    ways = {name: [found[f"picture_fit_{name}/valid"]] for name in ("crop", "pad", "squash")}
    accuracy = {name: float(mean_right_Q(it).mean()) for name, it in ways.items()}
    changes = {name: change(ways[name], ways["crop"]) for name in ("pad", "squash")}
    return {
        "micro": {name: rounded(it) for name, it in accuracy.items()},
        "changes": {name: it.figures for name, it in changes.items()},
        "result": f"valid micro {percent(accuracy['crop'])} % with crop; "
        + "; ".join(f"{name} adds {it}" for name, it in changes.items()),
    }


def of_route(routed: Mapping[str, Figures]) -> Figures:
    """Routings of questions drawn anew, beside a threshold on the confidence."""
    cases = {name: _of_routing(made) for name, made in routed.items()}
    said = []
    for name, it in cases.items():
        gate, gain = it["gate"], it["accuracy_gain"]
        said.append(
            f"{name}: {percent(it['fast'])} % alone, {percent(it['tool'])} the tool, "
            f"{percent(gate['accuracy'])} with {percent(gate['calls'])} % of its calls, "
            f"{points(it['below_tool'][0])} {shown(it['below_tool'][1:])} (a "
            f"confidence threshold {percent(it['confidence']['accuracy'])} with "
            f"{percent(it['confidence']['calls'])}), tool-usage accuracy "
            f"{percent(gate['tool_usage'])}; at the same calls the gate adds "
            f"{points(gain[0])} {shown(gain[1:])}"
        )
    return {"routings": cases, "result": "; ".join(said)}


def _of_routing(made: Figures) -> Figures:
    scored = made["scored"]
    point = scored["points"][0]

    def outcome(name: str) -> Figures:
        kept = ("calls", "accuracy", "tool_usage", "easy_direct", "easy_tool", "hard_direct")
        return {key: rounded(point[name][key]) for key in (*kept, "hard_tool")}

    def gain(of: Figures) -> list[float]:
        return [rounded(it) for it in (of["value"], of["interval"]["low"], of["interval"]["high"])]

    return {
        "rule": point["rule"],
        "questions": scored["questions"],
        "fitted_on": made["fitted_on"],
        "method": made["method"],
        "samples": made["samples"],
        "hard": rounded(scored["hard"]),
        "fast": rounded(scored["fast_accuracy"]),
        "tool": rounded(scored["tool_accuracy"]),
        "promised_calls": rounded(point["promised_calls"]),
        "gate": outcome("gate"),
        "calls_interval": [rounded(it) for it in point["calls_interval"].values()],
        "confidence": outcome("confidence"),
        "below_tool": gain(point["below_tool"]),
        "accuracy_gain": gain(point["accuracy_gain"]),
        "usage_gain": gain(point["usage_gain"]),
        "hard_auroc": rounded(scored["hard_auroc"]),
        "confidence_auroc": rounded(scored["confidence_auroc"]),
        "steps": [
            {
                "calls": rounded(it["cost"]),
                **{
                    name: rounded(it[name]["accuracy"] if isinstance(it[name], dict) else it[name])
                    for name in ("gate", "confidence", "random", "oracle")
                },
                "usage_gate": rounded(it["gate"]["tool_usage"]),
                "usage_confidence": rounded(it["confidence"]["tool_usage"]),
                "accuracy_gain": gain(it["accuracy_gain"]),
                "usage_gain": gain(it["usage_gain"]),
            }
            for it in scored["steps"]
        ],
        "steps_below_confidence": scored["below_confidence"],
        "most_wrongly_routed": [
            {
                key: rounded(value) if isinstance(value, float) else value
                for key, value in skill.items()
            }
            for skill in scored["skills"][:5]
        ],
    }


ALTERED = ("case", "word_drops", "greyscale", "rotation", "crop", "noise")


def of_generalisation(found: Found) -> Figures:
    """Accuracy on questions drawn anew, altered ones, and skills that were never seen."""
    run = "generalisation"
    valid = found[f"{run}/valid"]
    accuracy = {
        which: float(right_of(found[f"{run}/{which}"]).mean())
        for which in ("valid", "anew", "others")
    }
    others = found[f"{run}/others"]
    chance = {
        which: float((1 / found[f"{run}/{which}"].num_options_Q).mean())
        for which in ("valid", "others")
    }
    # Eight skills are too few to say anything of others: the intervals are of other questions.
    interval = these_skills_mean_interval(right_of(others), others.columns["skill"])
    drops = {
        name: change([found[f"{run}/valid-{name}"]], [valid], of_these_skills=True)
        for name in ALTERED
    }
    worst = min(drops, key=lambda name: drops[name].difference)
    least = max(drops, key=lambda name: drops[name].difference)
    return {
        "micro": {which: rounded(value) for which, value in accuracy.items()},
        "chance": {which: rounded(value) for which, value in chance.items()},
        "others_interval": ends(interval),
        "others_skills": {
            skill: rounded(value) for skill, value in accuracy_of_skill(others).items()
        },
        "drops": {name: it.figures for name, it in drops.items()},
        "result": f"{percent(accuracy['valid'])} % on its skills (chance "
        f"{percent(chance['valid'])}), {percent(accuracy['anew'])} drawn anew; altered from "
        f"{drops[least]} ({least.replace('_', ' ')}) to {drops[worst]} "
        f"({worst.replace('_', ' ')}); {percent(accuracy['others'])} % {shown(interval)} on skills "
        f"it has never seen (chance {percent(chance['others'])})",
    }


CLAIMS: dict[str, Callable[[Found], Figures]] = {
    "realset_mini": of_realset_mini,
    "realset_mini_blind": of_realset_mini_blind,
    "forgetting": of_forgetting,
    "picture_fit": of_picture_fit,
    "generalisation": of_generalisation,
    "distill": of_distill,
}
"""Experiments of several runs; any other has one, of its own name."""

ROUTED: dict[str, Callable[[Mapping[str, Figures]], Figures]] = {
    "route": of_route,
    "route_eight": of_route,
}
"""Those of routings: of what each `routes/<name>/route.json` says, by that name."""


def figures(experiment: str, found: Found, routed: Mapping[str, Figures] | None = None) -> Figures:
    """What an experiment has come to, from all the predictions and routings that there are."""
    if experiment in ROUTED:
        return ROUTED[experiment](routed or {})
    if experiment in CLAIMS:
        return CLAIMS[experiment](found)
    return of_one_run(found[f"{experiment}/valid"])


def runs(found: Found, pattern: str) -> list[Predictions]:
    """The predictions of the runs whose name matches, in the order of their names."""
    return [found[name] for name in sorted(found) if re.fullmatch(pattern, name)]


def right_of(predictions: Predictions) -> NDArray[np.bool_]:
    return predictions.choice_Q == predictions.answer_Q


def mean_right_Q(seeds: Sequence[Predictions]) -> NDArray[np.float64]:
    """The share of the runs that answer each question rightly."""
    assert len({tuple(it.columns["id"]) for it in seeds}) == 1, "not the same questions"
    return np.mean([right_of(it) for it in seeds], axis=0)


@dataclass(frozen=True)
class Change:
    """A difference of accuracies, question by question, with its 95 % interval."""

    difference: float
    interval: Interval | None

    @property
    def figures(self) -> Figures:
        return {"difference": rounded(self.difference), "interval": ends(self.interval)}

    def __str__(self) -> str:
        return f"{points(self.difference)} {shown(self.interval)}"


def change(
    of: Sequence[Predictions], beside: Sequence[Predictions], of_these_skills: bool = False
) -> Change:
    """What runs gain over others that were asked the same questions.

    The interval is for other skills like these, or for other questions `of_these_skills`.
    """
    right_Q, beside_Q = mean_right_Q(of), mean_right_Q(beside)
    assert of[0].columns["id"] == beside[0].columns["id"], "not the same questions"
    skills = of[0].columns["skill"]
    paired = paired_difference(right_Q, beside_Q, skills)
    if of_these_skills:
        interval = these_skills_mean_interval(right_Q - beside_Q, skills)
        return Change(paired.difference, interval)
    return Change(paired.difference, paired.interval)


def rounded(value: float) -> float:
    """As figures are kept: fine enough to be rounded once more where they are shown."""
    return round(float(value), 6)


def ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [rounded(interval.low), rounded(interval.high)]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    return f"{signed(difference)} points"


def signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def shown(interval: Interval | Sequence[float] | None) -> str:
    """A 95 % interval, or its two ends, in per cent."""
    if interval is None:
        return "(no interval: too few skills)"
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else interval
    return f"[{percent(low)}, {percent(high)}]"

"""What an experiment's predictions amount to: its figures, and the Result line of its header.

A predictions file is known by its run and name, as in "realset_mini_0/valid". Accuracies are
fractions in the figures and per cent in the line; Q questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.console import MASTERED, accuracy_of_skill
from clipstem.metrics import summarize
from clipstem.prediction import Predictions
from clipstem.statistics import (
    Interval,
    paired_difference,
    skills_like_these_interval,
    these_skills_mean_interval,
)

Found = Mapping[str, Predictions]
Figures = dict[str, Any]


def of_one_run(valid: Predictions) -> Figures:
    """The headline of a run, on `valid`."""
    summary = summarize(
        valid.probs_QK, valid.answer_Q, valid.num_options_Q, valid.columns["subject"]
    )
    skills = accuracy_of_skill(valid)
    return {
        "questions": summary.questions,
        "macro": round(summary.macro, 4),
        "micro": round(summary.micro, 4),
        "chance_macro": round(summary.chance_macro, 4),
        "chance_micro": round(summary.chance_micro, 4),
        "nll": round(summary.nll, 4),
        "subjects": {
            name: [round(a, 4), round(c, 4), n] for name, (a, c, n) in summary.subjects.items()
        },
        "skills": {name: round(value, 4) for name, value in skills.items()},
        "mastered": sum(value >= MASTERED for value in skills.values()),
        "temperature": round(valid.provenance["temperature"], 4),
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
    right_Q, seeing_Q = mean_right_Q(seeds), mean_right_Q(seeing)
    skills = seeds[0].columns["skill"]
    interval = these_skills_mean_interval(right_Q, skills)
    added = float((seeing_Q - right_Q).mean())
    added_interval = these_skills_mean_interval(seeing_Q - right_Q, skills)
    return {
        "micro": rounded(right_Q.mean()),
        "interval": ends(interval),
        "seeds": [rounded(right_of(it).mean()) for it in seeds],
        "pictures_add": rounded(added),
        "pictures_add_interval": ends(added_interval),
        "result": f"valid micro {percent(right_Q.mean())} % {shown(interval)}, mean of "
        f"{len(seeds)} seeds; pictures add {points(added)} {shown(added_interval)}",
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
    changes = {}
    for name in ("ema", "soup"):
        other_Q = mean_right_Q(runs(found, rf"{name}_\d/valid"))
        changes[name] = paired_difference(other_Q, mean_right_Q(plain), plain[0].columns["skill"])
    return {
        "ten": {"before": rounded(ten), **{name: rounded(it) for name, it in tuned.items()}},
        "thirty": {"before": rounded(thirty), **{name: rounded(it) for name, it in after.items()}},
        "wise_ft_keeps_of_gain": rounded(gain),
        "wise_ft_loses_of_loss": rounded(loss),
        "changes": {
            name: {"difference": rounded(it.difference), "interval": ends(it.interval)}
            for name, it in changes.items()
        },
        "result": f"mean of {len(plain)} seeds. The ten: {percent(ten)} % before, "
        f"{percent(tuned['plain'])} tuned, {percent(tuned['wise_ft'])} WiSE-FT ({percent(gain)} % "
        f"of the gain); the thirty: {percent(thirty)}, {percent(after['plain'])}, "
        f"{percent(after['wise_ft'])} ({percent(loss)} % of the loss); on the ten EMA adds "
        f"{points(changes['ema'].difference)} {shown(changes['ema'].interval)}, soup "
        f"{points(changes['soup'].difference)} {shown(changes['soup'].interval)}",
    }


def of_distill(found: Found) -> Figures:
    """What students keep of their teacher's gain over chance, on `valid`; macro over subjects."""
    (teacher,) = runs(found, "quickstart/students_valid")
    groups = {name: runs(found, rf"{name}_\d/valid") for name in ("distill", "tenth", "all")}
    students = {name: every for name, every in groups.items() if every}
    subjects, skills = teacher.columns["subject"], teacher.columns["skill"]
    options_Q, answer_Q = teacher.num_options_Q, teacher.answer_Q
    taught = summarize(teacher.probs_QK, answer_Q, options_Q, subjects)
    seeds = {
        name: [
            summarize(it.probs_QK, answer_Q, options_Q, it.columns["subject"]).macro for it in every
        ]
        for name, every in students.items()
    }
    right_Q = {name: mean_right_Q([*every]) for name, every in students.items()}
    accuracy = {name: float(np.mean(every)) for name, every in seeds.items()}
    kept = {
        name: (it - taught.chance_macro) / (taught.macro - taught.chance_macro)
        for name, it in accuracy.items()
    }
    changes = {
        name: paired_difference(right_Q["distill"], right_Q[name], skills)
        for name in students
        if name != "distill"
    }
    parameters = [it.provenance["parameters"] for it in (students["distill"][0], teacher)]
    return {
        "questions": taught.questions,
        "parameters": {"student": parameters[0], "teacher": parameters[1]},
        "teacher": rounded(taught.macro),
        "chance": rounded(taught.chance_macro),
        "accuracy": {name: rounded(it) for name, it in accuracy.items()},
        "seeds": {name: [rounded(it) for it in every] for name, every in seeds.items()},
        "gain_kept": {name: rounded(it) for name, it in kept.items()},
        "distill_adds_to": {
            name: {"difference": rounded(it.difference), "interval": ends(it.interval)}
            for name, it in changes.items()
        },
        "result": f"mean of {len(seeds['distill'])} seeds, valid macro: teacher "
        f"{percent(taught.macro)} % (chance {percent(taught.chance_macro)}), a student of "
        f"{percent(parameters[0] / parameters[1])} % of its parameters with a tenth of the labels "
        f"and the teacher {percent(accuracy['distill'])} ({percent(kept['distill'])} % of the "
        f"gain), on the tenth alone {percent(accuracy['tenth'])} (the teacher adds "
        f"{points(changes['tenth'].difference)} {shown(changes['tenth'].interval)})"
        + (
            f", on all labels alone, {len(seeds['all'])} seed, {percent(accuracy['all'])}"
            if "all" in seeds
            else ""
        ),
    }


def of_picture_fit(found: Found) -> Figures:
    """Each way to fit a picture into a square, on `valid`, and its change from the crop."""
    ways = {name: runs(found, f"picture_fit_{name}/valid")[0] for name in ("crop", "pad", "squash")}
    right_Q = {name: right_of(it) for name, it in ways.items()}
    changes = {
        name: paired_difference(right_Q[name], right_Q["crop"], ways["crop"].columns["skill"])
        for name in ("pad", "squash")
    }
    return {
        "micro": {name: rounded(it.mean()) for name, it in right_Q.items()},
        "changes": {
            name: {"difference": rounded(it.difference), "interval": ends(it.interval)}
            for name, it in changes.items()
        },
        "result": f"valid micro {percent(right_Q['crop'].mean())} % with crop; "
        + "; ".join(
            f"{name} adds {points(it.difference)} {shown(it.interval)}"
            for name, it in changes.items()
        ),
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
            f"{points(it['below_tool'][0])} "
            f"[{percent(it['below_tool'][1])}, {percent(it['below_tool'][2])}] (a "
            f"confidence threshold {percent(it['confidence']['accuracy'])} with "
            f"{percent(it['confidence']['calls'])}), tool-usage accuracy "
            f"{percent(gate['tool_usage'])}; at the same calls the gate adds "
            f"{points(gain[0])} [{percent(gain[1])}, {percent(gain[2])}]"
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
    name = "generalisation"
    valid = found[f"{name}/valid"]
    accuracy = {
        which: float(right_of(found[f"{name}/{which}"]).mean())
        for which in ("valid", "anew", "others")
    }
    others = found[f"{name}/others"]
    chance = {
        which: float((1 / found[f"{name}/{which}"].num_options_Q).mean())
        for which in ("valid", "others")
    }
    interval = skills_like_these_interval(right_of(others), others.columns["skill"])
    drops = {}
    for change in ALTERED:
        altered = runs(found, rf"{name}/valid-{change}")
        if altered:
            drops[change] = paired_difference(
                right_of(altered[0]), right_of(valid), valid.columns["skill"]
            )
    worst = min(drops, key=lambda change: drops[change].difference)
    return {
        "micro": {which: rounded(value) for which, value in accuracy.items()},
        "chance": {which: rounded(value) for which, value in chance.items()},
        "others_interval": ends(interval),
        "others_skills": {
            skill: rounded(value) for skill, value in accuracy_of_skill(others).items()
        },
        "drops": {
            change: {"difference": rounded(it.difference), "interval": ends(it.interval)}
            for change, it in drops.items()
        },
        "result": f"{percent(accuracy['valid'])} % on its skills (chance "
        f"{percent(chance['valid'])}), {percent(accuracy['anew'])} drawn anew; altered from "
        f"{points(max(it.difference for it in drops.values()))} to "
        f"{points(drops[worst].difference)} ({worst.replace('_', ' ')}); "
        f"{percent(accuracy['others'])} % on skills it has never seen (chance "
        f"{percent(chance['others'])})",
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


def mean_right_Q(seeds: list[Predictions]) -> NDArray[np.float64]:
    """The share of the runs that answer each question rightly."""
    assert len({tuple(it.columns["id"]) for it in seeds}) == 1, "not the same questions"
    return np.mean([right_of(it) for it in seeds], axis=0)


def rounded(value: float) -> float:
    return round(float(value), 4)


def ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [rounded(interval.low), rounded(interval.high)]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def shown(interval: Interval | None) -> str:
    """A 95 % interval, in per cent."""
    if interval is None:
        return "(no interval: too few skills)"
    return f"[{percent(interval.low)}, {percent(interval.high)}]"

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
from clipstem.statistics import Interval, paired_difference, these_skills_mean_interval

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


CLAIMS: dict[str, Callable[[Found], Figures]] = {
    "realset_mini": of_realset_mini,
    "realset_mini_blind": of_realset_mini_blind,
    "forgetting": of_forgetting,
    "picture_fit": of_picture_fit,
    "distill": of_distill,
}
"""Experiments of several runs; any other has one, of its own name."""


def figures(experiment: str, found: Found) -> Figures:
    """What an experiment has come to, from all the predictions that there are."""
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

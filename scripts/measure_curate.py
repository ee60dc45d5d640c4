"""Measure curation on a drawn bank with planted faults: what it finds, and what its weights regain.

    python scripts/measure_curate.py --folder measuring faults noise

Commands that have ended in the folder are not repeated. `benchmarks/curate.json` gets the figures
with machine, versions and commit, and the README is brought up to date.

Faults: one answer in ten is wrong, one question in fifty is there twice, one in a hundred is in
valid too. Noise: three answers in ten are wrong; trainings on clean labels, on noisy ones, and on
noisy ones with curation's weights, three seeds each. Everything that curation uses is made from the
noisy data alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import plant
import pyarrow.parquet as pq
from claims import rounded
from measure import ROOT, made_by, publish, run_each
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from tables import BENCHMARKS

from clipstem import prediction
from clipstem.images import decoded
from clipstem.report import curate as report
from clipstem.shards import open_dataset
from clipstem.statistics import paired_difference

FAST = (
    *("find-the-battery", "mixing-screen-lights", "weather", "bridge-types", "safety-signs"),
    *("indicator-colour", "name-the-icon"),
)
SLOW = ("phases-of-the-moon", "mirror-image", "above-below-inside")
"""Skills that a small model learns in a few hundred steps, and some that it does not."""

FOLDS = 3
SEEDS = "0,1,2"
SMALL = (
    "model=tiny model.architecture.embed_dim=96 model.architecture.vision_cfg.image_size=32 "
    "model.architecture.text_cfg.width=96 model.architecture.text_cfg.layers=1"
)
"""A third of `tiny`'s work, and as good on the fast skills."""
LEARNS = f"{SMALL} batch_size=24 optimizer.lr=1e-3 patience=null trainer.workers=0"
FAULTS = "--wrong 0.1 --duplicates 0.02 --leaks 0.01"
NOISE = 0.3
STEPS = {"faults": 300, "noise": 300}
QUESTIONS = {"faults": 400, "noise": 300}
SKILLS = {"faults": FAST + SLOW, "noise": FAST[:5]}
LEARNT = 0.97  # accuracy of models that have not seen the question, from which a skill is learnt

PLANT = f"python {ROOT / 'scripts' / 'plant.py'}"


def commands(name: str) -> list[str]:
    """Everything that is run for `faults` or for `noise`, in order."""
    counts = f"{{train: {QUESTIONS[name]}, valid: 100, test: 0}}"
    clean = {"faults": "clean_faults", "noise": "clean"}[name]
    lines = [
        f"python -m clipstem.bank out=bank/{name} skills=[{','.join(SKILLS[name])}] "
        f"questions_per_skill='{counts}' seed=7",
        f"{PLANT} bank/{name} planted/{name} {FAULTS if name == 'faults' else f'--wrong {NOISE}'}",
        f"python -m clipstem.prepare source=stem path=bank/{name} out=shards/{clean}",
        *folds_of(name),
    ]
    if name == "faults":
        return lines
    given = {
        "clean": "data=shards/clean",
        "noisy": "data=shards/noise",
        "weighted": "data=shards/noise weights=curated/noise/weights.parquet",
    }
    return lines + [
        f"python -m clipstem.train -m seed={SEEDS} {what} out='runs/{name}_${{seed}}' "
        f"{learns('noise')}"
        for name, what in given.items()
    ]


def learns(name: str) -> str:
    return f"{LEARNS} steps={STEPS[name]} eval_every_steps={STEPS[name]}"


def folds_of(name: str) -> list[str]:
    """Folds, runs that leave one out, what they say of it, and the curation."""
    data = f"data=shards/{name}"
    runs = [f"runs/{name}-fold-{fold}" for fold in range(1, FOLDS + 1)]
    files = [f"{run}/predictions/train.parquet" for run in runs]
    folds = ",".join(str(fold) for fold in range(1, FOLDS + 1))
    return [
        f"python -m clipstem.prepare source=stem path=planted/{name} out=shards/{name}",
        f"python -m clipstem.curate {data} folds={FOLDS} out=folds/{name} workers=1",
        f"python -m clipstem.train -m seed={folds} weights='folds/{name}/fold-${{seed}}.parquet' "
        f"out='runs/{name}-fold-${{seed}}' {data} {learns(name)}",
        f"python -m clipstem.predict -m run={','.join(runs)} {data} split=train trainer.workers=0",
        f"python -m clipstem.curate {data} predictions=[{','.join(files)}] out=curated/{name} "
        "workers=1",
    ]


# ---------------------------------------------------------------------------- what was found


def of_faults(folder: Path) -> dict[str, Any]:
    """Precision and recall of labels, duplicates and leaks."""
    truth = json.loads((folder / "planted/faults/planted.json").read_text())
    table = pq.read_table(folder / "curated/faults/weights.parquet").to_pydict()
    split_of = _splits(folder / "shards/faults")
    found = {
        kind: {
            id for id, kinds in zip(table["id"], table["findings"], strict=True) if kind in kinds
        }
        for kind in report.FINDINGS
    }
    same = _identical(folder)
    planted_pairs = {frozenset(pair) for pair in truth["duplicates"] + truth["leaks"]}
    pairs = planted_pairs | same
    # What follows from these: copies of one question are copies of each other.
    in_train = {id for id, split in split_of.items() if split == "train"}
    groups = _groups(pairs)
    duplicates, leaks = set(), set()
    for group in groups:
        inside = group & in_train
        duplicates |= inside if len(inside) > 1 else set()
        leaks |= inside if len(inside) < len(group) else set()
    wrong = set(truth["wrong"])
    return {
        "questions": len(table["id"]),
        "skills": len(set(table["skill"])),
        "duplicates": {**rates(found["duplicate"], duplicates), "drawn_twice": len(same)},
        "leaks": rates(found["leak"], leaks),
        "labels": _labels(folder, table, wrong, found["label"]),
        "giveaways": len(found["giveaway"]),
        "contradictions": len(found["contradiction"]),
    }


def rates(found: set[str], truth: set[str]) -> dict[str, Any]:
    right = len(found & truth)
    return {
        "planted": len(truth),
        "found": len(found),
        "precision": rounded(right / max(len(found), 1)),
        "recall": rounded(right / max(len(truth), 1)),
    }


def _splits(data: Path) -> dict[str, str]:
    dataset = open_dataset(str(data))
    return {
        id: split
        for split in dataset.manifest.questions
        for id in dataset.index(split)["id"].to_pylist()
    }


def _groups(pairs: set[frozenset[str]]) -> list[set[str]]:
    group_of: dict[str, set[str]] = {}
    for pair in pairs:
        whole = set().union(*(group_of.get(id, {id}) for id in pair))
        for id in whole:
            group_of[id] = whole
    return [set(group) for group in {frozenset(group) for group in group_of.values()}]


def _identical(folder: Path) -> set[frozenset[str]]:
    """Pairs that the bank itself drew twice: the same texts, and no pixel differs by more than
    `SAME_LEVELS` of 256 levels at full size, which nobody sees."""
    dataset = open_dataset(str(folder / "shards/clean_faults"))
    by_text: dict[Any, list[tuple[str, NDArray[np.int16]]]] = {}
    for split in dataset.manifest.questions:
        for question in dataset.read(split, range(dataset.size(split))):
            texts = tuple(sorted(it for it in question.options if isinstance(it, str)))
            pixels = [np.asarray(decoded(it.data), np.int16) for it in question.pictures]
            first = 0 if question.picture is None else 1
            # Options that are pictures stand in another order when they are drawn again.
            pixels[first:] = sorted(pixels[first:], key=lambda it: it.mean())
            key = (question.problem, texts, len(question.options), pixels[0].shape)
            by_text.setdefault(key, []).append((question.id, np.stack(pixels)))
    same = set()
    for group in by_text.values():
        mean_ND = np.array([pixels.mean(axis=(1, 2)).ravel() for _, pixels in group])
        for one, other in cKDTree(mean_ND).query_pairs(SAME_LEVELS, np.inf):
            (a, a_pixels), (b, b_pixels) = group[one], group[other]
            if np.abs(a_pixels - b_pixels).max() <= SAME_LEVELS:
                same.add(frozenset((a, b)))
    return same


SAME_LEVELS = 3


def _labels(
    folder: Path, table: dict[str, Any], wrong: set[str], found: set[str]
) -> dict[str, Any]:
    """On learnt skills precision and recall, on all average precision; and where it is blind."""
    right_answer = {
        f"train-{row}": values["answer_idx"]
        for row, values in enumerate(plant.rows_of(folder / "bank/faults", "train"))
    }
    accurate: dict[str, list[bool]] = {}
    left_out = _unseen_choices(folder)
    for id, skill in zip(table["id"], table["skill"], strict=True):
        if id in left_out and id in right_answer:
            accurate.setdefault(skill, []).append(left_out[id] == right_answer[id])
    accuracy = {skill: float(np.mean(values)) for skill, values in accurate.items()}
    learnt = sorted(skill for skill, value in accuracy.items() if value >= LEARNT)
    in_learnt = {
        id for id, skill in zip(table["id"], table["skill"], strict=True) if skill in learnt
    }
    known = [place for place, margin in enumerate(table["margin"]) if margin is not None]
    margins = np.array([table["margin"][place] for place in known])
    is_wrong = np.array([table["id"][place] in wrong for place in known])
    curated = report.read(folder / "curated/faults/curate.json")
    return {
        "wrong": int(is_wrong.sum()),
        "share_wrong": rounded(is_wrong.mean()),
        "learnt_skills": learnt,
        "on_learnt_skills": rates(found & in_learnt, wrong & in_learnt & set(table["id"])),
        "on_all_skills": rates(found, wrong & set(table["id"])),
        "average_precision": rounded(average_precision(-margins, is_wrong)),
        "accuracy": {skill: rounded(value) for skill, value in sorted(accuracy.items())},
        "blind": [skill.name for skill in curated.skills if not skill.is_judged],
    }


def _unseen_choices(folder: Path) -> dict[str, int]:
    """What each question's run that did not see it chose."""
    choices: dict[str, int] = {}
    for fold in range(1, FOLDS + 1):
        weights = pq.read_table(folder / f"folds/faults/fold-{fold}.parquet").to_pydict()
        unseen = {id for id, it in zip(weights["id"], weights["weight"], strict=True) if it == 0}
        found = prediction.read(folder / f"runs/faults-fold-{fold}/predictions/train.parquet")
        choices |= {
            id: choice
            for id, choice in zip(found.columns["id"], found.choice_Q.tolist(), strict=True)
            if id in unseen
        }
    return choices


def average_precision(score_N: NDArray[Any], true_N: NDArray[np.bool_]) -> float:
    """The mean, over the true ones, of the precision down to each; that of a random order is their
    share."""
    order = np.argsort(-score_N, kind="stable")
    hits_N = true_N[order]
    precision_N = np.cumsum(hits_N) / np.arange(1, len(hits_N) + 1)
    return float(precision_N[hits_N].mean())


def of_noise(folder: Path) -> dict[str, Any]:
    """Accuracy on valid, whose labels are right, of the three ways to train."""
    found = {
        name: [
            prediction.read(folder / f"runs/{name}_{seed}/predictions/valid.parquet")
            for seed in SEEDS.split(",")
        ]
        for name in ("clean", "noisy", "weighted")
    }
    right_Q = {
        name: np.mean([it.choice_Q == it.answer_Q for it in seeds], axis=0)
        for name, seeds in found.items()
    }
    mean = {name: float(it.mean()) for name, it in right_Q.items()}
    gained = paired_difference(
        right_Q["weighted"], right_Q["noisy"], found["noisy"][0].columns["skill"]
    )
    truth = json.loads((folder / "planted/noise/planted.json").read_text())
    table = pq.read_table(folder / "curated/noise/weights.parquet").to_pydict()
    suspected = {
        id for id, kinds in zip(table["id"], table["findings"], strict=True) if "label" in kinds
    }
    return {
        "wrong": NOISE,
        "questions": len(table["id"]),
        "skills": len(SKILLS["noise"]),
        "seeds": {
            name: [rounded((it.choice_Q == it.answer_Q).mean()) for it in seeds]
            for name, seeds in found.items()
        },
        **{name: rounded(value) for name, value in mean.items()},
        "cost": rounded(mean["clean"] - mean["noisy"]),
        "regained": rounded((mean["weighted"] - mean["noisy"]) / (mean["clean"] - mean["noisy"])),
        "gain": rounded(gained.difference),
        "gain_p": gained.p,
        "labels": rates(suspected, set(truth["wrong"]) & set(table["id"])),
    }


MEASURES = {"faults": of_faults, "noise": of_noise}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=list(MEASURES), help="faults, noise, or both")
    parser.add_argument("--folder", type=Path, required=True, help="where the commands run; kept")
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    file = BENCHMARKS / "curate.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    for name in given.parts:
        ran = run_each(commands(name), folder)
        figures[name] = {
            **MEASURES[name](folder),
            **made_by(
                [{**ran[it], "command": it.replace(f"{ROOT}/", "")} for it in commands(name)]
            ),
        }
    publish("curate", figures)


if __name__ == "__main__":
    main()

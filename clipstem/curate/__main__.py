"""`python -m clipstem.curate data=… out=…`: what had better be looked at before a model learns it.

Nothing is deleted: weights say what counts how much, and a list says why.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.table import Table

from clipstem import run, shards, weights
from clipstem.atomic import new_folder
from clipstem.command import verb
from clipstem.config import CurateConfig, plain
from clipstem.console import console, progress_bar
from clipstem.curate import cues, duplicates, findings, fingerprints, labels, sheet, unseen
from clipstem.curate.findings import Found
from clipstem.curate.fingerprints import Fingerprints
from clipstem.curate.labels import Labels
from clipstem.curate.unseen import Unseen
from clipstem.question import ClipstemError
from clipstem.report import curate as report
from clipstem.report import page
from clipstem.report.curate import Curated
from clipstem.shards import Dataset
from clipstem.workers import Workers


def curate(config: CurateConfig) -> Curated | list[Path]:
    """Write the folder `out`; returns what was found, or with `folds` the files of weights.

    Raises:
        ClipstemError: if `out` exists, or the data or a predictions file is not as expected.
    """
    dataset = shards.open_dataset(config.data)
    if "train" not in dataset.manifest.questions:
        raise ClipstemError(
            f"{config.data}: has no split 'train' (it has "
            f"{', '.join(dataset.manifest.questions)}), so there is nothing to curate"
        )
    with new_folder(Path(config.out)) as folder:
        said = None  # first: files that are refused are so before every picture is read
        if config.predictions and config.folds is None:
            said = unseen.gather(config.predictions, dataset, config.unseen)
        total = sum(dataset.manifest.questions.values())
        with Workers(config.workers) as workers, progress_bar("reading", total) as progress:
            questions = fingerprints.read(dataset, workers, progress)
        if config.folds is not None:
            made = _write_folds(folder, questions, config.folds, config.seed)
            return [Path(config.out) / path.name for path in made]
        return _curate(folder, questions, said, dataset, config)


def _write_folds(folder: Path, questions: Fingerprints, folds: int, seed: int) -> list[Path]:
    train_N = questions.in_train_N
    group_N = duplicates.find(questions).group_N
    fold_N = unseen.deal(group_N[train_N], questions.skill_N[train_N], folds, seed)
    ids = questions.column("id")[train_N].tolist()
    return unseen.write_folds(folder, ids, fold_N, folds)


def _curate(
    folder: Path,
    questions: Fingerprints,
    said: Unseen | None,
    dataset: Dataset,
    config: CurateConfig,
) -> Curated:
    train_N = questions.in_train_N
    answer_N, num_options_N = questions.answer_N[train_N], questions.num_options_N[train_N]
    judged: Labels | None = None
    if said is not None:
        skill_N, answered_N = questions.skill_N[train_N], said.answered_N > 0
        judged = labels.judge(said.mean_NK, answer_N, num_options_N, skill_N, answered_N)
    same = duplicates.find(questions)
    cued = cues.find(questions, train_N, config.seed)
    found, plain_N, leaks_into = findings.gather(questions, same, cued, judged, said)
    weight_N, units = findings.balanced(questions, plain_N, config.balance)
    curated = Curated(
        data=config.data,
        data_sha256=dataset.manifest.data_sha256,
        questions=dict(dataset.manifest.questions),
        findings=found.counts,
        leaks_into=leaks_into,
        left_out=int((weight_N[train_N] == 0).sum()),
        broken=len({id for id, _ in questions.broken}),
        cues=tuple(cued.named),
        cues_tried=cued.tried,
        predicted=0 if said is None else int((said.answered_N > 0).sum()),
        skills=() if judged is None else tuple(judged.skills),
        units=units,
        predictions=() if said is None else tuple(report.FileRow(*file) for file in said.files),
        settings=plain(config),
        made_by=run.environment(),
    )
    text = json.dumps(asdict(curated), indent=1, ensure_ascii=False)
    (folder / "curate.json").write_text(text + "\n")
    table = _table(questions, train_N, weight_N, found, judged, said)
    weights.write(folder / "weights.parquet", table)
    _write_review(folder / "review.jsonl", questions, train_N, weight_N, found, dataset)
    shown = sheet.sheet(curated, questions, found, said, dataset, config.shown)
    (folder / "sheet.html").write_text(page.html(shown))
    return curated


def _table(
    questions: Fingerprints,
    train_N: NDArray[np.bool_],
    weight_N: NDArray[np.float64],
    found: Found,
    judged: Labels | None,
    said: Unseen | None,
) -> pa.Table:
    """A row for each question of `train`: its weight, and what it comes from."""
    numbers = np.flatnonzero(train_N)
    columns: dict[str, Any] = {
        "id": pa.array(questions.column("id")[train_N].tolist(), pa.string()),
        "weight": weight_N[train_N],
        "findings": pa.array([found.kinds(int(it)) for it in numbers], pa.list_(pa.string())),
    }
    for name in ("subject", "grade", "skill"):
        columns[name] = pa.array(questions.column(name)[train_N].tolist(), pa.string())
    if judged is not None and said is not None:
        known_N = ~np.isnan(judged.confidence_N)
        columns |= {
            "confidence": pa.array(judged.confidence_N, mask=~known_N),
            "margin": pa.array(judged.margin_N, mask=~known_N),
            "spread": pa.array(said.spread_N, mask=~known_N),
            "right": pa.array(said.right_N, mask=~known_N),
            "models": said.answered_N,
            "easy_to_hard": labels.easiest_first(
                judged.confidence_N, said.spread_N, judged.other_N >= 0
            ),
        }
    return pa.table(columns)


AT_ONCE = 256  # questions whose texts are read together


def _write_review(
    path: Path,
    questions: Fingerprints,
    train_N: NDArray[np.bool_],
    weight_N: NDArray[np.float64],
    found: Found,
    dataset: Dataset,
) -> None:
    """A line for each question with a finding, the gravest first; not for what is only too easy."""
    gravity = {kind: place for place, kind in enumerate(report.FINDINGS)}
    numbers = [number for number in found.of if found.kinds(number) != ["too easy"]]
    numbers.sort(key=lambda number: (gravity[found.kinds(number)[0]], number))
    place_of = {number: place for place, number in enumerate(np.flatnonzero(train_N).tolist())}
    ids = questions.column("id")
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            read = dataset.read("train", [place_of[number] for number in part])
            for number, question in zip(part, read, strict=True):
                texts = [option for option in question.options if isinstance(option, str)]
                line = {
                    "id": question.id,
                    "weight": float(weight_N[number]),
                    "subject": question.subject,
                    "grade": question.grade,
                    "skill": question.skill,
                    "problem": question.problem,
                    "options": texts or f"{len(question.options)} pictures",
                    "answer": question.answer,
                    "findings": [
                        {
                            "finding": it.kind,
                            "why": it.why,
                            "others": [ids[other] for other in it.others],
                            **({"instead": it.instead} if it.instead >= 0 else {}),
                        }
                        for it in found.of[number]
                    ],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def show(curated: Curated, out: str) -> None:
    """Print what was found."""
    table = Table(title=f"{curated.data}: train")
    for name in ("finding", "a question", "its weight", "questions"):
        table.add_column(name, justify="right" if name == "questions" else "left")
    for kind, said in report.FINDINGS.items():
        if curated.predicted or kind not in report.JUDGED:
            number = curated.findings.get(kind, 0)
            table.add_row(kind, said, report.MOVES[kind], f"{number:,}")
    console.print(table)
    for line in _notes(curated, out):
        console.print(line, highlight=False, soft_wrap=True)


def _notes(curated: Curated, out: str) -> list[str]:
    lines = []
    if curated.leaks_into:
        leaks = ", ".join(f"{split} {number:,}" for split, number in curated.leaks_into.items())
        lines.append(f"leaks: {leaks}")
    if curated.broken:
        lines.append(
            f"{curated.broken:,} questions have a picture that does not decode: compared with none"
        )
    blind = [skill.name for skill in curated.skills if not skill.is_judged]
    if blind:
        lines.append(
            f"{len(blind)} skills are not judged, because models know too little of them: "
            f"{', '.join(blind)}"
        )
    if not curated.predicted:
        lines.append("labels were not judged: give predictions=[…] of models that have not seen …")
    lines.append(
        f"{curated.left_out:,} of {curated.questions['train']:,} questions have the weight 0; "
        f"nothing was deleted; train with weights={out}/weights.parquet"
    )
    lines.append(f"look at {out}/sheet.html and {out}/review.jsonl")
    return lines


@verb("curate", CurateConfig)
def main(config: CurateConfig) -> None:
    """Curate and say what was found, or where the folds are."""
    made = curate(config)
    if isinstance(made, Curated):
        show(made, config.out)
        return
    for path in made:
        print(f"{path}: train with weights={path}, then predict split=train")


if __name__ == "__main__":
    main()

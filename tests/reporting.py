"""What the tests of the report share: answers of two models, and how a page is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipstem.config import ExamRules, ReportConfig
from clipstem.prediction import Predictions
from clipstem.report.page import Section, Table

GOLDEN = Path(__file__).parent / "golden_report.md"
MADE = {
    "command": "python -m clipstem.report predictions=[a.parquet] out=report",
    "commit": None,
    "python": "3",
    "versions": {"numpy": "2"},
}
QUICK: dict[str, Any] = {
    "exam": ExamRules(repeats=20, questions_per_skill=12),
    "repeats": 50,
}
HOSTILE = "<script>alert(1)</script> | `b` **c** [d](http://evil.example) $e$ & \\ _f_"


def answered(
    right: Sequence[bool] | NDArray[np.bool_],
    num_options: int = 3,
    confidence: float | NDArray[np.float64] = 0.8,
    temperature: float = 1.0,
    **columns: Sequence[Any],
) -> Predictions:
    """Questions whose answers go round the options, answered as said with that confidence."""
    right_Q = np.asarray(right, bool)
    questions = len(right_Q)
    answer_Q = np.arange(questions) % num_options
    choice_Q = np.where(right_Q, answer_Q, (answer_Q + 1) % num_options)
    confidence_Q = np.broadcast_to(confidence, questions)
    others_Q = (1 - confidence_Q) / (num_options - 1)
    probs_QK = np.repeat(others_Q[:, None], num_options, axis=1)
    probs_QK[np.arange(questions), choice_Q] = confidence_Q
    logits_QK = (temperature * np.log(probs_QK)).astype(np.float32)
    given: dict[str, Sequence[Any]] = {
        "id": [f"q{number}" for number in range(questions)],
        "row": list(range(questions)),
        "subject": ["science"] * questions,
        "grade": ["grade-2"] * questions,
        "skill": ["magnets"] * questions,
        "kind": ["text_options"] * questions,
        "num_options": [num_options] * questions,
        "question_words": [7] * questions,
        "truncated_tokens": [0] * questions,
        "answer": answer_Q.tolist(),
    }
    return Predictions({**given, **columns}, probs_QK, logits_QK)


def saved(path: Path, predictions: Predictions, **provenance: Any) -> Path:
    facts = {"model": path.stem, "weights_sha256": path.stem, "temperature": 1.0, "split": "valid"}
    replace(predictions, provenance={**facts, **provenance}).write(path)
    return path


def taken(predictions: Predictions, places: Sequence[int] | NDArray[np.int64]) -> Predictions:
    """Some of the questions, in another order."""
    columns: dict[str, Sequence[Any]] = {
        name: [values[place] for place in places] for name, values in predictions.columns.items()
    }
    return Predictions(columns, predictions.probs_QK[places], predictions.logits_QK[places])


def table(section: Section, place: int = 0) -> Table:
    return [part for part in section.parts if isinstance(part, Table)][place]


def config(paths: Sequence[Path], out: Path | str = "report", **given: Any) -> ReportConfig:
    return ReportConfig(predictions=[str(path) for path in paths], out=str(out), **QUICK, **given)


SUBJECTS = ("engineering", "math", "science")
GRADES = ("grade-10", "grade-2", "pre-k", "kindergarten")


def school(seed: int, share: float) -> Predictions:
    """180 questions of twelve skills in three subjects and four grades."""
    number = np.arange(180)
    rng = np.random.default_rng(seed)
    return answered(
        rng.random(180) < share,
        confidence=np.round(rng.uniform(0.4, 0.99, 180), 3),
        temperature=2.0,
        subject=[SUBJECTS[n % 3] for n in number],
        grade=[GRADES[n // 3 % 4] for n in number],
        skill=[f"skill-{n // 3 % 4}" for n in number],
        question_words=(number % 30).tolist(),
    )


def files_of_two_models() -> list[Path]:
    """Files of two models and of one of them on perturbed questions, in the current folder."""
    trained = {f"skill-{number}": 10 ** (number + 1) for number in range(4)}
    facts = {"parameters": 151_000_000, "train_questions_of_skill": trained}
    changed = {"name": "blank_picture", "strength": None, "seed": 0}
    typos = {"name": "typos", "strength": 0.1, "seed": 0}
    return [
        saved(Path("zero-shot.parquet"), school(1, 0.4), parameters=102_000_000),
        saved(Path("tuned.parquet"), school(2, 0.8), **facts),
        saved(Path("blank.parquet"), school(3, 0.35), weights_sha256="tuned", perturbation=changed),
        saved(Path("typos.parquet"), school(4, 0.7), weights_sha256="tuned", perturbation=typos),
    ]


class Cells(HTMLParser):
    """The text of each table's cells, row by row; and all that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        fetched = {"src", "href", "action", "data", "srcset", "poster"}
        self.fetched += [value for name, value in attrs if name in fetched]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        if tag == "img" and self.inside:
            self.rows[-1][-1] += dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    plain = [[re.sub(r"!\[(.*?)\]\(.*?\)", r"\1", cell) for cell in row] for row in rows]
    return [
        [unescape(re.sub(r"\\([\\`*_|~$([\]])", r"\1", cell.strip())) for cell in row]
        for row in plain
        if not set("".join(row)) <= set(" -:")
    ]


def outside(html: str) -> list[str]:
    """What a browser would have to fetch from elsewhere."""
    found = Cells(html).fetched + re.findall(r"url\(([^)]+)\)|@import", html)
    return [one for one in found if not one.startswith(("#", "data:image/webp;base64,"))]

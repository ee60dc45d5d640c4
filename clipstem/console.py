"""What people see in the terminal: progress bars, tables, log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from clipstem.metrics import summarize
from clipstem.prediction import Predictions

# Names and paths of strangers are printed, and may look like rich's tags; we use none ourselves.
console = Console(markup=False, emoji=False)

MASTERED = 0.9  # accuracy from which a skill is counted in the table's last line


def show_log_lines() -> None:
    """Print clipstem's own log lines, each with its time."""
    handler = RichHandler(console=console, show_path=False, show_level=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("clipstem", "__main__"):  # the verb itself is the latter
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the block calls what it is given with each advance."""
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def show_predictions(title: str, found: Predictions) -> None:
    """Print accuracy by subject with chance beside it, and how many skills are mastered."""
    if not (found.answer_Q >= 0).any():
        console.print(f"{title}: answers are unknown, so there is no accuracy")
        return
    summary = summarize(
        found.probs_QK, found.answer_Q, found.num_options_Q, found.columns["subject"]
    )
    table = Table(title=title)
    for name in ("subject", "questions", "accuracy %", "chance %"):
        table.add_column(name, justify="left" if name == "subject" else "right")
    for subject, (accuracy, chance, questions) in summary.subjects.items():
        table.add_row(subject, f"{questions:,}", f"{100 * accuracy:.1f}", f"{100 * chance:.1f}")
    table.add_section()
    for name, accuracy, chance in (
        ("macro (mean of subjects)", summary.macro, summary.chance_macro),
        ("micro (all questions)", summary.micro, summary.chance_micro),
    ):
        table.add_row(
            name, f"{summary.questions:,}", f"{100 * accuracy:.1f}", f"{100 * chance:.1f}"
        )
    console.print(table)
    skills = accuracy_of_skill(found)
    mastered = sum(accuracy >= MASTERED for accuracy in skills.values())
    console.print(
        f"{mastered} of {len(skills)} skills at {100 * MASTERED:.0f} % or more; "
        f"negative log-likelihood {summary.nll:.3f} nats"
    )


def accuracy_of_skill(predictions: Predictions) -> dict[str, float]:
    """The accuracy of each skill over its questions with a known answer."""
    known_Q = predictions.answer_Q >= 0
    right_Q = (predictions.choice_Q == predictions.answer_Q)[known_Q]
    skill_Q = np.asarray(predictions.columns["skill"], dtype=object)[known_Q]
    return {str(skill): float(right_Q[skill_Q == skill].mean()) for skill in sorted(set(skill_Q))}

"""`python -m clipstem.submit verb=train tasks=…`: a sweep as one SLURM array; status, retry, merge.

Where there is no SLURM the same tasks run on this machine, one after the other.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from clipstem import background, shards, slurm, sweep
from clipstem.atomic import require_new
from clipstem.command import composed, verb
from clipstem.config import (
    Action,
    PredictConfig,
    SubmitConfig,
    SweepVerb,
    TrainConfig,
    Where,
)
from clipstem.console import console
from clipstem.merge import join, results, steps_done, valid_summary, write_results
from clipstem.predict import planned, write_choices
from clipstem.question import ClipstemError
from clipstem.run import Run, finished
from clipstem.sweep import Attempt, Live, State, Submission, Sweep, Task, differing, state_of

PREDICTIONS, RESULTS = "predictions.parquet", "results.csv"  # what merge writes

# ---------------------------------------------------------------------------- the tasks file


def read_tasks(path: Path, verb: SweepVerb) -> list[Task]:
    """The tasks of a file, each checked as its verb would check it.

    Raises:
        ClipstemError: naming the first line that would fail.
    """
    if not path.is_file():
        raise ClipstemError(f"{path}: there is no such file; expected a task a line")
    tasks: list[Task] = []
    line_of_out: dict[Path, int] = {}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClipstemError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    for line, text in enumerate(lines, 1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        try:
            words = tuple(shlex.split(text))
            _refuse_words(words)
            out = output(verb, words)
            if out in line_of_out:
                raise ClipstemError(
                    f"writes {out}, as line {line_of_out[out]} does; give each its own out="
                )
        except (ClipstemError, ValueError) as error:  # shlex's are about quotes
            raise ClipstemError(f"{path}: line {line}: {error}") from error
        line_of_out[out] = line
        tasks.append(Task(len(tasks) + 1, words, out))
    if not tasks:
        raise ClipstemError(f"{path}: has no task; expected the overrides of one a line")
    return tasks


def _refuse_words(words: Sequence[str]) -> None:
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise ClipstemError(f"'{word}' is no override; expected key=value, one run a line")
        if word.startswith("resume="):
            raise ClipstemError("conf key 'resume': is decided by the task; leave it out")


def output(verb: SweepVerb, overrides: Sequence[str]) -> Path:
    """What a task will make: a run's folder or a predictions file.

    Raises:
        ClipstemError: if the verb would refuse the overrides, or what it makes exists.
    """
    if verb is SweepVerb.train:
        training = composed("train", TrainConfig, overrides)
        shards.open_dataset(training.data).shards_of("train")
        out = Path(training.out)
        require_new(out, "out=<folder>")
        return out.absolute()
    predicting = composed("predict", PredictConfig, overrides)
    if predicting.split == "all":
        raise ClipstemError("conf key 'split': is all; a task makes one file, give it one split")
    if predicting.run is not None:
        finished(Path(predicting.run))
    (file,) = planned(predicting)[1].values()
    return file.absolute()


# ---------------------------------------------------------------------------- submit and retry


def submit(config: SubmitConfig) -> None:
    """Check every task, make the sweep's folder and start them all.

    Raises:
        ClipstemError: if a task would fail at once, the folder exists, or SLURM refuses.
    """
    folder = folder_of(config)
    require_new(folder, "out=<folder>")
    tasks = read_tasks(Path(str(config.tasks)), config.verb)
    made = sweep.create(folder, config.verb, tasks, str(config.tasks))
    numbers = [task.number for task in tasks]
    grace = config.grace_seconds
    made.script.write_text(slurm.script(made, numbers, config.sbatch, config.at_once, grace))
    try:
        with made.only_submitter():
            _start(made, config, numbers, [])
    except ClipstemError:
        shutil.rmtree(folder)  # nothing runs: the same command may be given again
        raise


def retry(config: SubmitConfig) -> None:
    """Start the tasks again that failed, and no other.

    Raises:
        ClipstemError: if none has.
    """
    made = Sweep(folder_of(config).absolute())
    _ = made.manifest  # is there
    with made.only_submitter():
        numbers = [it.task.number for it in standings(made) if it.state is State.failed]
        if not numbers:
            raise ClipstemError(f"{made.folder}: no task has failed; there is nothing to retry")
        _start(made, config, numbers, config.sbatch)


def _start(
    made: Sweep, config: SubmitConfig, numbers: Sequence[int], options: Sequence[str]
) -> None:
    on_slurm = slurm.is_here() if config.where is Where.auto else config.where is Where.slurm
    if not on_slurm and background.runs(made):
        raise ClipstemError(
            f"{made.folder}: tasks of it still run on this machine, one by one; wait for their "
            "end, which python -m clipstem.submit status shows"
        )
    if on_slurm:
        submission = slurm.submit(made, numbers, options, config.at_once)
    else:
        submission = background.submit(made, numbers)
    made.add(submission)
    place = f"array {submission.job} of SLURM" if on_slurm else "on this machine, one by one"
    console.print(
        f"{len(numbers)} tasks submitted: {place}; python -m clipstem.submit status "
        f"out={folder_of(config)}",
        soft_wrap=True,
    )


def folder_of(config: SubmitConfig) -> Path:
    """The sweep's folder."""
    return Path(config.out or Path("sweeps", Path(str(config.tasks)).stem))


# ---------------------------------------------------------------------------- status


@dataclass(frozen=True)
class Standing:
    """Where a task stands, and a word on why."""

    task: Task
    attempts: list[Attempt]
    state: State
    why: str


def standings(made: Sweep) -> list[Standing]:
    """The true state of each task: our own records joined with what SLURM says is alive.

    Raises:
        ClipstemError: if SLURM does not answer.
    """
    tasks = made.tasks
    ended = {
        it.number for it in tasks if any(past.status == 0 for past in made.attempts(it.number))
    }
    alive: dict[int, Live] = {}
    for submission in made.submissions:
        if not ended.issuperset(submission.tasks):  # else nobody need be asked
            alive |= live(made, submission)
    found = []
    for task in tasks:
        attempts = made.attempts(task.number)  # read last: it may have ended while SLURM was asked
        state, why = state_of(attempts, alive.get(task.number))
        found.append(Standing(task, attempts, state, why))
    return _explained(made, found)


def _explained(made: Sweep, found: Sequence[Standing]) -> list[Standing]:
    """Those that failed with SLURM's word on it and the last line that they printed."""
    failed = {it.task.number for it in found if it.state is State.failed}
    ending_of: dict[int, str] = {}
    for submission in made.submissions:
        if failed & set(submission.tasks) and submission.where is Where.slurm:
            ending_of |= slurm.endings(submission)
    explained = []
    for it in found:
        if it.task.number in failed:
            ending, last = ending_of.get(it.task.number), last_line(made.log(it.task.number))
            said = f"{it.why}, {ending} says SLURM" if ending else it.why
            it = replace(it, why=f"{said}: {last}" if last else said)
        explained.append(it)
    return explained


def last_line(log: Path) -> str:
    """The last thing that a task printed, without what SLURM printed behind it."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    own = (line for line in reversed(lines) if not line.startswith(("srun: ", "slurmstepd")))
    return next((line.strip() for line in own if line.strip()), "")


def live(made: Sweep, submission: Submission) -> dict[int, Live]:
    """The tasks of a submission that wait or run."""
    if submission.where is Where.slurm:
        return slurm.live(submission)
    return background.live(made, submission)


def show_status(made: Sweep) -> None:
    """Print a row for each task."""
    tasks = made.tasks
    keys = differing(tasks)
    is_training = made.verb is SweepVerb.train
    table = Table(title=str(made.folder))
    for name in ("task", *keys, "state", "attempts"):
        table.add_column(name, overflow="fold")
    for name in ("step", "micro %", "macro %") if is_training else ():
        table.add_column(name, justify="right")
    for it in standings(made):
        given = [it.task.settings.get(key, "") for key in keys]
        why = f" ({it.why})" if it.why else ""
        cells = [str(it.task.number), *given, it.state.value + why, str(len(it.attempts))]
        table.add_row(*cells, *(_progress(it) if is_training else ()))
    console.print(table)


def _progress(standing: Standing) -> tuple[str, str, str]:
    run = Run(standing.task.out)
    summary = valid_summary(run) if standing.state is State.finished else None
    accuracies = [summary.micro, summary.macro] if summary else []
    micro, macro = [f"{100 * it:.1f}" for it in accuracies] or ("", "")
    return f"{steps_done(run):,}", micro, macro


# ---------------------------------------------------------------------------- merge


def merge(made: Sweep, preds_txt: str | None = None) -> None:
    """Join what the tasks made: predictions into one file, trainings into one table.

    `preds_txt` is where predictions are written for STEM's leaderboard, too.

    Raises:
        ClipstemError: naming the tasks that are not finished, or what does not fit together.
    """
    unfinished = [it for it in standings(made) if it.state is not State.finished]
    if unfinished:
        said = ", ".join(f"{it.task.number} {it.state.value}" for it in unfinished)
        raise ClipstemError(f"{made.folder}: not every task is finished, so none is merged: {said}")
    if preds_txt is not None and made.verb is SweepVerb.train:
        raise ClipstemError("conf key 'preds_txt': is for predictions; these tasks are trainings")
    if made.verb is SweepVerb.predict:
        file = made.folder / PREDICTIONS
        if preds_txt is not None:
            require_new(Path(preds_txt), "preds_txt=<file>")
        merged = join([task.out for task in made.tasks])
        merged.write(file)
        console.print(f"{len(merged):,} predictions: {file}", soft_wrap=True)
        if merged.skipped:
            console.print(f"{len(merged.skipped):,} questions skipped: their pictures are broken")
        if preds_txt is not None:
            write_choices(merged, Path(preds_txt))
        return
    rows = results(made.tasks)
    write_results(made.folder / RESULTS, rows)
    table = Table(title=f"{made.folder}: valid")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = [f"{it:.4f}" if isinstance(it, float) else str(it) for it in row.values()]
        table.add_row(*cells)
    console.print(table)


@verb("submit", SubmitConfig, first_word="action")
def main(config: SubmitConfig) -> None:
    if config.action is Action.submit:
        submit(config)
    elif config.action is Action.retry:
        retry(config)
    elif config.action is Action.status:
        show_status(Sweep(folder_of(config).absolute()))
    else:
        merge(Sweep(folder_of(config).absolute()), config.preds_txt)


if __name__ == "__main__":
    main()

"""`python -m clipstem.report predictions=[a.parquet,b.parquet] out=folder`: write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from clipstem.atomic import new_folder
from clipstem.command import verb
from clipstem.config import ReportConfig
from clipstem.question import ClipstemError
from clipstem.report import analyses, comparisons, curate, page, rerank, route, sittings
from clipstem.report.answers import Answers, Model, gather
from clipstem.report.page import NOTHING, Chapter, Chart, Command, Part, Report, Section, Table
from clipstem.report.sittings import Exams
from clipstem.run import environment
from clipstem.statistics import skills_like_these_interval
from clipstem.storage import file_sha256

LONG = ("train_questions_of_skill", "perturbation")
"""Provenance that has its own place in the report."""

WITHOUT_DATA = "The questions' texts and pictures were not given: see data=<prepared folder>."


def write_report(config: ReportConfig) -> Path:
    """Write the report's folder; returns its HTML file.

    Raises:
        ClipstemError: if `out` exists, or a predictions file or the data is not as expected.
    """
    with new_folder(Path(config.out)) as folder:
        report = build(config, environment())
        (folder / "report.html").write_text(page.html(report))
        (folder / "report.md").write_text(page.markdown(report))
        for name, data in page.files(report).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return Path(config.out) / "report.html"


def build(config: ReportConfig, made: Mapping[str, Any]) -> Report:
    """The report; `made` says by which command and versions."""
    results = beside(config)  # what would fail, fails before minutes of resampling
    answers = gather([Path(path) for path in config.predictions], config.names)
    exams = sittings.sit(answers, config.exam)
    return Report(
        title="How well the questions were answered",
        summary=_summary(answers),
        chapters=(
            Chapter("Headline", headline(answers, exams, config)),
            Chapter("Analyses", breakdown(answers, exams, config)),
            Chapter("Comparisons", compared(answers, config)),
            *([Chapter("Beside the exam", [it.section for it in results])] if results else []),
            Chapter("How this was made", how(answers, config, made, results)),
        ),
    )


def headline(answers: Answers, exams: Exams, config: ReportConfig) -> tuple[Section, ...]:
    return (
        _what_was_read(answers),
        analyses.accuracy(answers, config.repeats, config.seed),
        sittings.headline(exams, config.exam),
        analyses.probability_quality(answers, config.bins),
        analyses.published_results(),
    )


def breakdown(answers: Answers, exams: Exams, config: ReportConfig) -> tuple[Section, ...]:
    return (
        analyses.by_subject(answers),
        analyses.by_grade(answers),
        sittings.by_group(answers, exams),
        analyses.by_length(answers),
        analyses.by_kind(answers),
        analyses.by_options(answers),
        analyses.by_training_questions(answers),
        analyses.by_size(answers),
        analyses.calibration(answers, config.bins),
        sittings.correlation(exams),
        analyses.people(answers),
        analyses.every_skill(
            answers, {name: sittings.of_skills(answers, one) for name, one in exams.items()}
        ),
    )


def compared(answers: Answers, config: ReportConfig) -> tuple[Section, ...]:
    tables: list[Part] = [comparisons.positions(answers)]
    galleries: list[Part] = []
    if config.data is None:
        tables.append(WITHOUT_DATA)
        galleries.append(WITHOUT_DATA)
    else:
        from clipstem.report import gallery  # reads shards

        texts = gallery.find(config.data, answers)
        drawn = gallery.with_text_options(answers, texts, config.seed)
        tables.append(comparisons.lengths(answers, drawn, texts.read(drawn)))
        galleries += [
            gallery.mistakes(answers, model, texts, config.mistakes, f"mistake-{number}")
            for number, model in enumerate(answers.models)
        ]
    return (
        comparisons.paired(answers),
        comparisons.disagreement(answers),
        comparisons.sight(answers),
        comparisons.robustness(answers),
        Section("Habits: positions and lengths", tables),
        Section("Mistakes", galleries),
    )


RESULTS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Section]]] = {
    "rerank.json": (rerank.read, rerank.section),
    "route.json": (route.read, route.section),
    "curate.json": (curate.read, curate.section),
}
"""What may stand beside the answers, by the file that says it: how it is read, and shown."""


@dataclass(frozen=True)
class Result:
    """A file of results, and what the report says of it."""

    path: Path
    sha256: str
    section: Section


def beside(config: ReportConfig) -> list[Result]:
    """What was done with answers and questions besides, folder by folder.

    Raises:
        ClipstemError: if a folder holds no results, or several, or they are not as expected.
    """
    found = []
    folders = [Path(folder) for folder in config.results]
    names = [folder.resolve().name for folder in folders]
    for number, (folder, name) in enumerate(zip(folders, names, strict=True), 1):
        files = [folder / name for name in RESULTS if (folder / name).is_file()]
        if len(files) != 1:
            raise ClipstemError(
                f"conf key 'results': {folder} holds {len(files)} of {', '.join(RESULTS)}; "
                "expected a folder that rerank, route or curate has written"
            )
        read, show = RESULTS[files[0].name]
        section = show(read(files[0]))
        parts = [  # several folders may have charts of one name
            replace(it, name=f"{it.name}-{number}") if isinstance(it, Chart) else it
            for it in section.parts
        ]
        title = f"{section.title}: {name if names.count(name) == 1 else folder}"
        found.append(Result(files[0], file_sha256(files[0]), Section(title, parts)))
    return found


def _summary(answers: Answers) -> list[str]:
    questions = answers.questions
    best = max(answers.models, key=lambda model: analyses.macro(questions, model.right_Q))
    skill_Q, subject_Q = questions.skill.number_Q, questions.subject.number_Q
    interval = skills_like_these_interval(best.right_Q, skill_Q, subject_Q)
    sure = "" if interval is None else f", on skills like these {page.between(interval)}\u00a0%"
    return [
        f"{_many(len(answers.models), 'model')}, {_many(len(questions), 'question')} of "
        f"{_many(len(questions.skill.names), 'skill')} in "
        f"{_many(len(questions.subject.names), 'subject')}. "
        f"{best.name} reaches a macro accuracy of "
        f"{page.percent(analyses.macro(questions, best.right_Q))}\u00a0%{sure}; chance is "
        f"{page.percent(analyses.macro(questions, questions.chance_Q))}\u00a0%."
    ]


def _many(number: int, thing: str) -> str:
    return f"{page.count(number)} {thing}" if number == 1 else f"{page.count(number)} {thing}s"


def _what_was_read(answers: Answers) -> Section:
    rows = [
        (
            model.name,
            str(model.path),
            str(model.provenance.get("split") or NOTHING),
            page.count(model.rows),
            page.count(len(answers.questions)),
            NOTHING
            if (model.truncated_Q < 0).any()
            else page.count(int((model.truncated_Q > 0).sum())),
        )
        for model in answers.models
    ]
    columns = ("model", "file", "split", "predictions", "used here", "cut short")
    notes = (
        "Cut short: questions whose text lost its end, because it does not fit into the model.",
    )
    left_out = ["Left out: " + line for line in answers.excluded]
    return Section(
        "What was read", (Table("Predictions", columns, rows, words=3, notes=notes), *left_out)
    )


def how(
    answers: Answers, config: ReportConfig, made: Mapping[str, Any], results: Sequence[Result]
) -> tuple[Section, ...]:
    """Command, settings, hashes and versions: enough to make it again."""
    versions = [("python", made["python"]), *made["versions"].items()]
    versions.append(("clipstem's commit", made["commit"] or "not from a checkout"))
    read = [(str(model.path), model.sha256) for model in answers.models]
    read += [(str(v.path), v.sha256) for model in answers.models for v in model.variants]
    read += [(str(it.path), it.sha256) for it in results]
    return (
        Section(
            "The command",
            (
                Command(made["command"]),
                Table("Settings", ("setting", "value"), _settings(config), words=2),
                Table("Files read", ("file", "sha256"), read, words=2),
                Table("Versions", ("what", "version"), versions, words=2),
            ),
        ),
        Section("Where the predictions come from", (_provenance(answers.models),)),
    )


def _settings(config: object, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in vars(config).items():
        if is_dataclass(value):
            rows += _settings(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(getattr(value, "value", value))))
    return rows


def _provenance(models: tuple[Model, ...]) -> Table:
    names = list(dict.fromkeys(name for m in models for name in m.provenance if name not in LONG))
    rows = [
        (name.replace("_", " "), *(str(m.provenance.get(name, NOTHING)) for m in models))
        for name in names
    ]
    columns = ("fact", *(model.name for model in models))
    return Table("What the predictions files say of themselves", columns, rows, words=len(columns))


@verb("report", ReportConfig)
def main(config: ReportConfig) -> None:
    """Write the report and say where it is."""
    print(write_report(config))


if __name__ == "__main__":
    main()

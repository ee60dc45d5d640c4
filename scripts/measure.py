"""Run an experiment's commands as its header gives them, and write down what came out.

    python scripts/measure.py quickstart realset_tiny
    python scripts/measure.py forgetting --folder measuring

The commands run in an empty folder, one that several experiments give only once. A folder that is
named is kept, and commands that have ended in it are not repeated: what was interrupted goes on.
`benchmarks/<experiment>.json` gets what was measured with machine, versions and commit, the
header's Result line and the README are brought up to date. Figures are written in that one JSON
file and copied from there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
import psutil

from clipstem import prediction
from clipstem.run import Run

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "conf" / "experiment"
BENCHMARKS = ROOT / "benchmarks"
README = ROOT / "README.md"
HEADER_LINE = re.compile(r"^# (?P<field>Idea|Source|Command|Cost|Result| {7}) +(?P<text>.*)$")


def header(experiment: Path) -> dict[str, list[str]]:
    """The lines of each field at an experiment file's top."""
    fields: dict[str, list[str]] = {}
    current = ""
    for line in experiment.read_text().splitlines():
        if not (match := HEADER_LINE.match(line)):
            continue
        current = match["field"].strip() or current
        fields.setdefault(current, []).append(match["text"])
    return fields


def commands(experiment: Path) -> list[str]:
    return [
        line for line in header(experiment)["Command"] if line.startswith("python -m clipstem.")
    ]


def run_command(command: str, folder: Path) -> dict[str, Any]:
    """Run one command in `folder`; its seconds, and the most memory it and its children held."""
    words = [
        sys.executable if word == "python" else word
        for word in shlex.split(os.path.expandvars(command))
    ]
    started = time.perf_counter()
    process = psutil.Popen(words, cwd=folder)
    peak_bytes = 0

    def watch() -> None:
        nonlocal peak_bytes
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _memory(process))
            time.sleep(1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    watcher.join()
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}")
    seconds = time.perf_counter() - started
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_bytes / 2**30, 2),
    }


def run_each(every: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Run the commands that have not ended in `folder` before; what is known of all."""
    ended = folder / "ended.json"
    ran: dict[str, dict[str, Any]] = json.loads(ended.read_text()) if ended.exists() else {}
    for command in every:
        if command not in ran:
            ran[command] = run_command(command, folder)
            ended.write_text(json.dumps(ran, indent=1) + "\n")
    return ran


def _memory(process: psutil.Process) -> int:
    """Bytes held by a process and its children; pages they share count once (PSS)."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def machine() -> dict[str, Any]:
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    name = re.search(r"Model name:\s*(.*)", found)
    return {"cpu": name[1] if name else "unknown", "cores": len(os.sched_getaffinity(0))}


def measure(experiments: Sequence[Path], folder: Path) -> dict[Path, dict[str, Any]]:
    """Run experiments and gather what their run folders say."""
    ran = run_each([it for experiment in experiments for it in commands(experiment)], folder)
    found = {
        f"{file.parent.parent.name}/{file.stem}": prediction.read(file)
        for file in sorted(folder.glob("runs/*/predictions/*.parquet"))
    }
    routed = {
        file.parent.name: json.loads(file.read_text())
        for file in sorted(folder.glob("routes/*/route.json"))
    }
    runs = [Run(path.parent).facts for path in folder.glob("runs/*/run.json")]

    def last(experiment: Path) -> dict[str, Any]:
        """What says of itself when and with what it was made; a folder may hold older ones."""
        made = [*runs, *(it["made_by"] for it in own(experiment, routed).values())]
        return max(made, key=lambda it: str(it["started"]))

    return {
        experiment: {
            "experiment": experiment.stem,
            "commands": [ran[command] for command in commands(experiment)],
            **claims.figures(experiment.stem, found, own(experiment, routed)),
            "machine": machine(),
            "commit": last(experiment)["commit"],
            "versions": last(experiment)["versions"],
            "date": last(experiment)["started"][:10],
        }
        for experiment in experiments
    }


def own(experiment: Path, routed: dict[str, Any]) -> dict[str, Any]:
    """The routings that the experiment's own commands have written."""
    words = {word for command in commands(experiment) for word in command.split()}
    return {name: it for name, it in routed.items() if f"out=routes/{name}" in words}


def result_lines(figures: dict[str, Any]) -> str:
    """The Result of an experiment's header."""
    text = f"{figures['result']}, {figures['date']}"
    return "\n".join(
        textwrap.wrap(text, 100, initial_indent="# Result   ", subsequent_indent="#          ")
    )


def blocks() -> dict[str, str]:
    """The README's generated parts, by name."""
    measured = [json.loads(path.read_text()) for path in sorted(BENCHMARKS.glob("*.json"))]
    figures = [it for it in measured if "macro" in it]
    rows = [
        "| experiment | questions | macro, % (chance) | micro, % (chance) | skills ≥ 90 % "
        "| minutes | GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for it in figures:
        minutes = sum(ran["seconds"] for ran in it["commands"]) / 60
        peak = max(ran["peak_gib"] for ran in it["commands"])
        rows.append(
            f"| `{it['experiment']}` | {it['questions']:,} "
            f"| {100 * it['macro']:.1f} ({100 * it['chance_macro']:.1f}) "
            f"| {100 * it['micro']:.1f} ({100 * it['chance_micro']:.1f}) "
            f"| {it['mastered']} of {len(it['skills'])} | {minutes:.1f} | {peak:.1f} |"
        )
    for it in measured:
        if it.get("experiment") in {*claims.CLAIMS, *claims.ROUTED}:
            rows += ["", f"`{it['experiment']}`: {it['result']}."]
    rows += [
        "",
        "On `valid`, which training never looks at; whole commands. Made by",
    ]
    rows += [
        "`python scripts/measure.py <experiment>`, with machine and versions in `benchmarks/`."
    ]
    quickstart = json.loads((BENCHMARKS / "quickstart.json").read_text())
    report = json.loads((BENCHMARKS / "report.json").read_text())
    optional = {
        **{"export": exported, "growth": at_every_size, "ask": asked},
        **{"rerank": reranked, "distill": distilled, "curate": curated},
    }
    servers = [it for it in measured if "batching" in it]
    routed = [it for it in measured if "routings" in it]
    return {
        "quickstart": printed(quickstart),
        "results": "\n".join(rows),
        "report": at_stems_size(report),
        **({"serve": served(servers)} if servers else {}),
        **({"route": routings(routed)} if routed else {}),
        **{
            name: table(json.loads(path.read_text()))
            for name, table in optional.items()
            if (path := BENCHMARKS / f"{name}.json").exists()
        },
    }


def served(measured: Sequence[dict[str, Any]]) -> str:
    """What servers answered, a row a model."""
    rows = [
        f"{measured[0]['clients']} clients at a time, each asking drawn questions one after the "
        "other: scored together or each alone, by\nitself, and with one request in ten hostile; "
        "wrong are answers that are missing or not the Python API's\n"
        "(`python scripts/bench_serve.py bundles/first`).",
        "",
        "| model | questions/s together | alone | × | p99, ms | lone request, ms "
        "| with hostile ones | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for it in measured:
        turns = it["turns"]
        wrong = sum(turn["wrong"] for found in turns.values() for turn in found)
        together, alone, hostile = (
            median_of(turns[name], "questions_per_second")
            for name in ("together", "alone", "hostile")
        )
        p99_ms, lone_ms = (median_of(turns["together"], name) for name in ("p99_ms", "lone_ms"))
        rows.append(
            f"| `{it['model']}` | {together:,.1f} | {alone:,.1f} | {it['batching']:.2f} "
            f"| {p99_ms:,.0f} | {lone_ms:.1f} | {hostile:,.1f} | {wrong} |"
        )
    return "\n".join(rows)


def median_of(turns: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(turn[name] for turn in turns)


def exported(figures: dict[str, Any]) -> str:
    """What bundles answer beside torch, a row a variant."""
    rows = [
        "Bundles beside torch on the same questions, and int8 beside fp32, on "
        f"{figures['machine']['cores']} CPU cores: `tiny` and `vit_b32`\nwith random weights, "
        "`forty` as the experiment trained it; the drop is the upper end of the paired\n"
        "difference's interval, speeds are of turns one after the other "
        "(`python scripts/measure_export.py runs/forty`).",
        "",
        "| bundle | questions | largest Δp | other choices | accuracy, % (torch) "
        "| drop ≤, points | MB | questions/s | × torch | × fp32 | least cosine | first score, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, found in figures["bundles"].items():
        for variant, it in found["variants"].items():
            only = variant == "int8"
            seconds = {name: statistics.median(it) for name, it in found["seconds"].items()}
            speed = f"{seconds['fp32'] / seconds['int8']:.2f}" if only else ""
            cosine = f"{min(found['least_cosines'].values()):.4f}" if only else ""
            first = "" if only else found["first_score_seconds"]
            rows.append(
                f"| {title}, {variant} | {it['questions']:,} | {it['largest_difference']:.1e} "
                f"| {it['choices_that_differ']} | {it['accuracy']} ({it['torch_accuracy']}) "
                f"| {it['accuracy_drop_at_most']} | {it['megabytes']} "
                f"| {found['turn_questions'] / seconds[variant]:,.0f} "
                f"| {seconds['torch'] / seconds[variant]:.2f} | {speed} | {cosine} | {first} |"
            )
    return "\n".join(rows)


def asked(figures: dict[str, Any]) -> str:
    """What asking takes where requests fail and the run is killed."""
    without, failing, killed = (figures[it] for it in ("without_faults", "with_faults", "killed"))
    return (
        f"{figures['questions']:,} questions to a server on the same machine, "
        f"{figures['concurrency']} requests at a time, take\n{without['core_seconds']:.0f} seconds "
        "of one core, the start included. With one request in five failing: "
        f"{failing['requests']:,}\nrequests, {failing['answered']:,} answers, the same choices. "
        f"Killed with `kill -9` when {killed['kept_when_killed']:,} answers were kept,\nand "
        f"started again: {killed['asked_again_though_kept']} of these were asked again, and "
        f"{killed['answered_twice']} others, whose answers were on their way\n"
        "(`python scripts/measure_ask.py`)."
    )


def routings(measured: Sequence[dict[str, Any]]) -> str:
    """What routing came to, a row a routing."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f}"

    def points(gain: list[float]) -> str:
        return f"{100 * gain[0]:+.1f} [{100 * gain[1]:.1f}, {100 * gain[2]:.1f}]"

    cases = {name: case for it in measured for name, case in it["routings"].items()}
    any_case = next(iter(cases.values()))
    rows = [
        f"{any_case['questions']:,} questions drawn anew, gates and thresholds from "
        f"{any_case['fitted_on']:,} of `valid`; rule: {any_case['rule']}.\nThe gains are over as "
        "many least confident questions, in points\n"
        "(`python scripts/measure.py route route_eight`).",
        "",
        "| routing | fast, % | tool, % | calls, % | accuracy, % | less the tool's | tool usage, % "
        "| confidence: calls, % | accuracy, % | tool usage, % | gain in accuracy "
        "| in tool usage | costs of 21 surely below |",
        "|---" * 13 + "|",
    ]
    for name, it in cases.items():
        cells = [
            *(percent(it[key]) for key in ("fast", "tool")),
            *(percent(it["gate"][key]) for key in ("calls", "accuracy")),
            points(it["below_tool"]),
            percent(it["gate"]["tool_usage"]),
            *(percent(it["confidence"][key]) for key in ("calls", "accuracy", "tool_usage")),
            points(it["accuracy_gain"]),
            points(it["usage_gain"]),
            str(it["steps_below_confidence"]),
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    for name, it in cases.items():
        worst = ", ".join(
            f"{skill['skill']} ({skill['easy_tool']}, {skill['hard_direct']}, "
            f"{percent(skill['tool_accuracy'])} %)"
            for skill in it["most_wrongly_routed"]
        )
        rows += ["", f"Most wrongly routed by `{name}`: {worst}."]
    return "\n".join([*rows, "", "In brackets: easy questions deferred, hard ones kept, the tool."])


def reranked(figures: dict[str, Any]) -> str:
    """What ways to choose are worth, on drawn candidates and on real ones."""
    sets = figures["sets"]
    real, without = sets["gsm8k"], sets["gsm8k without abel-70b"]
    rows = [
        "![Best of N on GSM8K](benchmarks/rerank.svg)",
        "",
        "Right choices, %, with 95 % intervals, and the difference to the best single system in "
        "points: drawn\ncandidates, and "
        f"{real['questions']:,} questions of GSM8K with the published solutions of seven systems, "
        "with and\nwithout the best (`python scripts/measure_rerank.py --folder measuring`).",
        "",
        "| way to choose | drawn | GSM8K | over best system | without `abel-70b` "
        "| over best system |",
        "|---|---|---|---|---|---|",
    ]

    def share(it: dict[str, Any]) -> str:
        return f"{100 * it['value']:.1f} {per_cent(it['interval'])}"

    def difference(it: dict[str, Any]) -> str:
        return f"{100 * it['difference']:+.1f} {per_cent(it['interval'])}"

    for name in real["methods"]:
        cells = [share(sets["drawn"]["methods"][name])]
        for found in (real, without):
            method = found["methods"][name]
            cells += [share(method), difference(method["over_best_system"])]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    bounds = [f"{share(it['any_right'])} |" for it in (sets["drawn"], real, without)]
    rows.append(f"| any right (the bound) | {bounds[0]} {bounds[1]} | {bounds[2]} |")
    lines = []
    for title, found in (("On GSM8K", real), ("Without `abel-70b`", without)):
        of = found["scores"]
        mix = found["methods"]["mix"]["over_majority"]
        lines.append(
            f"{title} the mix is {difference(mix)} points over the majority "
            f"({100 * found['majority_by_lot']:.1f} % if its ties were drawn by lot). Scores add "
            f"{difference(of['mix'])} points to the mix. Which of two given systems is right they "
            f"tell in {share(of['given_systems'])} % of the cases where one is; 50 is nothing."
        )
    aucs = ", ".join(
        f"`{name}` {one['auc']:.2f} [{one['auc_interval'][0]:.2f}, {one['auc_interval'][1]:.2f}]"
        for name, one in real["systems"].items()
    )
    minutes = [ran["seconds"] / 60 for ran in figures["commands"]]
    lines.append(
        "Within one system's solutions, whatever the question, a right one has the higher score "
        f"with this chance (AUC): {aucs}. Minutes: {', '.join(f'{it:.0f}' for it in minutes)}, on "
        "a machine that others used too."
    )
    filled = [textwrap.fill(line, 100, break_on_hyphens=False) for line in lines]
    return "\n".join([*rows, "", "\n\n".join(filled)])


def per_cent(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def distilled(figures: dict[str, Any]) -> str:
    """What students of a third of the teacher's parameters learnt, a row a kind of student."""
    names = {
        "distill": "a tenth of the labels, and the teacher on every question",
        "tenth": "a tenth of the labels alone",
        "all": "all labels alone",
    }
    parameters = {name: f"{it / 1e6:.1f}" for name, it in figures["parameters"].items()}
    rows = [
        "| learnt from | accuracy on `valid`, % | each seed | gain over chance kept, % |",
        "|---|---|---|---|",
        f"| the teacher, {parameters['teacher']} million parameters: the quickstart's questions "
        f"| {100 * figures['teacher']:.1f} | | 100 |",
    ]
    for name, accuracy in figures["accuracy"].items():
        seeds = ", ".join(f"{100 * it:.1f}" for it in figures["seeds"][name])
        rows.append(
            f"| student, {parameters['student']} million: {names[name]} "
            f"| {100 * accuracy:.1f} | {seeds} "
            f"| {100 * figures['gain_kept'][name]:.1f} |"
        )
    return "\n".join(rows)


def curated(figures: dict[str, Any]) -> str:
    """What curation found of planted faults, and what its weights regained."""
    faults = figures["faults"]
    labels = faults["labels"]
    named = {
        "near-duplicates": faults["duplicates"],
        "leaks into `valid` or `tune`": faults["leaks"],
        f"wrong answers, {len(labels['learnt_skills'])} learnt skills": labels["on_learnt_skills"],
        f"wrong answers, all {faults['skills']} skills": labels["on_all_skills"],
    }
    rows = [
        f"Planted into {faults['questions']:,} drawn questions of {faults['skills']} skills, and "
        "found (`python scripts/measure_curate.py`):",
        "",
        "| fault | questions | found | precision | recall |",
        "|---|---|---|---|---|",
    ]
    for name, it in named.items():
        rows.append(
            f"| {name} | {it['planted']:,} | {it['found']:,} | {it['precision']:.3f} "
            f"| {it['recall']:.3f} |"
        )
    blind = ", ".join(f"`{name}`" for name in labels["blind"]) or "none"
    rows += [
        "",
        f"Learnt: models that had not seen a question answer it rightly in 97 % or more. Over all "
        f"skills the order by margin has\nan average precision of "
        f"{labels['average_precision']:.2f}; a random order has {labels['share_wrong']:.2f}. Not "
        f"judged, because models know too little: {blind}.",
    ]
    if noise := figures.get("noise"):
        seeds = len(noise["seeds"]["clean"])
        rows += [
            "",
            f"With {100 * noise['wrong']:.0f} % of the answers wrong, accuracy on clean `valid` "
            f"falls from {100 * noise['clean']:.1f} to {100 * noise['noisy']:.1f} %; with the "
            f"weights it is\n{100 * noise['weighted']:.1f} %: {100 * noise['regained']:.0f} % of "
            f"the loss is regained (mean of {seeds} seeds, {noise['skills']} skills).",
        ]
    return "\n".join(rows)


def at_every_size(figures: dict[str, Any]) -> str:
    """What a question costs at each stage, from small sets to large ones."""
    stages = list(figures["sizes"][0]["milliseconds"])
    rows = [
        "![Cost of a question by the size of the set](benchmarks/growth.svg)",
        "",
        f"| questions | {' | '.join(f'{stage}, ms' for stage in stages)} | most of a process, GiB "
        "| while scoring, first and last tenth, MiB |",
        "|---" * (len(stages) + 3) + "|",
    ]
    for size in figures["sizes"]:
        costs = " | ".join(f"{size['milliseconds'][stage]:.3f}" for stage in stages)
        ends = " and ".join(f"{mib:,}" for mib in size["scoring_mib_by_tenth"].values())
        peak = size["peak_gib_of_a_process"]
        rows.append(f"| {size['questions']:,} | {costs} | {peak:.2f} | {ends} |")
    rates = figures["prepare_questions_per_second_one_core"]
    return "\n".join(
        [
            *rows,
            "",
            "One core prepares "
            + " and ".join(
                f"{rate:,} questions/s with `verify={verify}`" for verify, rate in rates.items()
            )
            + ".",
        ]
    )


def at_stems_size(figures: dict[str, Any]) -> str:
    """What exam and report take on predictions of the size of STEM's test split."""
    exam, report = figures["commands"]
    return (
        f"At STEM's size ({figures['questions']:,} predictions, {figures['skills']} skills, on one "
        "core, measured by\n`python scripts/measure_report.py`): exam of one file "
        f"{exam['seconds']:.0f} seconds, {exam['peak_gib']:.2f} GiB; report of four\n"
        f"files {report['seconds']:.0f} seconds, {report['peak_gib']:.2f} GiB, "
        f"{figures['html_mib']:.1f} MiB of HTML."
    )


def printed(figures: dict[str, Any]) -> str:
    """What a run prints at its end, as plain text."""
    lines = ["```", f"{'subject':<26}{'questions':>9}{'accuracy %':>12}{'chance %':>10}"]
    means = {
        name: [figures[kind], figures[f"chance_{kind}"], figures["questions"]]
        for kind, name in {
            "macro": "macro (mean of subjects)",
            "micro": "micro (all questions)",
        }.items()
    }
    for name, (accuracy, chance, questions) in {**figures["subjects"], **means}.items():
        lines.append(f"{name:<26}{questions:>9,}{100 * accuracy:>12.1f}{100 * chance:>10.1f}")
    lines.append(
        f"{figures['mastered']} of {len(figures['skills'])} skills at 90 % or more; "
        f"negative log-likelihood {figures['nll']:.3f} nats"
    )
    return "\n".join([*lines, "```"])


def with_blocks(text: str) -> str:
    """The README with its generated parts brought up to date."""
    for name, block in blocks().items():
        start, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}{block}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiments", nargs="*", help="files of conf/experiment, without .yaml")
    parser.add_argument("--folder", type=Path, help="where the commands run; kept")
    given = parser.parse_args()
    experiments = [EXPERIMENTS / f"{name}.yaml" for name in given.experiments]
    # All are measured before a file changes, so that each names the commit it was measured on.
    measured = {}
    if experiments and given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        measured = measure(experiments, given.folder)
    elif experiments:
        with tempfile.TemporaryDirectory() as name:
            measured = measure(experiments, Path(name))
    for experiment, figures in measured.items():
        (BENCHMARKS / f"{experiment.stem}.json").write_text(json.dumps(figures, indent=1) + "\n")
        text = re.sub(
            r"(?m)^# Result   .*\n(#          .*\n)*",
            lambda _: result_lines(figures) + "\n",  # noqa: B023
            experiment.read_text(),
        )
        experiment.write_text(text)
    README.write_text(with_blocks(README.read_text()))


if __name__ == "__main__":
    main()

"""Run an experiment's commands as its header gives them, and write down what came out.

    python scripts/measure.py quickstart realset_tiny
    python scripts/measure.py forgetting --folder measuring

The commands run in an empty folder, one that several experiments give only once. A folder that is
named is kept, and commands that have ended in it are not repeated: what was interrupted goes on,
on the commit, machine and versions that it was begun with. `benchmarks/<experiment>.json` gets what
was measured with these, the header's Cost and Result and the README are brought up to date. Figures
are written in that one JSON file and copied from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
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
import tables

from clipstem import prediction, run

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "conf" / "experiment"
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


def facts() -> dict[str, Any]:
    """What figures depend on besides the command: commit, versions, machine, and the time.

    Called before anything runs. What no commit holds can't be measured again: it is refused.
    """
    environment = run.environment()
    commit = environment["commit"]
    if commit is None or commit.endswith("-dirty"):
        sys.exit(f"measured is what a commit holds, but the checkout is at {commit}: commit first")
    kept = {name: environment[name] for name in ("commit", "python", "versions", "started")}
    return {**kept, "machine": machine()}


def run_command(command: str, folder: Path) -> dict[str, Any]:
    """Run one command in `folder`; its seconds, and the most memory it and its children held."""
    words = [
        sys.executable if word == "python" else word
        for word in shlex.split(os.path.expandvars(command))
    ]
    started = time.perf_counter()
    process = psutil.Popen(words, cwd=folder)
    peak_bytes = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not done.wait(1.0):
            peak_bytes = max(peak_bytes, _memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        status = process.wait()
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    if status:
        sys.exit(f"{command}: exit {status}")
    return {
        "command": command,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_bytes / 2**30, 2),
    }


SAME = ("commit", "versions", "machine")
"""Facts that all commands of one measurement share."""


def run_each(every: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Run the commands that have not ended in `folder` before; what is known of all.

    Each has the `facts` of when it ran. A folder goes on where the facts are those of what ended.
    """
    ended = folder / "ended.json"
    ran: dict[str, dict[str, Any]] = json.loads(ended.read_text()) if ended.exists() else {}
    for command in every:
        if command in ran:
            continue
        now = facts()
        one_of([*(ran[it]["facts"] for it in every if it in ran), now])
        ran[command] = {**run_command(command, folder), "facts": now}
        ended.write_text(json.dumps(ran, indent=1) + "\n")
    return ran


def one_of(known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What facts share that belong to one measurement."""
    for name in SAME:
        different = {json.dumps(it[name], sort_keys=True) for it in known}
        if len(different) > 1:
            sys.exit(
                f"not one {name}, so not one measurement: {' and '.join(sorted(different))}; "
                "go on where it was begun, or give another --folder"
            )
    return {name: known[0][name] for name in SAME}


def made_by(ran: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The commands of one measurement, what they share, and the day of the last."""
    return {
        "commands": [{name: it[name] for name in it if name != "facts"} for it in ran],
        **one_of([it["facts"] for it in ran]),
        "date": max(it["facts"]["started"] for it in ran)[:10],
    }


def publish(name: str, figures: dict[str, Any]) -> None:
    """Write `benchmarks/<name>.json`, and bring up to date what the README shows of it."""
    (tables.BENCHMARKS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    README.write_text(tables.with_blocks(README.read_text()))


def _memory(process: psutil.Process) -> int:
    """Bytes held by a process and its children; pages they share count once (PSS)."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it has ended
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_full_info().pss
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
    return {
        experiment: {
            "experiment": experiment.stem,
            **claims.figures(experiment.stem, found, own(experiment, routed)),
            **made_by([ran[command] for command in commands(experiment)]),
        }
        for experiment in experiments
    }


def own(experiment: Path, routed: dict[str, Any]) -> dict[str, Any]:
    """The routings that the experiment's own commands have written."""
    words = {word for command in commands(experiment) for word in command.split()}
    return {name: it for name, it in routed.items() if f"out=routes/{name}" in words}


def cost_lines(figures: dict[str, Any]) -> str:
    """The Cost of an experiment's header: all its commands, one after the other."""
    minutes = sum(ran["seconds"] for ran in figures["commands"]) / 60
    return wrapped("Cost", f"{figures['machine']['cores']} CPU cores, {minutes:.0f} minutes")


def result_lines(figures: dict[str, Any]) -> str:
    """The Result of an experiment's header."""
    return wrapped("Result", f"{figures['result']}, {figures['date']}")


def wrapped(field: str, text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=f"# {field:9}", subsequent_indent=f"#{'':10}")


def with_measured(text: str, figures: dict[str, Any]) -> str:
    """An experiment's file with Cost and Result, its header's last fields, brought up to date."""
    for field, lines in {"Cost": cost_lines(figures), "Result": result_lines(figures)}.items():
        old = re.compile(rf"(?m)^# {field:9}.*\n(#          .*\n)*")
        text = old.sub(lambda _: lines + "\n", text)  # noqa: B023
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
        publish(experiment.stem, figures)
        experiment.write_text(with_measured(experiment.read_text(), figures))
    README.write_text(tables.with_blocks(README.read_text()))


if __name__ == "__main__":
    main()

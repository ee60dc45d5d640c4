"""Ask a server on this machine that fails one request in five, and kill the run in the middle.

    python scripts/measure_ask.py

2,000 questions, three runs of `python -m clipstem.ask`: against a server that never fails; against
one where one request in five fails (429, 500, 503, late, cut off, no JSON …); and against that
again, killed with SIGKILL when half is answered and started anew. `benchmarks/ask.json` gets how
many requests were made, what was asked twice, and how fast it was; the README follows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from chat_server import ChatServer, failing
from measure import facts, publish

from clipstem import prediction
from clipstem.ask.answers import HEADER
from clipstem.config import PrepareConfig, Source
from clipstem.prepare import prepare

FAILING = 0.2
CONCURRENCY = 32
SETTINGS = (f"concurrency={CONCURRENCY}", "timeout_seconds=10")  # late answers take longer


def write_questions(folder: Path, questions: int) -> None:
    """Prepare questions that differ from each other, with texts only."""
    with (folder / "questions.jsonl").open("w") as file:
        for number in range(questions):
            options = [f"{number + step} apples" for step in range(2 + number % 3)]
            values = {
                "id": f"q{number}",
                "subject": "math",
                "grade": "grade-1",
                "skill": "counting",
            }
            asked = {"problem": f"How many apples are in box {number}?", "options": options}
            file.write(json.dumps({**values, **asked, "answer": 0, "split": "valid"}) + "\n")
    path = str(folder / "questions.jsonl")
    prepare(PrepareConfig(str(folder / "data"), source=Source.jsonl, path=path, workers=1))


def start(folder: Path, server: ChatServer, out: str) -> subprocess.Popen[bytes]:
    given = (f"data={folder / 'data'}", "split=valid", f"out={folder / out}", "model_name=stand-in")
    command = [sys.executable, "-m", "clipstem.ask", *given, f"base_url={server.url}", *SETTINGS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> float:
    """Wait for a run; the processor's seconds that it took, which no other process changes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.wait():
        sys.exit(f"{process.args!r}: exit {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def whole(folder: Path, out: str, share: float) -> dict[str, Any]:
    """A run that nobody disturbs."""
    with ChatServer(failing(share)) as server:
        core_seconds = finish(start(folder, server, out))
        made = prediction.read(folder / out).provenance
        return {
            "requests": len(server.calls),
            "answered": len(server.answered),
            "questions_per_second": round(made["answers"] / made["seconds"], 1),
            "seconds": made["seconds"],
            "core_seconds": round(core_seconds, 1),
            "faults": made["faults"],
        }


def killed(folder: Path, out: str, questions: int) -> dict[str, Any]:
    """A run that is killed when half is answered, and goes on."""
    cache = (folder / out).with_suffix(".answers.jsonl")
    with ChatServer(failing(FAILING)) as server:
        process = start(folder, server, out)
        while len(server.answered) < questions // 2:
            if process.poll() is not None:
                sys.exit(f"the run ended before it was killed: exit {process.returncode}")
            time.sleep(0.01)
        process.kill()
        process.wait()
        lines = [line for line in cache.read_bytes().splitlines(keepends=True) if line != HEADER]
        kept = [json.loads(line)["question"] for line in lines if line.endswith(b"\n")]
        before = len(server.calls)
        finish(start(folder, server, out))
        again = "\n".join(call.prompt for call in server.calls[before:])
        times = Counter(server.answered)
        return {
            "kept_when_killed": len(kept),
            "requests": len(server.calls),
            "answered_twice": sum(count - 1 for count in times.values()),
            "asked_again_though_kept": sum(f"box {it.removeprefix('q')}?" in again for it in kept),
        }


def measure(folder: Path, questions: int) -> dict[str, Any]:
    """All three runs, in an empty folder."""
    write_questions(folder, questions)
    without, with_faults = whole(folder, "a.parquet", 0.0), whole(folder, "b.parquet", FAILING)
    broken_off = killed(folder, "c.parquet", questions)
    found = [prediction.read(folder / f"{name}.parquet") for name in "abc"]
    last = found[-1]
    said = [dict(zip(it.columns["id"], it.choice_Q.tolist(), strict=True)) for it in found]
    return {
        "questions": questions,
        "concurrency": CONCURRENCY,
        "failing": FAILING,
        "without_faults": without,
        "with_faults": with_faults,
        "killed": broken_off,
        "predicted": len(last),
        "left_out": last.provenance["skipped"],
        "same_as_asked_without_faults": all(
            said[0][id] == choice for it in said for id, choice in it.items()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    given = parser.parse_args()
    made_by = facts()
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name), given.questions)
    figures = {
        **measured,
        "command": " ".join(["python scripts/measure_ask.py", *sys.argv[1:]]),
        **made_by,
    }
    publish("ask", figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

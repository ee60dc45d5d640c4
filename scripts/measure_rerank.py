"""Measure `rerank` on drawn candidates and on real ones of GSM8K, and write down what came out.

    CLIPSTEM_CANDIDATES=<folder> python scripts/measure_rerank.py --folder measuring

The folder of `CLIPSTEM_CANDIDATES` holds `train.jsonl` and `valid.jsonl`: questions of GSM8K with
the published solutions of seven systems. Commands that have ended in `--folder` are not repeated.
`benchmarks/rerank.json` gets the figures, with machine, versions and commit, and the
README is brought up to date.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from claims import ends, rounded
from measure import made_by, publish, run_each
from tables import BENCHMARKS

from clipstem.report.rerank import read
from clipstem.rerank.figures import Figures, Share
from clipstem.statistics import Paired

GSM8K = "candidates=[$CLIPSTEM_CANDIDATES/train.jsonl,$CLIPSTEM_CANDIDATES/valid.jsonl]"
BEST = "abel-70b"  # the best system, which the second measurement leaves out
COMMANDS = {
    "gsm8k": f"python -m clipstem.rerank {GSM8K} folds=3 out=gsm8k",
    f"gsm8k without {BEST}": (
        f"python -m clipstem.rerank {GSM8K} folds=3 leave_out=[{BEST}] out=without"
    ),
    "drawn": "python -m clipstem.rerank out=drawn",
}


def figures(found: Figures) -> dict[str, Any]:
    """What is promised and shown, without paths."""
    return {
        "questions": found.known,
        "candidates": found.candidates,
        "systems": {
            name: {
                "right": rounded(one.right),
                "auc": None if one.auc is None else rounded(one.auc.value),
                "auc_interval": None if one.auc is None else ends(one.auc.interval),
            }
            for name, one in found.systems.items()
        },
        "methods": {
            name: {
                **share(one.right),
                "over_majority": paired(one.over_majority),
                "over_best_system": paired(one.over_best_system),
            }
            for name, one in found.methods.items()
        },
        "any_right": share(found.any_right),
        "majority_ties": found.majority_ties,
        "majority_by_lot": rounded(found.majority_by_lot),
        "scores": None if found.scores is None else scores(found),
        "best_of": {
            "sizes": found.best_of.sizes,
            "right": {
                name: [share(it) for it in every] for name, every in found.best_of.right.items()
            },
        },
        "scorer": found.made_by["scorer"],
        "notes": found.notes,
    }


def scores(found: Figures) -> dict[str, Any]:
    of = found.scores
    assert of is not None
    return {
        "pairs": of.pairs,
        "ordered": known(of.ordered),
        "ordered_by_track_record": known(of.ordered_by_track_record),
        "given_systems": None if of.given_systems is None else share(of.given_systems),
        "mix": paired(of.mix),
        "judges": of.judges,
        "taken": of.taken,
    }


def known(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def share(found: Share) -> dict[str, Any]:
    return {"value": rounded(found.value), "interval": ends(found.interval)}


def paired(found: Paired) -> dict[str, Any]:
    return {
        "difference": rounded(found.difference),
        "interval": ends(found.interval),
        "p": rounded(found.p),
    }


def measure(folder: Path) -> dict[str, Any]:
    """Run the commands that have not ended, and gather what they wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = run_each(list(COMMANDS.values()), folder)
    found = {
        name: read(folder / command.rpartition("out=")[2] / "rerank.json")
        for name, command in COMMANDS.items()
    }
    shutil.copy(folder / "gsm8k" / "best_of_n.svg", BENCHMARKS / "rerank.svg")
    return {
        "sets": {name: figures(one) for name, one in found.items()},
        **made_by([ran[command] for command in COMMANDS.values()]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where the commands run; kept")
    measured = measure(parser.parse_args().folder)
    publish("rerank", measured)
    print(json.dumps({name: it["methods"] for name, it in measured["sets"].items()}, indent=1))

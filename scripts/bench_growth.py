"""What a question costs in a set of ten thousand, and in one of three hundred thousand.

    python scripts/bench_growth.py                 # an hour or so on two cores
    python scripts/bench_growth.py 1000 3000       # other sizes, smallest first

At each size the bank's questions are written as parquet in STEM's schema, prepared, read in the
order of a training, and scored by `tiny`; its predictions are written and read. A cost is the
processors' seconds, of all processes: other work on the machine hardly changes it. The rates of
preparing on one core are measured once, at the smallest size, and the memory in use is sampled
while the questions are scored. `benchmarks/growth.json` and `growth.svg` get what a question costs
at each stage, and the README is brought up to date.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from measure import facts, publish
from tables import BENCHMARKS

from clipstem import charts, prediction, shards, towers
from clipstem.bank import SKILLS
from clipstem.bank.__main__ import write_bank
from clipstem.command import model_config
from clipstem.config import BankConfig, PredictConfig, PrepareConfig, Source, TrainerConfig, Verify
from clipstem.prediction import Predictions
from clipstem.prepare import prepare
from clipstem.scorer import Scorer

SIZES = (10_000, 30_000, 100_000, 300_000)
BATCH_SIZE = PredictConfig.batch_size


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    spent = [resource.getrusage(it) for it in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in spent)


def seconds_of(work: Callable[[], Any]) -> float:
    started = processor_seconds()
    work()
    return processor_seconds() - started


def prepared(bank: Path, out: Path, verify: Verify, workers: int | None) -> None:
    prepare(
        PrepareConfig(
            source=Source.stem,
            path=str(bank),
            out=str(out),
            verify=verify,
            workers=workers,
            tune_fraction=0,
        )
    )


def read_all(dataset: shards.Dataset) -> None:
    """Every question's bytes, in the order of an epoch, in batches as the loader asks for them."""
    numbers = shards.order(dataset.manifest, "train", 0, 0)
    for start in range(0, len(numbers), BATCH_SIZE):
        dataset.read("train", numbers[start : start + BATCH_SIZE])


def written_and_read(found: Predictions, file: Path) -> None:
    found.write(file)
    prediction.read(file)


def stages(
    size: int, scorer: Scorer, folder: Path
) -> tuple[int, dict[str, float], dict[str, float]]:
    """How many questions there are, the seconds of each stage, and the most memory in use in the
    first and in the last tenth of the scoring, MiB."""
    bank, data, file = folder / "bank", folder / "data", folder / "predictions.parquet"
    counts = {"train": -(-size // len(SKILLS))}
    seconds = {
        "draw": seconds_of(lambda: write_bank(BankConfig(str(bank), questions_per_skill=counts))),
        "prepare": seconds_of(lambda: prepared(bank, data, Verify.decode, None)),
    }
    dataset = shards.open_dataset(str(data))
    seconds["read"] = seconds_of(lambda: read_all(dataset))
    found: list[Predictions] = []
    resident: list[int] = []

    def sample(questions: int) -> None:
        resident.append(psutil.Process().memory_info().rss)

    seconds["predict"] = seconds_of(
        lambda: found.append(scorer.predict(dataset, "train", BATCH_SIZE, sample))
    )
    seconds["predictions file"] = seconds_of(lambda: written_and_read(found[0], file))
    tenth = max(1, len(resident) // 10)
    ends = {"first": max(resident[:tenth]), "last": max(resident[-tenth:])}
    return dataset.size("train"), seconds, {end: round(it / 2**20) for end, it in ends.items()}


def prepare_rates(questions: int, folder: Path) -> dict[str, int]:
    """Questions a second on one core, from the parquet files that `stages` has left."""
    rates = {}
    for verify in Verify:
        work = partial(prepared, folder / "bank", folder / verify.value, verify, 1)
        rates[verify.value] = round(questions / seconds_of(work))
    return rates


def picture(figures: dict[str, Any]) -> str:
    sizes = [it["questions"] for it in figures["sizes"]]
    series = {
        stage: (sizes, [it["milliseconds"][stage] for it in figures["sizes"]])
        for stage in figures["sizes"][0]["milliseconds"]
    }
    return charts.scatter(
        series,
        "questions",
        "milliseconds a question",
        "What a question costs at each stage, by the number of questions.",
        log_x=True,
    )


def measure(sizes: Sequence[int]) -> dict[str, Any]:
    """Every size, smallest first: the memory of a process never falls."""
    scorer = Scorer(towers.create(model_config("tiny")), TrainerConfig("cpu"))
    found: list[dict[str, Any]] = []
    rates: dict[str, int] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            questions, seconds, resident = stages(size, scorer, Path(name))
            rates = rates or prepare_rates(questions, Path(name))
        users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        kib = max(resource.getrusage(who).ru_maxrss for who in users)
        found.append(
            {
                "questions": questions,
                "milliseconds": {
                    stage: round(1000 * it / questions, 4) for stage, it in seconds.items()
                },
                "peak_gib_of_a_process": round(kib / 2**20, 3),
                "scoring_mib_by_tenth": resident,
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr)
    return {
        "sizes": found,
        "prepare_questions_per_second_one_core": rates,
    }


def main() -> None:
    made_by = facts()
    command = " ".join(["python scripts/bench_growth.py", *sys.argv[1:]])
    figures = measure([int(size) for size in sys.argv[1:]] or SIZES)
    (BENCHMARKS / "growth.svg").write_text(picture(figures))
    publish("growth", {"command": command, **made_by, **figures})


if __name__ == "__main__":
    main()

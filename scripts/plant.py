"""Plant known faults in a drawn bank: wrong answers, near-duplicates, leaks.

    python -m clipstem.bank out=bank
    python scripts/plant.py bank planted --wrong 0.1 --duplicates 0.02 --leaks 0.01

The new folder is a set in STEM's schema, with `planted.json` beside: which train questions are
wrong, which are copies of which, by the ids that `prepare source=stem` gives. A copy has the same
content with pictures that are encoded again or made up to a tenth larger or smaller, and other
case or spacing in its texts; a leak is such a copy of a valid question, put into train. Shares are
of train's questions.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipstem.bank.stem import SCHEMA

Row = dict[str, Any]


def rows_of(bank: Path, split: str) -> list[Row]:
    """All rows of a split, in the order in which `prepare` numbers them."""
    return [
        row
        for file in sorted((bank / "data").glob(f"{split}-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def wrong(row: Row, rng: random.Random) -> Row:
    """The row with another option as its answer."""
    options = len(row["choices"] or row["choices_pic"])
    others = [place for place in range(options) if place != row["answer_idx"]]
    return {**row, "answer_idx": rng.choice(others)}


def copied(row: Row, rng: random.Random) -> Row:
    """The same question to a person: other bytes in every picture, other letters in its texts."""
    change = rng.choice((str.upper, str.title, _wider, lambda text: f"  {text} "))
    encoding = rng.choice(("JPEG", "WEBP", "PNG"))
    scale = rng.uniform(0.9, 1.1) if encoding == "PNG" or rng.random() < 0.5 else 1.0
    quality = rng.randint(85, 95)

    def again(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        size = (round(image.width * scale), round(image.height * scale))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, encoding, quality=quality)
        return buffer.getvalue()

    return {
        **row,
        "problem": change(row["problem"]),
        "problem_pic": row["problem_pic"] and again(row["problem_pic"]),
        "choices": row["choices"] and [change(it) for it in row["choices"]],
        "choices_pic": row["choices_pic"] and [again(it) for it in row["choices_pic"]],
    }


def _wider(text: str) -> str:
    return text.replace(" ", "  ")


def planted(
    splits: dict[str, list[Row]], shares: dict[str, float], rng: random.Random
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The splits with faults, and where they are, by id."""
    train, valid = list(splits["train"]), splits.get("valid", [])
    count = {name: round(share * len(train)) for name, share in shares.items()}
    wrong_places = sorted(rng.sample(range(len(train)), count["wrong"]))
    for place in wrong_places:
        train[place] = wrong(train[place], rng)
    are_wrong = set(wrong_places)
    duplicates, leaks = [], []
    for place in rng.sample(range(len(train)), count["duplicates"]):
        if place in are_wrong:
            are_wrong.add(len(train))  # a copy is as wrong as what it is of
        duplicates.append((f"train-{len(train)}", f"train-{place}"))
        train.append(copied(train[place], rng))
    for place in rng.sample(range(len(valid)), count["leaks"]):
        leaks.append((f"train-{len(train)}", f"valid-{place}"))
        train.append(copied(valid[place], rng))
    truth = {
        "wrong": [f"train-{place}" for place in sorted(are_wrong)],
        "duplicates": duplicates,
        "leaks": leaks,
    }
    return {**splits, "train": train}, truth


def plant(bank: Path, out: Path, shares: dict[str, float], seed: int) -> dict[str, Any]:
    """Write the new set; returns what was planted."""
    splits = {split: rows_of(bank, split) for split in ("train", "valid", "test")}
    rows, truth = planted(splits, shares, random.Random(seed))
    (out / "data").mkdir(parents=True)
    for split, of_split in rows.items():
        if of_split:
            table = pa.Table.from_pylist(of_split, SCHEMA)
            pq.write_table(table, out / "data" / f"{split}-00000-of-00001.parquet")
    (out / "planted.json").write_text(json.dumps(truth, indent=1) + "\n")
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bank", type=Path, help="a folder made by python -m clipstem.bank")
    parser.add_argument("out", type=Path, help="the new folder")
    for name in ("wrong", "duplicates", "leaks"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help="share of train's questions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shares = {name: getattr(given, name) for name in ("wrong", "duplicates", "leaks")}
    truth = plant(given.bank, given.out, shares, given.seed)
    print(", ".join(f"{len(ids):,} {name}" for name, ids in truth.items()), f"in {given.out}")


if __name__ == "__main__":
    main()

"""`python -m clipstem.prepare`: questions from a source, checked, as shards ready to train on.

Two passes, each on all cores. The first reads and checks every row once and appends its finished
tar members to a spool; only hashes and places come back. Then the whole is planned in memory:
duplicates, splits, `tune`, the order. The second pass copies each shard's samples out of the
spools, which go when all shards are there: until then the disk holds the data twice.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from clipstem import __version__
from clipstem.atomic import new_folder
from clipstem.bank.stem import bank_splits
from clipstem.command import verb
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.console import progress_bar
from clipstem.jsonl import JsonlSource
from clipstem.question import SPLITS, ClipstemError
from clipstem.shards import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Shard,
    hash_of_shards,
    sample_record,
    write_shard,
)
from clipstem.sources import Chunk, DrawnSource, stem_source
from clipstem.splits import components, divide, in_splits, shared
from clipstem.spool import (
    AnySource,
    BadRow,
    Checks,
    Ints,
    Spooled,
    read_samples,
    spool_chunk,
)
from clipstem.workers import Workers

TRAIN, TUNE = SPLITS.index("train"), SPLITS.index("tune")
SHOWN_BAD_ROWS = 3


def prepare(config: PrepareConfig) -> Manifest:
    """Make the prepared folder `config.out`: in the end all of it is there, or nothing.

    Raises:
        ClipstemError: if `out` exists, the source cannot be read, too many rows are bad, or the
            disk is full.
    """
    try:
        with new_folder(Path(config.out)) as folder, Workers(config.workers) as workers:
            return _prepare(config, folder, workers)
    except OSError as error:
        raise ClipstemError(f"{error.filename or config.out}: {error.strerror or error}") from error


def _prepare(config: PrepareConfig, folder: Path, workers: Workers) -> Manifest:
    source = _open_source(config)
    chunks = source.chunks()
    spools = folder / "spools"
    spools.mkdir()

    # First pass: what the rows are.
    read = partial(spool_chunk, source, _checks(config), spools)
    results = workers.map(read, list(enumerate(chunks)))
    spooled, bad = _collect(results, chunks, config.max_skipped_fraction)
    spooled, repeated = _without_repeated_ids(spooled, chunks, spools)
    bad = sorted([*bad, *repeated], key=lambda row: row.key)
    _refuse_too_many(bad, chunks, config.max_skipped_fraction)
    if not len(spooled.split_N):
        raise ClipstemError(f"source={config.source.value}: there is no question in it")

    # Where they go.
    spooled.split_N = _choose_splits(spooled, config)
    jobs = list(_shard_jobs(spooled, config.shard_bytes, config.seed))
    in_split_C = in_splits(_numbered(spooled.content_N), spooled.split_N)
    in_split_P = in_splits(
        _numbered(spooled.picture_P), np.repeat(spooled.split_N, spooled.pictures_N)
    )

    # Second pass: the shards, and what stands beside them.
    shards = _write_shards(folder, spools, jobs, workers)
    _write_lines(folder / "leaks.jsonl", _leaks(spooled, in_split_C, spools))
    _write_lines(folder / "skipped.jsonl", [row.as_json() for row in bad])
    shutil.rmtree(spools)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        clipstem_version=__version__,
        source=_source_settings(config),
        seed=config.seed,
        max_image_side=config.max_image_side,
        source_rows=_source_rows(chunks),
        questions=_questions(shards),
        skills=_skills(folder, shards),
        skipped=dict(Counter(map(_reason, bad)).most_common()),
        leaks=shared(in_split_C),
        shared_pictures=shared(in_split_P),
        data_sha256=hash_of_shards(shards),
        shards=tuple(shards),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


# ---------------------------------------------------------------------------- first pass


def _open_source(config: PrepareConfig) -> AnySource:
    if config.source is Source.drawn:
        splits = bank_splits(config.skills, config.questions_per_skill, config.seed)
        return DrawnSource(tuple(splits))
    assert config.path is not None
    if config.source is Source.stem:
        return stem_source(config.path)
    return JsonlSource(Path(config.path), config.split or "", bool(config.split_fractions))


def _checks(config: PrepareConfig) -> Checks:
    return Checks(config.verify is Verify.decode, config.max_image_side)


def _collect(
    results: Iterable[tuple[Spooled, list[BadRow]]],
    chunks: Sequence[Chunk],
    max_skipped_fraction: float,
) -> tuple[Spooled, list[BadRow]]:
    """All results together; stops as soon as too many rows are bad."""
    parts: list[Spooled] = []
    bad: list[BadRow] = []
    with progress_bar("reading", _rows(chunks)) as advance:
        for (part, bad_part), chunk in zip(results, chunks, strict=True):
            parts.append(part)
            bad += bad_part
            _refuse_too_many(bad, chunks, max_skipped_fraction)
            advance(chunk.rows)
    if not parts:
        raise ClipstemError("the source is empty; expected at least one question")
    return Spooled.joined(parts), bad


def _rows(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.rows for chunk in chunks)


def _without_repeated_ids(
    spooled: Spooled, chunks: Sequence[Chunk], spools: Path
) -> tuple[Spooled, list[BadRow]]:
    """The questions whose id did not come before, and the others as bad rows."""
    first_N = np.zeros(len(spooled.id_N), np.bool_)
    first_N[np.unique(spooled.id_N, return_index=True)[1]] = True
    repeated = spooled.where(~first_N)
    bad = []
    samples = read_samples(spools, repeated.chunk_N, repeated.start_N, repeated.length_N)
    for chunk, sample in zip(repeated.chunk_N, samples, strict=True):
        key, record = sample_record(sample)
        reason = f"'{record['id']}' came before; expected a different id in each row"
        bad.append(BadRow(key, record["row"], chunks[chunk].file, "id", reason))
    return spooled.where(first_N), bad


def _refuse_too_many(
    bad: Sequence[BadRow], chunks: Sequence[Chunk], max_skipped_fraction: float
) -> None:
    rows = _rows(chunks)
    if len(bad) <= max_skipped_fraction * rows:
        return
    counts = Counter(map(_reason, bad)).most_common()
    raise ClipstemError(
        f"{len(bad):,} bad rows are more than max_skipped_fraction={max_skipped_fraction} of "
        f"{rows:,} rows allows: {'; '.join(f'{count:,} × {reason}' for reason, count in counts)}. "
        f"The first: {'; '.join(map(str, bad[:SHOWN_BAD_ROWS]))}"
    )


def _reason(bad: BadRow) -> str:
    """A bad row's reason without its own values, to count by: what was expected, if it says so."""
    field = re.sub(r"\[\d+\]", "", bad.field)
    _, separator, expected = bad.reason.partition("; expected ")
    if separator:
        return f"{field}: expected " + re.sub(r"-?\d+", "N", expected)
    return f"{field}: " + re.sub(r"'.*?'|\(.*?\)|[\d,]*\d", "…", bad.reason).strip(" …")


# ---------------------------------------------------------------------------- plan


def _choose_splits(spooled: Spooled, config: PrepareConfig) -> Ints:
    """The split of each question, [N]; questions with a common picture or content stay together."""
    split_N = spooled.split_N
    if config.split_fractions:
        names = list(config.split_fractions)
        part_N = divide(_components(spooled), list(config.split_fractions.values()), config.seed)
        split_N = np.array([SPLITS.index(name) for name in names])[part_N]
    train_N = split_N == TRAIN
    if config.tune_fraction and train_N.any():
        shares = [1 - config.tune_fraction, config.tune_fraction]
        part_N = divide(_components(spooled.where(train_N)), shares, config.seed)
        split_N[train_N] = np.array([TRAIN, TUNE])[part_N]
    return split_N


def _components(spooled: Spooled) -> Ints:
    questions = len(spooled.split_N)
    tokens = _numbered(np.concatenate([spooled.picture_P, spooled.content_N]))
    return components(np.concatenate([spooled.question_P, np.arange(questions)]), tokens, questions)


def _numbered(hashes: npt.NDArray[np.bytes_]) -> Ints:
    return np.unique(hashes, return_inverse=True)[1]


@dataclass(frozen=True)
class _ShardJob:
    """A shard to write, and the places of its samples in the spools."""

    name: str
    split: str
    chunk_N: Ints
    start_N: Ints
    length_N: Ints


def _shard_jobs(spooled: Spooled, shard_bytes: int, seed: int) -> Iterator[_ShardJob]:
    """Each split in one random order, cut where a shard is full."""
    for code, split in enumerate(SPLITS):
        chosen = np.flatnonzero(spooled.split_N == code)
        order = np.random.default_rng([seed, code]).permutation(chosen)
        length_N = spooled.length_N[order]
        shard_N = (np.cumsum(length_N) - length_N) // shard_bytes
        cuts = np.flatnonzero(np.diff(shard_N)) + 1
        for number, part in enumerate(np.split(order, cuts) if len(order) else []):
            yield _ShardJob(
                f"{split}-{number:06d}.tar",
                split,
                spooled.chunk_N[part],
                spooled.start_N[part],
                spooled.length_N[part],
            )


# ---------------------------------------------------------------------------- second pass


def _write_shards(
    folder: Path, spools: Path, jobs: Sequence[_ShardJob], workers: Workers
) -> list[Shard]:
    shards = []
    with progress_bar("writing", sum(len(job.chunk_N) for job in jobs)) as advance:
        for shard in workers.map(partial(_write_shard, folder, spools), jobs):
            shards.append(shard)
            advance(shard.questions)
    return shards


def _write_shard(folder: Path, spools: Path, job: _ShardJob) -> Shard:
    samples = read_samples(spools, job.chunk_N, job.start_N, job.length_N)
    return write_shard(folder, job.name, job.split, samples)


def _leaks(
    spooled: Spooled, in_split_C: npt.NDArray[np.bool_], spools: Path
) -> Iterator[dict[str, Any]]:
    """Each content that is in several splits: its text, and the ids it has in each."""
    content_N = _numbered(spooled.content_N)
    leaking = np.flatnonzero(in_split_C.sum(1)[content_N] > 1)
    leaking = leaking[np.argsort(content_N[leaking], kind="stable")]
    cuts = np.flatnonzero(np.diff(content_N[leaking])) + 1
    for group in np.split(leaking, cuts) if len(leaking) else []:
        samples = read_samples(
            spools, spooled.chunk_N[group], spooled.start_N[group], spooled.length_N[group]
        )
        leak: dict[str, Any] = {}
        for split, sample in zip(spooled.split_N[group], samples, strict=True):
            record = sample_record(sample)[1]
            leak["problem"] = record["problem"]
            leak.setdefault(SPLITS[split], []).append(record["id"])
        yield leak


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------- manifest


def _source_settings(config: PrepareConfig) -> dict[str, Any]:
    """The settings that the data depend on, for the source that was read."""
    settings: dict[str, Any] = {"source": config.source.value, "path": config.path}
    if config.source is Source.drawn:
        settings |= {"skills": config.skills, "questions_per_skill": config.questions_per_skill}
    if config.source is Source.jsonl:
        settings |= {"split": config.split, "split_fractions": config.split_fractions}
    return settings | {"tune_fraction": config.tune_fraction, "verify": config.verify.value}


def _source_rows(chunks: Sequence[Chunk]) -> dict[str, int]:
    """Rows of the source of each split; `tune` comes from train's, lines of one file from all."""
    rows: Counter[str] = Counter()
    for chunk in chunks:
        for split in [chunk.split] if chunk.split else SPLITS:
            rows[split] += chunk.rows
    if "train" in rows:
        rows["tune"] = rows["train"]
    return {split: rows[split] for split in SPLITS if split in rows}


def _questions(shards: Sequence[Shard]) -> dict[str, int]:
    questions: Counter[str] = Counter()
    for shard in shards:
        questions[shard.split] += shard.questions
    return dict(questions)


def _skills(folder: Path, shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """Questions by split and skill."""
    counts: dict[str, Counter[str]] = {}
    for shard in shards:
        skills = pq.read_table(folder / shard.index_name, columns=["skill"])["skill"]
        counts.setdefault(shard.split, Counter()).update(skills.to_pylist())
    return {split: dict(sorted(counter.items())) for split, counter in counts.items()}


@verb("prepare", PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare, and say what came out."""
    # `kill` and SLURM send SIGTERM: leave by an exception, which removes what is half done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    manifest = prepare(config)
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.questions.items())
    skipped = sum(manifest.skipped.values())
    leaks = sum(manifest.leaks.values())
    print(f"{config.out}: {counts}; {skipped:,} rows skipped, {leaks:,} leaks between splits")


if __name__ == "__main__":
    main()

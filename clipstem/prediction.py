"""Predictions: answered questions with the probability of each option. After the model,
everything reads and writes these files and never a network.

Q questions, K most options.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipstem import parquet
from clipstem.atomic import new_file
from clipstem.question import MAX_OPTIONS, UNKNOWN_ANSWER, ClipstemError

METADATA_KEY = b"clipstem"
COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "row": pa.int64(),  # the question's place in its source
    "subject": pa.string(),
    "grade": pa.string(),
    "skill": pa.string(),
    "kind": pa.string(),
    "num_options": pa.int64(),
    "question_words": pa.int64(),
    "truncated_tokens": pa.int64(),  # the most that an option's text lost
    "answer": pa.int64(),  # 0-based, or -1 unknown
    "choice": pa.int64(),  # the most probable option, the lowest index among equals
    "probs": pa.list_(pa.float64()),  # after the temperature
    "logits": pa.list_(pa.float32()),  # before the temperature
}
"""The schema of a predictions file."""

REQUIRED = ("id", "subject", "grade", "skill", "answer", "probs")
"""What anybody's predictions file must have; `read` says what stands for the rest."""

UNKNOWN = -1  # of question_words and truncated_tokens, where a file does not have them

MAX_CELLS = 20_000_000  # rows times most options: all of STEM has less than a third

SUM_TOLERANCE = 0.01  # probabilities that were rounded still count as summing to 1


@dataclass(frozen=True)
class Predictions:
    """A predictions file in memory.

    Attributes:
        columns: every column of `COLUMNS` but choice, probs and logits.
        probs_QK: float64, 0 where the question has fewer options than K.
        logits_QK: float32, the dtype's minimum there.
        provenance: what made them: model, run, hashes, temperature, split, timing …
        unread: names of the columns of the file that are not in `COLUMNS`.
        has_logits: whether the file has logits, or the logarithm of probs stands for them.
        skipped: ids of questions that are left out because a picture does not decode, and why;
            `write` lists them beside the file, `read` does not look for them.
    """

    columns: dict[str, Sequence[Any]]
    probs_QK: NDArray[np.float64]
    logits_QK: NDArray[np.float32]
    provenance: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    has_logits: bool = True
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.probs_QK)

    @property
    def choice_Q(self) -> NDArray[np.int64]:
        return self.probs_QK.argmax(axis=1)

    @property
    def answer_Q(self) -> NDArray[np.int64]:
        return np.asarray(self.columns["answer"], np.int64)

    @property
    def num_options_Q(self) -> NDArray[np.int64]:
        return np.asarray(self.columns["num_options"], np.int64)

    @property
    def perturbation(self) -> dict[str, Any] | None:
        """How the questions differ from those that the model was trained on, if they do."""
        return perturbation(self.provenance)

    def at(self, places: NDArray[np.int64]) -> Predictions:
        """The questions at these places, in that order."""
        columns: dict[str, Sequence[Any]] = {
            name: [values[place] for place in places.tolist()]
            for name, values in self.columns.items()
        }
        return replace(
            self,
            columns=columns,
            probs_QK=self.probs_QK[places],
            logits_QK=self.logits_QK[places],
            skipped=(),
        )

    def write(self, path: Path, replace: bool = False) -> None:
        """Write a predictions file.

        Raises:
            ClipstemError: if `path` exists, unless it is to be replaced.
        """
        arrays = {
            **self.columns,
            "choice": self.choice_Q,
            "probs": _ragged(self.probs_QK, self.num_options_Q),
            "logits": _ragged(self.logits_QK, self.num_options_Q),
        }
        schema = pa.schema(list(COLUMNS.items()), {METADATA_KEY: json.dumps(self.provenance)})
        table = pa.table(
            [pa.array(arrays[name], type_) for name, type_ in COLUMNS.items()], schema=schema
        )
        with new_file(path, replace) as partial:
            pq.write_table(table, partial, compression="zstd")
        if self.skipped:
            with new_file(skipped_file(path), replace=True) as partial:
                lines = [json.dumps({"id": id, "reason": why}) for id, why in self.skipped]
                partial.write_text("\n".join(lines) + "\n")

    def write_choices(self, path: Path, source_rows: int) -> int:
        """Write the leaderboard's `preds.txt`: one 0-based choice a line for every source row.

        Rows that have no prediction are answered 0; returns how many they are. Source: the
        submission rule of stemdataset/STEM (row order, no header, no trailing newline).
        """
        row_Q = np.asarray(self.columns["row"], np.int64)
        if len(np.unique(row_Q)) < len(row_Q) or not ((row_Q >= 0) & (row_Q < source_rows)).all():
            raise ClipstemError(
                f"the predictions' rows are not {len(row_Q):,} different ones below "
                f"{source_rows:,}, so there is no line for each source row"
            )
        choice_of_row = np.zeros(source_rows, np.int64)
        choice_of_row[row_Q] = self.choice_Q
        with new_file(path) as partial:
            partial.write_text("\n".join(map(str, choice_of_row)))
        return source_rows - len(self)


def skipped_file(path: Path) -> Path:
    """Where the questions stand that a predictions file leaves out, and why."""
    return path.with_suffix(".skipped.jsonl")


def perturbation(provenance: dict[str, Any]) -> dict[str, Any] | None:
    """How the questions differ from those that the model was trained on, if they do."""
    change: dict[str, Any] | None = provenance.get("perturbation")
    if change is not None and change["name"] == provenance.get("train_perturb"):
        return None  # a blind model's own questions
    return change


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Parts of a split's predictions, one after the other, with the first one's provenance."""
    most = max(part.probs_QK.shape[1] for part in parts)

    def wide(part_QK: NDArray[Any], filling: float) -> NDArray[Any]:
        padding = ((0, 0), (0, most - part_QK.shape[1]))
        return np.pad(part_QK, padding, constant_values=filling)

    lowest = float(np.finfo(np.float32).min)
    return replace(
        parts[0],
        columns={
            name: [value for part in parts for value in part.columns[name]]
            for name in parts[0].columns
        },
        probs_QK=np.concatenate([wide(part.probs_QK, 0.0) for part in parts]),
        logits_QK=np.concatenate([wide(part.logits_QK, lowest) for part in parts]),
        provenance={
            **parts[0].provenance,
            "skipped": sum(part.provenance.get("skipped", 0) for part in parts),
        },
        skipped=tuple(it for part in parts for it in part.skipped),
    )


def read_with_skipped(path: Path) -> Predictions:
    """Read a predictions file of ours with the questions that it leaves out.

    Raises:
        ClipstemError: as `read` does, or if these cannot be read or are not as many as the file
            says.
    """
    found, beside = read(path), skipped_file(path)
    expected = found.provenance.get("skipped", 0)
    try:
        lines = beside.read_text().splitlines() if expected else []
        skipped = tuple((it["id"], it["reason"]) for it in map(json.loads, lines))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipstemError(f"{beside}: cannot be read ({error!r})") from None
    if len(skipped) != expected:
        raise ClipstemError(
            f"{beside}: names {len(skipped):,} questions, but {path} has left out {expected:,}"
        )
    return replace(found, skipped=skipped)


def read(path: Path) -> Predictions:
    """Read a predictions file, ours or anybody's.

    The columns of `REQUIRED` must be there; answer is -1 where it is unknown. Of the others, what
    is absent is taken to be: row, the place in the file; kind, "unknown"; num_options, the number
    of probs; question_words and truncated_tokens, `UNKNOWN`; logits, the logarithm of probs.
    choice is not read: it follows from probs. Columns that are not in `COLUMNS` are not read
    either; `Predictions.unread` names them.

    Raises:
        ClipstemError: if it is missing, is no parquet file, a column is missing or of the wrong
            type, the metadata are no JSON object, an id or a skill is empty, an id comes twice, an
            answer is not among the options, probabilities are below 0 or do not sum to 1 within
            `SUM_TOLERANCE`, or a logit is null, NaN or +inf.
    """
    if not path.is_file():
        raise ClipstemError(f"{path}: there is no such predictions file")
    try:
        table, names = parquet.read(path, path.stat().st_size, COLUMNS.keys() - {"choice"})
    except ClipstemError as error:
        raise ClipstemError(f"{path}: is not a predictions file: {error}") from None
    if missing := [name for name in REQUIRED if name not in table.column_names]:
        raise ClipstemError(
            f"{path}: is not a predictions file: it lacks the columns {', '.join(missing)}"
        )
    typed = {
        name: _typed(table[name], name, path) for name in COLUMNS if name in table.column_names
    }
    columns: dict[str, Sequence[Any]] = {
        name: _values(typed[name]) for name in typed if name not in _LISTS
    }
    lengths = typed["probs"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    columns = {**_absent(len(table), lengths), **columns}
    num_options_Q = np.asarray(columns["num_options"], np.int64)
    probs_QK = _padded(typed["probs"], num_options_Q, path, 0.0, np.float64)
    lowest = np.finfo(np.float32).min
    if "logits" in typed:
        logits_QK = _padded(typed["logits"], num_options_Q, path, float(lowest), np.float32)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            logits_QK = np.maximum(np.log(probs_QK), lowest).astype(np.float32)
    found = Predictions(
        columns={name: columns[name] for name in COLUMNS if name in columns},
        probs_QK=probs_QK,
        logits_QK=logits_QK,
        provenance=_provenance(table.schema, path),
        unread=tuple(name for name in names if name not in COLUMNS),
        has_logits="logits" in typed,
    )
    _check(found, path)
    return found


def refuse_other_split(
    found: Predictions, path: Path, key: str, split: str, location: str, data_sha256: str
) -> None:
    """Refuse what says that it is of other questions than a split's, or of changed ones.

    Anybody's file that says nothing is known by its ids alone.

    Raises:
        ClipstemError: naming the conf key `key`, and how to make what is expected.
    """
    said = found.provenance
    start = f"conf key '{key}': {path} has"
    make = f"make it with python -m clipstem.predict run=<run> data={location} split={split}"
    if (sha256 := said.get("data_sha256")) not in (None, data_sha256):
        raise ClipstemError(
            f"{start} predictions for other data than {location} (data_sha256 "
            f"{str(sha256)[:12]}…, expected {data_sha256[:12]}…); {make}"
        )
    if (other := said.get("split")) not in (None, split):
        raise ClipstemError(f"{start} predictions for '{other}'; expected '{split}': {make}")
    if (change := said.get("perturbation")) is not None:
        raise ClipstemError(
            f"{start} answers to changed questions (perturb={change['name']}); expected unchanged "
            f"ones: {make}"
        )


def numbers_of(
    ids: Sequence[str], known: Sequence[str], path: Path, key: str, of: str
) -> NDArray[np.int64]:
    """The place of each of a file's ids among the known ones.

    Raises:
        ClipstemError: naming the conf key `key`, if there are none, or some are not known.
    """
    number_of = {id: number for number, id in enumerate(known)}
    if unknown := [id for id in ids if id not in number_of]:
        raise ClipstemError(
            f"conf key '{key}': {path} has {len(unknown):,} of {len(ids):,} ids that are not in "
            f"{of}, the first is '{unknown[0]}'; expected ids such as "
            f"'{next(iter(number_of), '')}'"
        )
    if not len(ids):
        raise ClipstemError(f"conf key '{key}': {path} has no rows; expected some, or leave it out")
    return np.fromiter((number_of[id] for id in ids), np.int64, len(ids))


def refuse_other_questions(
    found: Predictions,
    path: Path,
    row_Q: NDArray[np.int64],
    known: Mapping[str, Sequence[Any]],
    where: str,
) -> None:
    """The same id must mean the same question; either side may know more answers.

    `known` has columns of Q questions, `row_Q` their rows in the file, −1 where it has none.

    Raises:
        ClipstemError: naming the first question that differs, in the order of the columns.
    """
    here = np.flatnonzero(row_Q >= 0)
    for name, column in known.items():
        theirs = np.asarray(found.columns[name], object)[row_Q[here]]
        ours = np.asarray(column, object)[here]
        differs = theirs != ours
        if name == "answer":
            differs &= (theirs != UNKNOWN_ANSWER) & (ours != UNKNOWN_ANSWER)
        if differs.any():
            first = int(differs.argmax())
            raise ClipstemError(
                f"{path}: question '{found.columns['id'][row_Q[here[first]]]}' has {name} "
                f"{theirs[first]}, but {ours[first]} in {where}; these are answers to different "
                "questions"
            )


_LISTS = ("probs", "logits")


def _provenance(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """What the file's metadata say of how it was made; nothing where it has none of ours."""
    try:
        facts = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ClipstemError(
            f"{path}: the metadata '{METADATA_KEY.decode()}' are not a JSON object; expected what "
            "made the file, or none"
        )
    for name, (kinds, expected) in _FACTS.items():
        value = facts.get(name)
        if value is not None and type(value) not in kinds:
            raise ClipstemError(
                f"{path}: {name} in the metadata is {value!r}; expected {expected}, or none"
            )
    for skill, count in (facts.get("train_questions_of_skill") or {}).items():
        if type(count) is not int or not 0 <= count < 2**53:
            raise ClipstemError(
                f"{path}: train_questions_of_skill in the metadata has {count!r} for '{skill}'; "
                "expected a number of questions"
            )
    change = facts.get("perturbation")
    if change is not None and not (isinstance(change, dict) and _is_change(change)):
        raise ClipstemError(
            f"{path}: perturbation in the metadata is {change!r}; expected a name, a strength and "
            "a seed, or none"
        )
    return facts


_FACTS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("temperature", "parameters"), ((int, float), "a number")),
    **dict.fromkeys(
        ("run", "model", "split", "weights_sha256", "train_perturb"), ((str,), "a text")
    ),
    **{"train_questions_of_skill": ((dict,), "an object")},
    **{"without_picture": ((int,), "a whole number"), "source_rows": ((int,), "a whole number")},
}
"""What readers of a file rely on."""


def _is_change(change: dict[str, Any]) -> bool:
    strength, seed = change.get("strength"), change.get("seed")
    return (
        isinstance(change.get("name"), str)
        and (strength is None or type(strength) in (int, float))
        and (seed is None or type(seed) is int)
    )


def _absent(questions: int, lengths: NDArray[np.int64]) -> dict[str, Sequence[Any]]:
    """What stands for the columns that a file may leave out."""
    return {
        "row": list(range(questions)),
        "kind": ["unknown"] * questions,
        "num_options": lengths.tolist(),
        "question_words": [UNKNOWN] * questions,
        "truncated_tokens": [UNKNOWN] * questions,
    }


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; equal texts are one object, which saves most of their memory."""
    if column.type != pa.string():
        return column.to_pylist()
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    return [names[number] for number in encoded.indices.to_pylist()]


def _check(found: Predictions, path: Path) -> None:
    """Refuse values that no analysis could make sense of, naming the first row that has one."""
    for name in ("id", "skill"):
        if "" in found.columns[name]:
            row = found.columns[name].index("")
            raise ClipstemError(f"{path}: row {row}: '{name}' is empty; expected a name")
    if len(set(found.columns["id"])) < len(found):
        ((twice, count),) = Counter(found.columns["id"]).most_common(1)
        raise ClipstemError(
            f"{path}: the id '{twice}' stands in {count} rows; expected one row a question"
        )
    wrong_Q = (found.answer_Q < UNKNOWN_ANSWER) | (found.answer_Q >= found.num_options_Q)
    if wrong_Q.any():
        row = int(wrong_Q.argmax())
        raise ClipstemError(
            f"{path}: row {row}: the answer {found.answer_Q[row]} is not among the "
            f"{found.num_options_Q[row]} options; expected a 0-based index, or "
            f"{UNKNOWN_ANSWER} for unknown"
        )
    sum_Q = found.probs_QK.sum(axis=1)
    # Written so that a NaN is wrong too.
    wrong_Q = ~((np.abs(sum_Q - 1) <= SUM_TOLERANCE) & (found.probs_QK >= 0).all(axis=1))
    if wrong_Q.any():
        row = int(wrong_Q.argmax())
        probs = ", ".join(f"{prob:g}" for prob in found.probs_QK[row, : found.num_options_Q[row]])
        raise ClipstemError(
            f"{path}: row {row}: the probabilities {probs} sum to {sum_Q[row]:g}; expected numbers "
            "from 0 to 1 with sum 1 (are they logits?)"
        )
    if (wrong := np.flatnonzero(~(found.logits_QK < np.inf).all(axis=1))).size:
        row = int(wrong[0])
        logits = ", ".join(f"{x:g}" for x in found.logits_QK[row, : found.num_options_Q[row]])
        raise ClipstemError(
            f"{path}: row {row}: the logits are {logits}; expected numbers (or leave the column "
            "out)"
        )


def _typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """The column in the type that `COLUMNS` gives it, without gaps."""
    try:
        typed = column.cast(COLUMNS[name])
    except pa.ArrowException:
        typed = None
    if typed is None or typed.null_count:
        found = f"{column.type} with {column.null_count} nulls"
        raise ClipstemError(f"{path}: column '{name}' is {found}; expected {COLUMNS[name]}")
    return typed


def _options_QK(num_options_Q: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a question has an option."""
    return np.arange(num_options_Q.max(initial=1)) < num_options_Q[:, None]


def _ragged(values_QK: NDArray[Any], num_options_Q: NDArray[np.int64]) -> pa.ListArray:
    mask_QK = _options_QK(num_options_Q)
    offsets = np.concatenate([[0], np.cumsum(num_options_Q)])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(values_QK[:, : mask_QK.shape[1]][mask_QK])
    )


def _padded(
    column: pa.ChunkedArray,
    num_options_Q: NDArray[np.int64],
    path: Path,
    empty: float,
    dtype: type[np.floating],
) -> NDArray[Any]:
    lengths = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    most = int(lengths.max(initial=0))
    if most > MAX_OPTIONS or most * len(lengths) > MAX_CELLS:
        raise ClipstemError(
            f"{path}: has {len(lengths):,} rows and up to {most:,} options; expected at most "
            f"{MAX_OPTIONS:,} options, and {MAX_CELLS:,} rows times options"
        )
    if (wrong := np.flatnonzero(lengths != num_options_Q)).size:
        first = int(wrong[0])
        raise ClipstemError(
            f"{path}: row {first} has {lengths[first]} values for {num_options_Q[first]} options"
        )
    mask_QK = _options_QK(num_options_Q)
    values_QK = np.full(mask_QK.shape, empty, dtype)
    values_QK[mask_QK] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values_QK

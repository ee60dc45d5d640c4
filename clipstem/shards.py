"""Prepared questions on disk: WebDataset tars, an index beside each, and one manifest.

The format is described in `shards/README.md`. This is the only module that imports webdataset; it
does so when it first reads a sample, because that import takes seconds where torch is installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipstem import facts, parquet
from clipstem.question import MAX_OPTIONS, SPLITS, ClipstemError, Picture, Question
from clipstem.storage import Folder, storage

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WINDOW = 8192  # questions shuffled among each other in an epoch, near each other on disk
TAR_END = bytes(1024)  # two empty blocks end a tar
LEAST_BYTES = 1024  # of a question in a tar: a header and a record
MAX_SAMPLE_BYTES = 64 * 2**20
MOST_BYTES = 2**50  # of a shard; sums of offsets stay far from what an int64 holds
MOST_SOURCE_ROWS = 10**9

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("offset", pa.int64()),  # of the sample's first byte in the tar
        ("length", pa.int64()),  # bytes of the sample's members, headers and padding included
        ("sha256", pa.binary(32)),  # of those bytes
        ("subject", pa.string()),
        ("grade", pa.string()),
        ("skill", pa.string()),
        ("kind", pa.string()),
        ("num_options", pa.int64()),
        ("row", pa.int64()),  # the question's place in its source
        ("question_words", pa.int64()),
        ("answer", pa.int64()),
    ]
)

_MEMBER = re.compile(r"\d+\.(json|(problem|option\d+)\.(png|jpg|webp|gif|bmp|tiff))")
_SHARD_NAME = re.compile(r"[a-z]+-\d{6}\.tar")


@dataclass(frozen=True)
class Shard:
    """One tar of a split; `sha256` is of the whole file."""

    name: str
    split: str
    questions: int
    bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".parquet"


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds, and how it came to be.

    `source_rows[split]` is how many rows the split's source has: every `Question.row` of the split
    is below it. `skipped` counts bad rows by reason; `leaks` the questions that two splits share,
    and `shared_pictures` the distinct pictures, both by "split/split". `data_sha256` is the hash
    of the shards' hashes: the same number means the same questions in the same order.
    """

    format_version: int
    clipstem_version: str
    source: dict[str, Any]
    seed: int
    max_image_side: int | None
    source_rows: dict[str, int]
    questions: dict[str, int]
    skills: dict[str, dict[str, int]]
    skipped: dict[str, int]
    leaks: dict[str, int]
    shared_pictures: dict[str, int]
    data_sha256: str
    shards: tuple[Shard, ...]

    def of_split(self, split: str) -> list[Shard]:
        """The shards of a split in their order.

        Raises:
            ClipstemError: if there is no such split; the message names those there are.
        """
        if split not in self.questions:
            raise ClipstemError(
                f"there is no split '{split}'; this data has {', '.join(self.questions) or 'none'}"
            )
        return [shard for shard in self.shards if shard.split == split]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
        """The manifest written by `to_json`.

        Raises:
            ClipstemError: if it is none, contradicts itself, or is of a later format; the message
                says `where`.
        """
        try:
            manifest = facts.of_version(cls, facts.parse(text), FORMAT_VERSION)
            manifest._check()
        except facts.Newer as error:
            raise facts.Newer(f"{where}: {error}") from None
        except ClipstemError as error:
            raise ClipstemError(f"{where}: {error}; prepare the data again") from None
        return manifest

    def _check(self) -> None:
        """Refuse what no preparing has written.

        Raises:
            ClipstemError: with the reason.
        """
        for shard in self.shards:
            if not _SHARD_NAME.fullmatch(shard.name):
                raise ClipstemError(f"'{shard.name}' is no name of a shard")
            if not 0 < shard.questions * LEAST_BYTES <= shard.bytes < MOST_BYTES:
                raise ClipstemError(
                    f"{shard.name} cannot hold {shard.questions:,} questions in {shard.bytes:,} "
                    "bytes"
                )
        names = Counter(shard.name for shard in self.shards)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ClipstemError(f"'{twice[0]}' stands there twice")
        counted: Counter[str] = Counter()
        for shard in self.shards:
            counted[shard.split] += shard.questions
        if counted != self.questions or not counted.keys() <= {*SPLITS}:
            raise ClipstemError(
                f"its splits have {self.questions} questions, but its shards {dict(counted)}"
            )
        for split, rows in self.source_rows.items():
            if not 0 <= rows <= MOST_SOURCE_ROWS:
                raise ClipstemError(
                    f"{split} comes from {rows:,} rows, of which there are not so many"
                )


def hash_of_shards(shards: Iterable[Shard]) -> str:
    """The hash over the shards' hashes, in order."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


# ---------------------------------------------------------------------------- writing


def encode_sample(key: int, question: Question, suffixes: Sequence[str]) -> bytes:
    """The tar members of a question: `KEY.json`, then its pictures with the given suffixes.

    The bytes do not depend on the sample's place in a tar. Keys must differ within a data set.
    """
    stems = [] if question.picture is None else ["problem"]
    pictures = question.pictures
    stems += [f"option{i}" for i in range(len(pictures) - len(stems))]
    names = [f"{stem}.{suffix}" for stem, suffix in zip(stems, suffixes, strict=True)]
    record = {
        "id": question.id,
        "subject": question.subject,
        "grade": question.grade,
        "skill": question.skill,
        "problem": question.problem,
        "options": None if isinstance(question.options[0], Picture) else question.options,
        "answer": question.answer,
        "pictures": {n: p.sha256 for n, p in zip(names, pictures, strict=True)},
        "row": question.row,
    }
    captions = {n: p.caption for n, p in zip(names, pictures, strict=True) if p.caption}
    if captions:
        record["captions"] = captions
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    members = [_member(f"{key:012d}.json", text)]
    members += [_member(f"{key:012d}.{n}", p.data) for n, p in zip(names, pictures, strict=True)]
    return b"".join(members)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.uname = info.gname = "root"
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def sample_record(sample: bytes) -> tuple[int, dict[str, Any]]:
    """The key and the JSON record of what `encode_sample` returned."""
    header = tarfile.TarInfo.frombuf(sample[:512], "utf-8", "strict")
    return int(header.name.split(".")[0]), json.loads(sample[512 : 512 + header.size])


def write_shard(folder: Path, name: str, split: str, samples: Iterable[bytes]) -> Shard:
    """Write a tar of encoded samples, and the index beside it."""
    columns: dict[str, list[Any]] = {column: [] for column in INDEX_SCHEMA.names}
    whole, offset = hashlib.sha256(), 0
    with (folder / name).open("wb") as tar:
        for sample in samples:
            for column, value in _index_row(sample, offset).items():
                columns[column].append(value)
            tar.write(sample)
            whole.update(sample)
            offset += len(sample)
        tar.write(TAR_END)
        whole.update(TAR_END)
    shard = Shard(name, split, len(columns["id"]), offset + len(TAR_END), whole.hexdigest())
    pq.write_table(pa.table(columns, INDEX_SCHEMA), folder / shard.index_name, compression="zstd")
    return shard


def _index_row(sample: bytes, offset: int) -> dict[str, Any]:
    record = sample_record(sample)[1]
    question = _question(record, lambda name: Picture(b"", record["pictures"][name]))
    return {
        "id": question.id,
        "offset": offset,
        "length": len(sample),
        "sha256": hashlib.sha256(sample).digest(),
        "subject": question.subject,
        "grade": question.grade,
        "skill": question.skill,
        "kind": question.kind.value,
        "num_options": len(question.options),
        "row": question.row,
        "question_words": len(question.problem.split()),
        "answer": question.answer,
    }


def _question(record: dict[str, Any], picture: Callable[[str], Picture]) -> Question:
    """The question of a JSON record; `picture` gives the one of a member's name."""
    pictures = {name.partition(".")[0]: picture(name) for name in record["pictures"]}
    problem = pictures.pop("problem", None)
    options = pictures.values() if record["options"] is None else record["options"]
    return Question(
        id=record["id"],
        subject=record["subject"],
        grade=record["grade"],
        skill=record["skill"],
        problem=record["problem"],
        picture=problem,
        options=tuple(options),
        answer=record["answer"],
        row=record["row"],
    )


# ---------------------------------------------------------------------------- reading


class Dataset:
    """Questions of a prepared folder or URL, read by number.

    Cheap to pickle: a process reads a shard's index when it first needs it, and holds no open file.

    Attributes:
        perturbation: how its questions are changed when they are read; None: not at all.
    """

    perturbation: dict[str, Any] | None = None

    def __init__(self, location: str, manifest: Manifest) -> None:
        self.location = location
        self.manifest = manifest
        self._files = storage(location)
        self._spans: dict[str, _Spans] = {}

    def __reduce__(self) -> tuple[type[Dataset], tuple[str, Manifest]]:
        return Dataset, (self.location, self.manifest)

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of a split in their order.

        Raises:
            ClipstemError: if there is no such split; the message names those there are, and where.
        """
        try:
            return self.manifest.of_split(split)
        except ClipstemError as error:
            raise ClipstemError(f"{self.location}: {error}") from None

    def size(self, split: str) -> int:
        """How many questions a split has."""
        return sum(shard.questions for shard in self.shards_of(split))

    def index(self, split: str) -> pa.Table:
        """`INDEX_SCHEMA` without the places of bytes: a split's questions in order."""
        names = [name for name in INDEX_SCHEMA.names if name not in ("offset", "length", "sha256")]
        tables = [self._index(shard, names) for shard in self.shards_of(split)]
        return pa.concat_tables([_schema_of(names).empty_table(), *tables])

    def read(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[Question]:
        """The questions with these numbers within the split, in the given order.

        Raises:
            IndexError: for a number that is not there.
            ClipstemError: if a shard is missing or damaged.
        """
        shards = self.shards_of(split)
        ends = np.cumsum([0] + [shard.questions for shard in shards])
        numbers, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < ends[-1]):
            raise IndexError(f"{split} has questions 0 to {ends[-1] - 1}, not {numbers[[0, -1]]}")
        shard_of = np.searchsorted(ends, numbers, "right") - 1
        questions: list[Question] = []
        for place in np.unique(shard_of):
            questions += self._questions(shards[place], numbers[shard_of == place] - ends[place])
        return [questions[place] for place in places]

    def _questions(self, shard: Shard, numbers: npt.NDArray[np.int64]) -> list[Question]:
        """A shard's questions with these numbers, in rising order."""
        where = self._files.name(shard.name)
        questions = _decode([*self._samples(shard, numbers)], where)
        spans = self._spans[shard.name]
        for question, number in zip(questions, numbers, strict=True):
            said = spans.options[number], spans.answers[number]
            if said != (len(question.options), question.answer):
                raise ClipstemError(
                    f"{where}: question '{question.id}' is not the one that its index says (other "
                    "options or another answer); prepare the data again"
                )
        return questions

    def _samples(self, shard: Shard, numbers: npt.NDArray[np.int64]) -> Iterator[memoryview]:
        """The checked bytes of samples, given in rising order; neighbours are read together."""
        spans = self._spans.get(shard.name) or self._read_spans(shard)
        self._spans[shard.name] = spans
        starts, stops = spans.starts[numbers], spans.starts[numbers] + spans.lengths[numbers]
        breaks = np.flatnonzero(starts[1:] - stops[:-1] > self._files.gap_bytes) + 1
        runs = np.split(np.arange(len(numbers)), breaks)
        wanted = [(int(starts[run[0]]), int(stops[run[-1]])) for run in runs]
        pieces = self._files.pieces(shard.name, shard.bytes, wanted)
        for run, piece in zip(runs, pieces, strict=True):
            view = memoryview(piece)
            for i in run:
                sample = view[starts[i] - starts[run[0]] : stops[i] - starts[run[0]]]
                if hashlib.sha256(sample).digest() != spans.hashes[numbers[i]].as_py():
                    raise self._damaged(shard, int(numbers[i]))
                yield sample

    def _read_spans(self, shard: Shard) -> _Spans:
        spans = _Spans.of(self._index(shard, _Spans.COLUMNS))
        inside = (spans.starts >= 0) & (spans.lengths >= LEAST_BYTES)
        inside &= spans.lengths <= MAX_SAMPLE_BYTES
        inside &= spans.starts <= shard.bytes - spans.lengths
        if not inside.all():
            raise self._no_index(shard)
        return spans

    def _no_index(self, shard: Shard) -> ClipstemError:
        return ClipstemError(
            f"{self._files.name(shard.index_name)}: is no index of the {shard.questions:,} "
            f"questions in {shard.name}; copy it again or prepare the data again"
        )

    def _damaged(self, shard: Shard, number: int) -> ClipstemError:
        name = self._index(shard, ["id"])["id"][number].as_py()
        return ClipstemError(
            f"{self._files.name(shard.name)}: question '{name}' does not have the bytes it was "
            "written with (sha256 differs); copy the shard again or prepare the data again"
        )

    def _index(self, shard: Shard, columns: Sequence[str]) -> pa.Table:
        data = self._files.whole(shard.index_name)
        try:
            table, _ = parquet.read(parquet.in_memory(data), len(data), columns)
            table = table.select(list(columns)).cast(_schema_of(columns))
        except (ClipstemError, pa.ArrowException, KeyError):
            raise self._no_index(shard) from None
        if len(table) != shard.questions or any(column.null_count for column in table.columns):
            raise self._no_index(shard)
        if "num_options" in columns and pc.max(table["num_options"]).as_py() > MAX_OPTIONS:
            raise self._no_index(shard)
        return table


def open_dataset(location: str) -> Dataset:
    """Open what `python -m clipstem.prepare out=…` made: a folder, or an http(s) URL of one.

    Raises:
        ClipstemError: if it is missing, incomplete, or was made by a later version.
    """
    files = storage(location)
    if isinstance(files, Folder):
        _refuse_other_folders(files.path)
    manifest = Manifest.from_json(files.whole(MANIFEST), files.name(MANIFEST))
    if isinstance(files, Folder):
        for shard in manifest.shards:
            files.check_size(shard.name, shard.bytes)
    return Dataset(location, manifest)


def _refuse_other_folders(path: Path) -> None:
    if (path / MANIFEST).is_file():
        return
    if not path.is_dir():
        raise ClipstemError(
            f"data: there is no folder '{path}'; expected one made by "
            f"python -m clipstem.prepare source=drawn|stem|jsonl path=… out={path}"
        )
    if any(path.glob("*.tar")) or not any(path.rglob("*.parquet")):
        raise ClipstemError(
            f"data: '{path}' has no {MANIFEST}, so it is not, or not wholly, prepared data; "
            "make it with python -m clipstem.prepare source=drawn|stem|jsonl path=… out=…"
        )
    raise ClipstemError(
        f"data: '{path}' holds parquet files, not prepared data; prepare it first: "
        f"python -m clipstem.prepare source=stem path={path} out=…"
    )


def order(manifest: Manifest, split: str, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: all numbers within a split, int64 [questions], each exactly once.

    Shards are shuffled, then the questions inside windows of `WINDOW`, so that reads stay near each
    other. A pure function of its arguments: it knows no ranks, no workers and no batches, which
    `loader.batched` makes.
    """
    counts = [shard.questions for shard in manifest.of_split(split)]
    firsts = np.cumsum([0, *counts])
    rng = np.random.default_rng([seed, epoch])
    shards = [np.arange(firsts[i], firsts[i + 1]) for i in rng.permutation(len(counts))]
    numbers = np.concatenate([np.empty(0, np.int64), *shards])
    for start in range(0, len(numbers), WINDOW):
        rng.shuffle(numbers[start : start + WINDOW])
    return numbers


@dataclass(frozen=True)
class _Spans:
    """Where the samples of a shard lie: bytes from its start, bytes long, and their hashes; and
    what others than a reader go by, the number of options and the answer."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    options: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    hashes: pa.ChunkedArray

    COLUMNS = ("offset", "length", "num_options", "answer", "sha256")

    @classmethod
    def of(cls, index: pa.Table) -> _Spans:
        starts, lengths, options, answers = (it.to_numpy() for it in index.columns[:-1])
        return cls(starts, lengths, options, answers, hashes=index["sha256"])


def _schema_of(columns: Iterable[str]) -> pa.Schema:
    return pa.schema([INDEX_SCHEMA.field(name) for name in columns])


def _decode(samples: Sequence[memoryview], where: str) -> list[Question]:
    """Questions of encoded samples, through webdataset's own readers; only known members pass.

    Raises:
        ClipstemError: for a sample that `encode_sample` has not made.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        for sample in samples:
            _check_members(sample)
        stream = io.BytesIO(b"".join([*samples, TAR_END]))
        sources = [{"url": where, "stream": stream}]
        known = tar_file_expander(sources, select_files=lambda name: bool(_MEMBER.fullmatch(name)))
        questions = [_question_of(sample) for sample in group_by_keys(known)]
        if len(questions) != len(samples):
            raise ClipstemError("two have the same key")
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ClipstemError) else repr(error)[:200]
        raise ClipstemError(
            f"{where}: has a sample that prepare does not write ({reason}); prepare the data again"
        ) from None
    return questions


def _check_members(sample: memoryview) -> None:
    """Refuse what tar has besides plain files of one question: links, devices, sparse files whose
    holes are read as zeros, extended headers, and compressed streams, which tarfile would open."""
    keys, place = set(), 0
    while place < len(sample):
        header = bytes(sample[place : place + 512])
        name = header[:100].rstrip(b"\0")
        if header[156:157] not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ClipstemError(f"'{name.decode(errors='replace')}' is no plain file")
        keys.add(name.partition(b".")[0])
        size = int(header[124:136].strip(b" \0") or b"x", 8)  # ValueError for any but octal digits
        place += 512 + -(-abs(size) // 512) * 512
    # No compressed stream begins with a digit, whatever stands behind its first bytes.
    if place != len(sample) or len(keys) != 1 or not keys.pop().isdigit():
        raise ClipstemError("it is not the files of one question")


def _question_of(sample: dict[str, Any]) -> Question:
    record = facts.parse(sample["json"])
    for field, kinds in _RECORD.items():
        if type(record[field]) not in kinds:
            raise ClipstemError(f"{field} is of another type")
    if not all(isinstance(option, str) for option in record["options"] or ()):
        raise ClipstemError("options are of another type")
    captions = record.get("captions", {})
    if type(captions) is not dict or not all(isinstance(it, str) for it in captions.values()):
        raise ClipstemError("captions are of another type")

    def picture(name: str) -> Picture:
        found = Picture.of(sample[name], captions.get(name))
        if found.sha256 != record["pictures"][name]:
            raise ClipstemError(f"'{name}' is not the picture that it was")
        return found

    return _question(record, picture)


_RECORD = {
    **dict.fromkeys(("id", "subject", "grade", "skill", "problem"), (str,)),
    **{"options": (list, type(None)), "pictures": (dict,), "answer": (int,), "row": (int,)},
}

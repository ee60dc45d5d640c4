"""Hostile and broken input of every format: how each kind is made, and what must come of it.

`test_hostile` runs the table. A maker is given the folder of a clean input and changes it; payloads
that would run code make the file that the environment calls `CLIPSTEM_CANARY`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin
from preparing import encoded, png_header, row, stem, write_jsonl

from clipstem.bank.stem import SCHEMA
from clipstem.command import conf_folder
from clipstem.prediction import METADATA_KEY
from clipstem.question import Picture, Question
from clipstem.shards import TAR_END, encode_sample

RUN_CODE = 'touch "$CLIPSTEM_CANARY"'


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (RUN_CODE,)


EVIL = pickle.dumps({"global_step": 1, "state_dict": {"logit_scale": Evil()}})


@dataclass(frozen=True)
class Refused:
    """A `ClipstemError` whose text has this in it, a regular expression."""

    match: str


@dataclass(frozen=True)
class Skipped:
    """One row is left out for this reason; all others come through as from the clean input."""

    field: str
    reason: str


@dataclass(frozen=True)
class Accepted:
    """What comes out is what comes of the clean input, or with `other` something else."""

    other: bool = False


Outcome = Refused | Skipped | Accepted
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    format: str
    name: str
    make: Make
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.format}: {self.name}"


CASES: list[Case] = []


def kinds(format: str, *cases: tuple[str, Make, Outcome]) -> None:
    CASES.extend(Case(format, *case) for case in cases)


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A maker that changes a file's bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def edit(name: str, change: Callable[[Any], Any]) -> Make:
    """A maker that changes what a JSON file holds; `change` may also return another thing."""

    def make(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        changed = change(values)
        (folder / name).write_text(json.dumps(values if changed is None else changed))

    return make


def replaced(name: str, make: Callable[[Path], object]) -> Make:
    """A maker that puts something else in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


# ---------------------------------------------------------------------------- prepared shards


def clean_questions() -> list[Question]:
    pictures = [Picture.of(encoded(i)) for i in range(6)]
    return [
        Question("q0", "science", "grade-1", "s", "Which?", pictures[0], ("a", "b"), 1, 0),
        Question("q1", "science", "grade-1", "s", "Who?", pictures[1], ("a", "b"), 0, 1),
        Question("q2", "math", "grade-2", "t", "Where?", None, (pictures[2], pictures[3]), 1, 2),
    ]


def clean_shards(folder: Path) -> None:
    samples = [
        encode_sample(i, q, ["png"] * len(q.pictures)) for i, q in enumerate(clean_questions())
    ]
    write_shards(folder, samples)


def write_shards(folder: Path, samples: Sequence[bytes], **columns: Any) -> None:
    """A prepared folder of these samples, whose index and hashes agree with them."""
    folder.mkdir(exist_ok=True)
    questions = clean_questions()[: len(samples)]
    ends = [sum(map(len, samples[:i])) for i in range(len(samples) + 1)]
    index = {
        "id": [q.id for q in questions],
        "offset": ends[:-1],
        "length": list(map(len, samples)),
        "sha256": [hashlib.sha256(sample).digest() for sample in samples],
        **{name: [getattr(q, name) for q in questions] for name in ("subject", "grade", "skill")},
        "kind": [q.kind.value for q in questions],
        "num_options": [len(q.options) for q in questions],
        "row": [q.row for q in questions],
        "question_words": [1] * len(questions),
        "answer": [q.answer for q in questions],
    }
    pq.write_table(pa.table({**index, **columns}), folder / "train-000000.parquet")
    tar = b"".join(samples) + TAR_END
    (folder / "train-000000.tar").write_bytes(tar)
    sha256 = hashlib.sha256(tar).hexdigest()
    shard = {"name": "train-000000.tar", "split": "train", "questions": len(samples)}
    manifest = {
        "format_version": 1,
        "clipstem_version": "0",
        "source": {},
        "seed": 0,
        "max_image_side": None,
        "source_rows": {"train": 3},
        "questions": {"train": len(samples)},
        **{name: {} for name in ("skills", "skipped", "leaks", "shared_pictures")},
        "data_sha256": hashlib.sha256(sha256.encode()).hexdigest(),
        "shards": [{**shard, "bytes": len(tar), "sha256": sha256}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


KEY = f"{0:012d}"


def member(name: str, data: bytes = b"", **header: Any) -> bytes:
    """A tar member whose header may say anything."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    vars_of = {"type": tarfile.REGTYPE, **header}
    for key, value in vars_of.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def first_sample(extra: bytes = b"", **record: Any) -> bytes:
    """The first question's sample, with other facts in its record or more members behind it."""
    question = clean_questions()[0]
    values = {
        **{"id": "q0", "subject": "science", "grade": "grade-1", "skill": "s", "row": 0},
        **{"problem": "Which?", "options": ["a", "b"], "answer": 1},
        "pictures": {"problem.png": question.pictures[0].sha256},
        **record,
    }
    name = f"{0:012d}"
    return (
        member(f"{name}.json", json.dumps(values).encode())
        + member(f"{name}.problem.png", question.pictures[0].data)
        + extra
    )


def with_sample(sample: bytes, **columns: Any) -> Make:
    """A maker: the first sample is another one, and the index and all hashes agree with it."""

    def make(folder: Path) -> None:
        others = [
            encode_sample(i, q, ["png"] * len(q.pictures)) for i, q in enumerate(clean_questions())
        ][1:]
        write_shards(folder, [sample, *others], **columns)

    return make


def extra(name: str, data: bytes = b"", **header: Any) -> Make:
    return with_sample(first_sample(member(name, data, **header)))


def with_index(**columns: Any) -> Make:
    return with_sample(first_sample(), **columns)


def gzipped() -> bytes:
    """A compressed tar of a megabyte that holds 250."""
    return gzip.compress(member("000000000000.json", bytes(250 * 2**20)), 1)


def disguised() -> bytes:
    """The same, and whoever reads it as a tar header finds one of a plain file."""
    stream = gzipped()
    header = bytearray(member(KEY + ".json", b"")[:512])
    header[:10] = stream[:3] + b"\x04" + stream[4:10]  # gzip's own header, with an extra field
    header[10:12] = struct.pack("<H", 500)
    size = -(-(len(stream) - 10) // 512) * 512
    header[124:136] = b"%011o\0" % size
    return bytes(header) + stream[10:] + bytes(size - len(stream) + 10)


def padded(sample: bytes) -> bytes:
    return sample + bytes(-len(sample) % 512)


def index_bomb(folder: Path) -> None:
    """One text of 30 MB that stands in the index file once and in each row."""
    index = pq.read_table(folder / "train-000000.parquet")
    long = pa.DictionaryArray.from_arrays(
        pa.array([0] * 3, pa.int32()), pa.array(["x" * 30 * 2**20])
    )
    place = index.column_names.index("id")
    index = index.set_column(place, "id", long)
    pq.write_table(index, folder / "train-000000.parquet", compression="zstd", store_schema=False)


NOT_WRITTEN = "has a sample that prepare does not write"
NO_INDEX = "is no index of the 3 questions in train-000000.tar"

kinds(
    "shards",
    ("manifest is no JSON", rewrite("manifest.json", lambda _: b"{"), Refused("is not JSON")),
    (
        "manifest nests 100,000 deep",
        rewrite("manifest.json", lambda _: b"[" * 100_000),
        Refused("is not JSON"),
    ),
    ("manifest is a list", edit("manifest.json", lambda m: [m]), Refused("is no manifest")),
    (
        "manifest of a later format",
        edit("manifest.json", lambda m: m.update(format_version=2)),
        Refused("update clipstem"),
    ),
    (
        "manifest with a version that is a text",
        edit("manifest.json", lambda m: m.update(format_version="1")),
        Refused("is no manifest"),
    ),
    (
        "manifest with shards that are numbers",
        edit("manifest.json", lambda m: m.update(shards=[1])),
        Refused(r"shards\[0\] is 1; expected an object"),
    ),
    (
        "manifest with questions that are a text",
        edit("manifest.json", lambda m: m.update(questions={"train": "3"})),
        Refused("questions.train is '3'; expected a whole number"),
    ),
    (
        "manifest with 10^12 questions in a shard",
        edit("manifest.json", lambda m: m["shards"][0].update(questions=10**12)),
        Refused("cannot hold 1,000,000,000,000 questions"),
    ),
    (
        "manifest with fewer questions than none",
        edit("manifest.json", lambda m: m["shards"][0].update(questions=-3)),
        Refused("cannot hold -3 questions"),
    ),
    (
        "manifest that counts otherwise than its shards",
        edit("manifest.json", lambda m: m.update(questions={"train": 9})),
        Refused("but its shards"),
    ),
    (
        "manifest with 10^18 source rows",
        edit("manifest.json", lambda m: m.update(source_rows={"train": 10**18})),
        Refused("of which there are not so many"),
    ),
    (
        "shard named twice",
        edit("manifest.json", lambda m: m.update(shards=m["shards"] * 2, questions={"train": 6})),
        Refused("stands there twice"),
    ),
    (
        "shard's path leads out of the folder",
        edit("manifest.json", lambda m: m["shards"][0].update(name="../outside/train-000000.tar")),
        Refused("is no name of a shard"),
    ),
    (
        "shard's path is absolute",
        edit("manifest.json", lambda m: m["shards"][0].update(name="/etc/passwd")),
        Refused("is no name of a shard"),
    ),
    (
        "shard is a pipe: URL",
        edit("manifest.json", lambda m: m["shards"][0].update(name=f"pipe:{RUN_CODE}")),
        Refused("is no name of a shard"),
    ),
    (
        "shard is a http URL",
        edit(
            "manifest.json",
            lambda m: m["shards"][0].update(name="http://127.0.0.1:9/train-000000.tar"),
        ),
        Refused("is no name of a shard"),
    ),
    (
        "shard is missing",
        lambda folder: (folder / "train-000000.tar").unlink(),
        Refused("train-000000.tar: is missing"),
    ),
    (
        "shard is cut off",
        rewrite("train-000000.tar", lambda data: data[:-700]),
        Refused("the manifest says"),
    ),
    (
        "shard with flipped bytes",
        rewrite("train-000000.tar", lambda data: data[:700] + b"\xff" + data[701:]),
        Refused("does not have the bytes"),
    ),
    (
        "shard is an endless device",
        replaced("train-000000.tar", endless),
        Refused("is missing|the manifest says"),
    ),
    (
        "shard is a named pipe that nobody writes",
        replaced("train-000000.tar", os.mkfifo),
        Refused("is missing"),
    ),
    (
        "index is missing",
        lambda folder: (folder / "train-000000.parquet").unlink(),
        Refused("cannot be read"),
    ),
    (
        "index is an endless device",
        replaced("train-000000.parquet", endless),
        Refused("is no plain file"),
    ),
    (
        "index is a named pipe that nobody writes",
        replaced("train-000000.parquet", os.mkfifo),
        Refused("is no plain file"),
    ),
    (
        "index is no parquet",
        rewrite("train-000000.parquet", lambda _: b"PAR1 no"),
        Refused(NO_INDEX),
    ),
    (
        "index without a column",
        lambda folder: pq.write_table(
            pq.read_table(folder / "train-000000.parquet").drop_columns(["offset"]),
            folder / "train-000000.parquet",
        ),
        Refused(NO_INDEX),
    ),
    ("index with offsets that are texts", with_index(offset=["a", "b", "c"]), Refused(NO_INDEX)),
    ("index with null offsets", with_index(offset=[0, None, 2]), Refused(NO_INDEX)),
    ("index with offsets below 0", with_index(offset=[-512, 0, 0]), Refused(NO_INDEX)),
    ("index with offsets beyond the end", with_index(offset=[0, 2**62, 0]), Refused(NO_INDEX)),
    ("index with a length of 2^62", with_index(length=[2**62, 2048, 2048]), Refused(NO_INDEX)),
    ("index with 10^9 options", with_index(num_options=[10**9, 2, 2]), Refused(NO_INDEX)),
    (
        "index with another number of options",
        with_index(num_options=[4, 2, 2]),
        Refused("is not the one that its index says"),
    ),
    (
        "index with another answer",
        with_index(answer=[0, 0, 1]),
        Refused("is not the one that its index says"),
    ),
    ("index whose text expands a thousandfold", index_bomb, Refused(NO_INDEX)),
    ("member that webdataset would unpickle", extra(f"{KEY}.pkl", EVIL), Accepted()),
    (
        "member that webdataset would unpickle, by its other suffix",
        extra(f"{KEY}.pyd", EVIL),
        Accepted(),
    ),
    ("member that webdataset would torch.load", extra(f"{KEY}.pth", EVIL), Accepted()),
    (
        "member whose name leads out of the folder",
        extra(f"../outside/{KEY}.png", b"x"),
        Refused("not the files of one question"),
    ),
    (
        "member with an absolute name",
        extra(f"/tmp/{KEY}.png", b"x"),
        Refused("not the files of one question"),
    ),
    (
        "member that is a symbolic link",
        extra(f"{KEY}.option0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        Refused("is no plain file"),
    ),
    (
        "member that is a hard link",
        extra(f"{KEY}.option0.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        Refused("is no plain file"),
    ),
    (
        "member that is a device",
        extra(f"{KEY}.option0.png", type=tarfile.CHRTYPE),
        Refused("is no plain file"),
    ),
    (
        "member that is a sparse file of 8 GB",
        extra(f"{KEY}.option0.png", type=tarfile.GNUTYPE_SPARSE),
        Refused("is no plain file"),
    ),
    (
        "member with an extended header",
        extra("pax", b"30 size=9999999999999999999999\n", type=tarfile.XHDTYPE),
        Refused("is no plain file"),
    ),
    (
        "member that says it has 8 GB",
        with_sample(first_sample() + member(f"{KEY}.option0.png", size=8 * 2**30)),
        Refused(NOT_WRITTEN),
    ),
    (
        "member that stands there twice",
        with_sample(first_sample(member(f"{KEY}.problem.png", encoded(9)))),
        Refused(NOT_WRITTEN),
    ),
    (
        "sample of two questions",
        with_sample(first_sample(member(f"{1:012d}.json", b"{}"))),
        Refused("not the files of one question"),
    ),
    (
        "sample that is a gzip stream of 250 MB",
        lambda folder: with_sample(padded(gzipped()))(folder),
        Refused(NOT_WRITTEN),
    ),
    (
        "sample that is a gzip stream of 250 MB with a tar header in it",
        lambda folder: with_sample(disguised())(folder),
        Refused("not the files of one question"),
    ),
    (
        "sample without a record",
        with_sample(
            padded(member(f"{KEY}.problem.png", encoded(0)) + bytes(0))
            + member(f"{KEY}.option1.png", b"x" * 512)
        ),
        Refused(NOT_WRITTEN),
    ),
    ("record is no JSON", with_sample(member(f"{KEY}.json", b"{" * 600)), Refused(NOT_WRITTEN)),
    (
        "record nests 100,000 deep",
        with_sample(member(f"{KEY}.json", b"[" * 100_000)),
        Refused(NOT_WRITTEN),
    ),
    (
        "record with options that are numbers",
        with_sample(first_sample(options=[1, 2])),
        Refused("options are of another type"),
    ),
    (
        "record with a problem that is a list",
        with_sample(first_sample(problem=["Which?"])),
        Refused("problem is of another type"),
    ),
    (
        "record with an answer that is not among the options",
        with_sample(first_sample(answer=7)),
        Refused("answer: 7 is not among"),
    ),
    (
        "record with 100,000 options",
        with_sample(first_sample(options=["a"] * 100_000)),
        Refused("there are 100,000; expected at most 1,000"),
    ),
    (
        "record with a word of 100,000 letters",
        with_sample(first_sample(problem="a" * 100_000)),
        Refused("has 100,000 characters"),
    ),
    (
        "record that names a picture that is not there",
        with_sample(first_sample(pictures={"option0.png": "00"})),
        Refused(NOT_WRITTEN),
    ),
    (
        "record that calls a picture by another's hash",
        with_sample(first_sample(pictures={"problem.png": "0" * 64})),
        Refused("is not the picture that it was"),
    ),
)


# ---------------------------------------------------------------------------- STEM's parquet

STEM_FILE = "train-00000.parquet"
GOOD_ROWS = 3


def clean_stem(folder: Path) -> None:
    write_stem(folder, [stem(i) for i in range(GOOD_ROWS)])


def write_stem(
    folder: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA, **kw: Any
) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / STEM_FILE, **kw)


def stem_row(**changes: Any) -> Make:
    """A maker: one more row, which is bad."""
    rows = [stem(i) for i in range(GOOD_ROWS)]
    return lambda folder: write_stem(folder, [*rows, stem(GOOD_ROWS, **changes)])


def stem_table(
    change: Callable[[pa.Table], pa.Table], rows: int = GOOD_ROWS + 1, **kw: Any
) -> Make:
    def make(folder: Path) -> None:
        table = pa.Table.from_pylist([stem(i) for i in range(rows)], SCHEMA)
        pq.write_table(change(table), folder / STEM_FILE, **kw)

    return make


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def not_utf8(table: pa.Table) -> pa.Table:
    problems = [f"What, {i}?".encode() for i in range(GOOD_ROWS)] + [b"\xff\xfe"]
    return column("problem", pa.array(problems).view(pa.string()))(table)


def picture_bomb(folder: Path) -> None:
    """A value of 40 MB that stands in the file once and in 32 rows: 1.3 GB."""
    table = pa.Table.from_pylist([stem(i) for i in range(32)], SCHEMA)
    large = encoded(0) + bytes(40 * 2**20)
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 32, pa.int32()), pa.array([large]))
    table = column("problem_pic", same)(table)
    options = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(table, folder / STEM_FILE, **options)


def null_rows(folder: Path) -> None:
    """Four million rows of nothing, in a few kilobytes."""
    table = pa.table({field.name: pa.nulls(1_000_000, field.type) for field in SCHEMA})
    with pq.ParquetWriter(folder / STEM_FILE, SCHEMA, compression="zstd") as writer:
        for _ in range(4):
            writer.write_table(table)


def expanding_text(folder: Path) -> None:
    """A text of 256 MB of which the file needs thirty kilobytes."""
    text = pa.array([" " * 2**28], pa.large_string())
    table = column("problem", text)(pa.Table.from_pylist([stem(0)], SCHEMA))
    pq.write_table(
        table, folder / STEM_FILE, compression="zstd", use_dictionary=False, write_statistics=False
    )


def extension_type(folder: Path) -> None:
    """A column that an old pyarrow unpickles (CVE-2023-47248)."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": EVIL}
    field = pa.field("problem", pa.string(), metadata=metadata)
    clean_stem(folder)
    table = pq.read_table(folder / STEM_FILE)
    schema = SCHEMA.set(SCHEMA.get_field_index("problem"), field)
    pq.write_table(table.cast(schema), folder / STEM_FILE)


def deep_type(folder: Path) -> None:
    kind: pa.DataType = pa.string()
    for _ in range(90):
        kind = pa.list_(kind)
    table = pa.Table.from_pylist([stem(i) for i in range(GOOD_ROWS)], SCHEMA)
    pq.write_table(column("choices", pa.nulls(GOOD_ROWS, kind))(table), folder / STEM_FILE)


kinds(
    "stem",
    (
        "folder without parquet",
        lambda folder: (folder / STEM_FILE).unlink(),
        Refused("no parquet file is under"),
    ),
    (
        "file that is no parquet",
        rewrite(STEM_FILE, lambda _: b"PAR1 no PAR1"),
        Refused("is no parquet file"),
    ),
    ("file that is empty", rewrite(STEM_FILE, lambda _: b""), Refused("is no parquet file")),
    (
        "file that is cut off",
        rewrite(STEM_FILE, lambda data: data[: len(data) // 2]),
        Refused("is no parquet file"),
    ),
    (
        "file with overwritten pages",
        rewrite(STEM_FILE, lambda data: data[:4] + bytes(400) + data[404:]),
        Refused("is damaged|is no parquet file"),
    ),
    ("file that is a named pipe", replaced(STEM_FILE, os.mkfifo), Refused("is no parquet file")),
    ("file that is an endless device", replaced(STEM_FILE, endless), Refused("is no parquet file")),
    (
        "file of no split",
        lambda folder: (folder / STEM_FILE).rename(folder / "dev.parquet"),
        Refused("must start with its split"),
    ),
    (
        "column is missing",
        stem_table(lambda t: t.drop_columns(["skill"])),
        Refused("lacks the columns skill"),
    ),
    (
        "column stands there twice",
        stem_table(lambda t: t.append_column("skill", t["skill"])),
        Refused("two columns of one name"),
    ),
    (
        "column of another nested type",
        stem_table(column("choices", pa.array([[["a"]]] * (GOOD_ROWS + 1)))),
        Refused("column choices is list<"),
    ),
    ("column nested 90 deep", deep_type, Refused("column choices is|is no parquet file")),
    ("column that pyarrow once unpickled", extension_type, Accepted()),
    (
        "no rows at all",
        stem_table(lambda t: t.slice(0, 0)),
        Refused("source is empty|no question in it"),
    ),
    ("4,000,000 rows of nothing", null_rows, Refused("rows in .* bytes")),
    ("text of 256 MB in 30 KB", expanding_text, Refused("expands from")),
    (
        "picture of 40 MB that stands in every row",
        picture_bomb,
        Refused("32 × picture: has … bytes"),
    ),
    ("null problem", stem_row(problem=None), Skipped("problem", "is null")),
    ("empty problem", stem_row(problem=" \n"), Skipped("problem", "is empty")),
    (
        "problem of 1 MB",
        stem_row(problem="word " * 200_000),
        Skipped("problem", "has 1,000,000 characters; expected at most 20,000"),
    ),
    (
        "problem of one word of 10,000 letters",
        stem_row(problem="x" * 10_000),
        Skipped("problem", "has a word that is too long"),
    ),
    (
        "problem that is no UTF-8",
        stem_table(not_utf8),
        Skipped("problem", "is b'\\xff\\xfe'; expected a text in UTF-8"),
    ),
    (
        "answer out of range",
        stem_row(answer_idx=7),
        Skipped("answer", "7 is not among the 2 options"),
    ),
    (
        "answer far below 0",
        stem_row(answer_idx=-(2**62)),
        Skipped("answer", "-4611686018427387904 is not among"),
    ),
    ("no options", stem_row(choices=None), Skipped("options", "there are none")),
    ("an option that is null", stem_row(choices=["a", None]), Skipped("options[1]", "is null")),
    (
        "100,000 options",
        stem_row(choices=["a"] * 100_000),
        Skipped("choices", "has 100,000 options; expected at most 1,000"),
    ),
    (
        "texts and pictures as options",
        stem_row(choices_pic=[encoded(0)]),
        Skipped("options", "2 texts are mixed with 1 pictures"),
    ),
    (
        "picture bytes that are none",
        stem_row(problem_pic=b"<html>404</html>"),
        Skipped("picture", "is not a picture"),
    ),
    (
        "picture bytes that are a pickle",
        stem_row(problem_pic=EVIL),
        Skipped("picture", "is not a picture"),
    ),
    (
        "picture with more pixels than any screen",
        stem_row(problem_pic=png_header(60_000, 60_000)),
        Skipped("picture", "has 3,600,000,000 pixels"),
    ),
)


# ---------------------------------------------------------------------------- lines of JSON


def clean_jsonl(folder: Path) -> None:
    jsonl()(folder)


def jsonl(*bad: dict[str, Any] | bytes) -> Make:
    """A maker: good lines with pictures, then the bad ones."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "ok.png").write_bytes(encoded(1))
        write_jsonl(folder, [row(0), row(1, image="ok.png"), *bad])

    return make


def line(**changes: Any) -> Make:
    return jsonl(row(2, **changes))


def linked(target: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "link.png").symlink_to(target)
        line(image="link.png")(folder)

    return make


def named_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    line(image="pipe.png")(folder)


def large_file(folder: Path) -> None:
    with (folder / "big.png").open("wb") as file:
        file.truncate(2**30)
    line(image="big.png")(folder)


NO_JSON = Skipped("line", "is not JSON in UTF-8")

kinds(
    "jsonl",
    ("line that is no JSON", jsonl(b"{"), NO_JSON),
    ("line of NUL bytes", jsonl(bytes(100)), NO_JSON),
    ("line that is no UTF-8", jsonl(b'{"id": "\xff"}'), NO_JSON),
    ("line in UTF-16", jsonl(json.dumps(row(2)).encode("utf-16-be").replace(b"\n", b"")), NO_JSON),
    ("line that nests 100,000 deep", jsonl(b"[" * 100_000), NO_JSON),
    (
        "options that nest 900 deep",
        jsonl(
            json.dumps(row(2, options=...)).encode()[:-1]
            + b', "options": '
            + b"[" * 900
            + b"]" * 900
            + b"}"
        ),
        Skipped("options[0]", "is "),
    ),
    (
        "line of 64 MB",
        jsonl(b'"' + b"x" * 64 * 2**20 + b'"'),
        Skipped("line", "is too long; expected at most 1,048,576 bytes"),
    ),
    ("number of 100,000 digits", jsonl(b'{"answer": ' + b"9" * 100_000 + b"}"), NO_JSON),
    (
        "object with 20,000 unknown fields",
        jsonl({f"field{i}": i for i in range(20_000)}),
        Skipped("line", "has 20,000 fields"),
    ),
    (
        "field that stands there twice",
        rewrite(
            "questions.jsonl", lambda data: data.replace(b'"id": "q0"', b'"id": "x", "id": "q0"')
        ),
        Accepted(),
    ),
    (
        "byte-order mark",
        rewrite("questions.jsonl", lambda data: b"\xef\xbb\xbf" + data),
        Accepted(),
    ),
    (
        "Windows line ends and no last one",
        rewrite("questions.jsonl", lambda data: data.replace(b"\n", b"\r\n").strip()),
        Accepted(),
    ),
    ("list instead of an object", jsonl(b"[1]"), Skipped("line", "is [1]; expected an object")),
    ("id that is a number", line(id=7), Skipped("id", "is 7; expected a text")),
    ("id that came before", line(id="q0"), Skipped("id", "'q0' came before")),
    (
        "half of a surrogate pair",
        line(problem="\ud800"),
        Skipped("problem", "has half of a surrogate pair"),
    ),
    (
        "answer that is NaN",
        jsonl(json.dumps(row(2, answer=float("nan"))).encode()),
        Skipped("answer", "is NaN"),
    ),
    ("answer that is true", line(answer=True), Skipped("answer", "is true")),
    (
        "5,000 options",
        line(options=["a"] * 5000),
        Skipped("options", "there are 5,000; expected at most 1,000"),
    ),
    (
        "word of 15,000 letters",
        line(problem="y" * 15_000),
        Skipped("problem", "has a word that is too long"),
    ),
    (
        "picture outside of the folder",
        line(image="../outside/secret.png"),
        Skipped("image", "'../outside/secret.png' has '..'"),
    ),
    (
        "picture with an absolute path",
        line(image="/etc/passwd"),
        Skipped("image", "'/etc/passwd' is an absolute path"),
    ),
    (
        "picture over a link out of the folder",
        linked("../outside/secret.png"),
        Skipped("image", "'link.png' leads out of the file's folder"),
    ),
    ("picture over a link to itself", linked("link.png"), Skipped("image", "'link.png' ")),
    (
        "picture that is an endless device",
        linked("/dev/zero"),
        Skipped("image", "'link.png' leads out"),
    ),
    (
        "picture that is a named pipe",
        named_pipe,
        Skipped("image", "'pipe.png' is no file"),
    ),
    (
        "picture that is a pipe: URL",
        line(image=f"pipe:{RUN_CODE}"),
        Skipped("image", f"'pipe:{RUN_CODE}' is no file"),
    ),
    (
        "picture that is missing",
        line(image="nowhere.png"),
        Skipped("image", "'nowhere.png' is no file"),
    ),
    (
        "picture of 1 GB on the disk",
        large_file,
        Skipped("image", "'big.png' has more than 33,554,432 bytes"),
    ),
    ("path with a NUL byte", line(image="ok.png\0.png"), Skipped("image", 'is "ok.png')),
)


# ---------------------------------------------------------------------------- pictures


def image(mode: str = "RGB", side: int = 40) -> Image.Image:
    noise = Image.effect_noise((side, side), 90)
    return (
        noise.convert("RGB").convert(mode) if mode != "I;16" else noise.convert("I").convert(mode)
    )


def saved(picture: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def picture(data: bytes | Callable[[], bytes]) -> Make:
    return lambda folder: (folder / "picture").write_bytes(
        data if isinstance(data, bytes) else data()
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def with_chunks(*chunks: bytes) -> bytes:
    """A good PNG with more chunks behind its header."""
    data = saved(image(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def many_texts() -> bytes:
    body = zlib.compress(bytes(2**20), 9)
    return with_chunks(*(chunk(b"zTXt", b"k%d\0\0" % i + body) for i in range(200)))


def color_profile() -> bytes:
    return with_chunks(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(100 * 2**20), 9)))


def flat(name: str, side: int, mode: str = "RGB", **options: Any) -> Callable[[], bytes]:
    """A picture of one colour: few bytes, many pixels."""
    return lambda: saved(Image.new(mode, (side, side)), name, **options)


def animated() -> bytes:
    frames = [image().convert("P") for _ in range(5)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(image(), "JPEG", exif=exif)


def clear_palette() -> bytes:
    return saved(image().convert("P"), "PNG", transparency=bytes(range(256)))


def png_info() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<script>alert(1)</script>")
    return saved(image(), "PNG", pnginfo=info)


GHOSTSCRIPT = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%{RUN_CODE}) (w) file\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
NOT_ONE = Refused("is not a picture")
OTHER = Accepted(other=True)


def clean_picture(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    picture(saved(image(), "PNG"))(folder)


kinds(
    "pictures",
    ("no bytes", picture(b""), Refused("is empty")),
    ("HTML", picture(b"<html>404</html>"), NOT_ONE),
    ("SVG that names a file", picture(SVG), NOT_ONE),
    ("EPS, for which Pillow calls Ghostscript", picture(GHOSTSCRIPT.encode()), NOT_ONE),
    ("PDF", picture(b"%PDF-1.7\n"), NOT_ONE),
    (
        "PSD",
        picture(
            b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">II", 9, 9) + b"\0\x08\0\3" + bytes(99)
        ),
        NOT_ONE,
    ),
    ("PPM", picture(saved(image(), "PPM")), NOT_ONE),
    ("pickle", picture(EVIL), NOT_ONE),
    (
        "PNG of 10^9 pixels in 50 bytes",
        picture(png_header(40_000, 40_000)),
        Refused("has 1,600,000,000 pixels"),
    ),
    (
        "PNG of 25,000,000 pixels in 70 KB",
        picture(flat("PNG", 5000)),
        Refused("has 25,000,000 pixels; at most 20,000,000"),
    ),
    ("PNG just small enough", picture(flat("PNG", 4400)), OTHER),
    ("PNG with alpha, just small enough", picture(flat("PNG", 4400, "RGBA")), OTHER),
    ("PNG of 16 bits, just small enough", picture(flat("PNG", 4400, "I;16")), OTHER),
    (
        "progressive JPEG, just small enough",
        picture(flat("JPEG", 4400, progressive=True, subsampling=0)),
        OTHER,
    ),
    ("WebP just small enough", picture(flat("WEBP", 2800, "RGBA", lossless=True)), OTHER),
    ("GIF just small enough", picture(flat("GIF", 4400, "P")), OTHER),
    ("TIFF just small enough", picture(flat("TIFF", 4400, compression="tiff_lzw")), OTHER),
    (
        "WebP that is too large for its format",
        picture(flat("WEBP", 3000, lossless=True)),
        Refused("has 9,000,000 pixels; at most 8,000,000"),
    ),
    (
        "GIF with a screen of 4,294,836,225 pixels",
        picture(b"GIF89a\xff\xff\xff\xff\0\0\0;"),
        Refused("pixels; at most|is not a picture|header"),
    ),
    (
        "BMP with a height below 0",
        picture(
            b"BM"
            + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 9, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        Refused("pixels; at most|is not a picture|header"),
    ),
    (
        "TIFF whose directory is itself",
        picture(b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x4a\1\4\0\1\0\0\0\x08\0\0\0" + b"\x08\0\0\0"),
        Refused("header|is not a picture"),
    ),
    (
        "PNG with no width",
        picture(png_header(0, 9)),
        Refused("pixels; at most|is not a picture|header"),
    ),
    ("PNG that is cut off", picture(saved(image(), "PNG")[:-99]), Refused("is truncated")),
    ("JPEG that is cut off", picture(saved(image(), "JPEG")[:-99]), Refused("is truncated")),
    (
        "GIF that is cut off",
        picture(saved(image().convert("P"), "GIF")[:-99]),
        Refused("is truncated"),
    ),
    (
        "WebP that is cut off",
        picture(saved(image(), "WEBP")[:-99]),
        Refused("header|decode|truncated"),
    ),
    ("200 text chunks of 1 MB", picture(many_texts), Refused("header|decode|Too much memory")),
    ("colour profile of 100 MB", picture(color_profile), Refused("has a broken header")),
    ("text chunk with a script", picture(png_info), OTHER),
    (
        "more bytes than are allowed",
        picture(lambda: saved(image(), "PNG") + bytes(33 * 2**20)),
        Refused("has 34,.* bytes; at most 33,554,432"),
    ),
    ("one pixel", picture(saved(image(side=1), "PNG")), OTHER),
    ("one pixel wide", picture(saved(Image.new("L", (1, 60_000)), "PNG")), Refused("too narrow")),
    ("palette with transparency", picture(clear_palette), OTHER),
    ("16 bits", picture(saved(image("I;16"), "PNG")), OTHER),
    ("CMYK", picture(saved(image("CMYK"), "JPEG")), OTHER),
    ("animated GIF", picture(animated), OTHER),
    ("rotated by EXIF", picture(rotated), OTHER),
    ("JPEG that is called PNG", picture(saved(image(), "JPEG")), OTHER),
)


# ---------------------------------------------------------------------------- predictions

PREDICTIONS = "p.parquet"


def clean_predictions(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    count = 8
    table = pa.table(
        {
            "id": [f"q{i}" for i in range(count)],
            "subject": ["math", "science"] * 4,
            "grade": ["grade-1"] * count,
            "skill": ["s", "t"] * 4,
            "answer": [i % 2 for i in range(count)],
            "probs": [[0.75, 0.25]] * count,
        }
    )
    pq.write_table(table, folder / PREDICTIONS)


def predictions(change: Callable[[pa.Table], pa.Table], **options: Any) -> Make:
    def make(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / PREDICTIONS)), folder / PREDICTIONS, **options)

    return make


def values(name: str, *others: Any) -> Make:
    """A maker: the first rows have other values."""

    def change(table: pa.Table) -> pa.Table:
        return column(name, pa.array([*others, *table[name].to_pylist()[len(others) :]]))(table)

    return predictions(change)


def metadata(text: bytes) -> Make:
    return predictions(lambda table: table.replace_schema_metadata({METADATA_KEY: text}))


def repeated_skill(folder: Path) -> None:
    """100,000 rows, and in each the one skill of 10 MB that the file has."""
    count = 100_000
    long = pa.array(["x" * 10 * 2**20])
    skill = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), long)
    same = {"subject": ["a"] * count, "grade": ["g"] * count, "skill": skill}
    rows = {"id": [f"q{i}" for i in range(count)], "answer": [0] * count, "probs": [[1.0]] * count}
    options = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({**same, **rows}), folder / PREDICTIONS, **options)


def probability_bomb(folder: Path) -> None:
    """One row with 16,777,216 probabilities, in a few kilobytes."""
    halves = pa.array([0.0] * 2**20)
    flat_ = pa.concat_arrays([halves] * 16)
    probs = pa.ListArray.from_arrays(pa.array([0, len(flat_)], pa.int32()), flat_)
    same = {"id": ["q"], "subject": ["a"], "grade": ["g"], "skill": ["s"], "answer": [0]}
    pq.write_table(pa.table({**same, "probs": probs}), folder / PREDICTIONS, compression="zstd")


def wide_row(folder: Path) -> None:
    """One row with 100,000 options among 5,000 with one: a table of 500,000,000 cells."""
    count = 5000
    probs = [[1.0]] * (count - 1) + [[1e-5] * 100_000]
    same = {"subject": ["a"] * count, "grade": ["g"] * count, "skill": ["s"] * count}
    ids = [f"q{i}" for i in range(count)]
    pq.write_table(
        pa.table({"id": ids, **same, "answer": [0] * count, "probs": probs}), folder / PREDICTIONS
    )


NO_FILE = Refused("is not a predictions file")
SCRIPT = "<script>alert(1)</script>"

kinds(
    "predictions",
    ("no parquet", rewrite(PREDICTIONS, lambda _: b"0\n1\n"), NO_FILE),
    ("file that is cut off", rewrite(PREDICTIONS, lambda data: data[:-200]), NO_FILE),
    ("named pipe", replaced(PREDICTIONS, os.mkfifo), Refused("no such predictions file")),
    (
        "column is missing",
        predictions(lambda t: t.drop_columns(["probs"])),
        Refused("lacks the columns probs"),
    ),
    ("column stands there twice", predictions(lambda t: t.append_column("id", t["id"])), NO_FILE),
    ("no rows", predictions(lambda t: t.slice(0, 0)), Refused("none of the 0 questions")),
    (
        "ids that are no UTF-8",
        predictions(column("id", pa.array([b"\xff%d" % i for i in range(8)]).view(pa.string()))),
        NO_FILE,
    ),
    ("ids that come twice", values("id", "q1"), Refused("stands in 2 rows")),
    (
        "answers that are texts",
        predictions(column("answer", pa.array(["a"] * 8))),
        Refused("column 'answer' is string"),
    ),
    (
        "answer that is not among the options",
        values("answer", 9),
        Refused("is not among the 2 options"),
    ),
    (
        "probabilities that are NaN",
        values("probs", [float("nan"), 1.0]),
        Refused("expected numbers from 0 to 1"),
    ),
    ("probabilities that do not sum to 1", values("probs", [3.0, 2.0]), Refused("sum to 5")),
    (
        "probabilities below 0",
        values("probs", [-1.0, 2.0]),
        Refused("expected numbers from 0 to 1"),
    ),
    ("no probabilities in a row", values("probs", []), Refused("is not among the 0 options")),
    ("null probabilities", values("probs", None), Refused("column 'probs' is")),
    (
        "other lengths than num_options says",
        predictions(lambda t: t.append_column("num_options", pa.array([3] * 8))),
        Refused("has 2 values for 3 options"),
    ),
    ("no metadata", predictions(lambda t: t.replace_schema_metadata(None)), Accepted()),
    ("metadata that are no JSON", metadata(b"{"), Refused("are not a JSON object")),
    ("metadata that nest 100,000 deep", metadata(b"[" * 100_000), Refused("are not a JSON object")),
    (
        "metadata with a temperature that is a text",
        metadata(b'{"temperature": "warm"}'),
        Refused("temperature in the metadata is 'warm'"),
    ),
    (
        "metadata with training questions that are a list",
        metadata(b'{"train_questions_of_skill": [1]}'),
        Refused("train_questions_of_skill in the metadata is"),
    ),
    (
        "metadata with training questions that are texts",
        metadata(b'{"train_questions_of_skill": {"s": "9"}}'),
        Refused("expected a number of questions"),
    ),
    (
        "metadata with a run that is a number",
        metadata(b'{"run": 7}'),
        Refused("run in the metadata is 7"),
    ),
    (
        "metadata with HTML",
        metadata(json.dumps({"model": SCRIPT, "run": SCRIPT, SCRIPT: SCRIPT}).encode()),
        OTHER,
    ),
    (
        "texts with HTML",
        values("skill", SCRIPT, SCRIPT, "</style><img src=x onerror=alert(1)>"),
        OTHER,
    ),
    (
        "texts with formulas for the charts",
        values("subject", "$\\frac{", "$x^{$", "a_b^c\\"),
        OTHER,
    ),
    ("skill of 10 MB that stands in every row", repeated_skill, Refused("expands from")),
    ("16,777,216 probabilities in a row", probability_bomb, Refused("expands from")),
    ("one row with 100,000 options", wide_row, Refused("expected at most 1,000 options")),
)


# ---------------------------------------------------------------------------- weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def model_cfg(tower: str, **changes: Any) -> Make:
    return edit(CONFIG, lambda config: config["model_cfg"][tower].update(changes))


def preprocess(**changes: Any) -> Make:
    return edit(CONFIG, lambda config: config["preprocess_cfg"].update(changes))


def safetensors(header: bytes, length: int | None = None) -> Make:
    size = struct.pack("<Q", len(header) if length is None else length)
    return rewrite(WEIGHTS, lambda _: size + header + bytes(64))


def as_pickle(folder: Path) -> None:
    """The weights as a file that torch would unpickle, beside their configuration."""
    (folder / WEIGHTS).unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(EVIL + bytes(2**25))


def own_tokenizer_code(folder: Path) -> None:
    """A Hugging Face tokenizer whose folder brings the code that makes it."""
    code = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    (folder / "evil.py").write_text(f"import os\nos.system({RUN_CODE!r})\nT = None\n")
    model_cfg("text_cfg", hf_tokenizer_name="evil")(folder)


def trusted_tokenizer_code(folder: Path) -> None:
    own_tokenizer_code(folder)
    model_cfg("text_cfg", tokenizer_kwargs={"trust_remote_code": True})(folder)


NOT_OPENED = Refused("cannot be opened")

kinds(
    "weights",
    (
        "pickle that is called safetensors",
        rewrite(WEIGHTS, lambda _: EVIL + bytes(2**25)),
        NOT_OPENED,
    ),
    ("pickle that open_clip finds itself", as_pickle, NOT_OPENED),
    ("file that is cut off", rewrite(WEIGHTS, lambda data: data[:-99]), NOT_OPENED),
    (
        "header of 2^60 bytes",
        rewrite(WEIGHTS, lambda data: struct.pack("<Q", 2**60) + data[8:]),
        NOT_OPENED,
    ),
    (
        "header that is no JSON",
        rewrite(WEIGHTS, lambda data: data[:8] + b"x" + data[9:]),
        NOT_OPENED,
    ),
    ("weights of other shapes", model_cfg("vision_cfg", width=128), NOT_OPENED),
    ("configuration that is no JSON", rewrite(CONFIG, lambda _: b"{"), NOT_OPENED),
    ("configuration that is a list", edit(CONFIG, lambda config: [config]), NOT_OPENED),
    (
        "configuration without towers",
        edit(CONFIG, lambda config: config.update(model_cfg={})),
        Refused("has no text_cfg and vision_cfg|cannot be opened"),
    ),
    (
        "configuration with a key that nobody knows",
        model_cfg("text_cfg", _target_="os.system"),
        NOT_OPENED,
    ),
    (
        "a million layers",
        model_cfg("text_cfg", layers=10**6),
        Refused("text_cfg.layers is 1e.06; no model has so many"),
    ),
    (
        "a width of a million",
        model_cfg("vision_cfg", width=10**6),
        Refused("vision_cfg.width is 1e.06; no model has so many"),
    ),
    (
        "a model of 50 GB",
        model_cfg("text_cfg", width=65_536, layers=3),
        Refused("describes a model of .* weights or more"),
    ),
    (
        "pictures of another size than the model sees",
        preprocess(size=10**6),
        Accepted(),
    ),
    (
        "pictures of no known interpolation",
        preprocess(interpolation="evil"),
        Refused("interpolation bicubic or bilinear"),
    ),
    (
        "channels without spread",
        preprocess(std=[0, 0, 0]),
        Refused("mean and std of three channels"),
    ),
    (
        "tokenizer with code of its own",
        own_tokenizer_code,
        Refused("brings code of its own .auto_map., which is never run"),
    ),
    (
        "tokenizer with code of its own, which the configuration trusts",
        trusted_tokenizer_code,
        Refused("tokenizer_kwargs .'trust_remote_code'. are not let in"),
    ),
)


# ---------------------------------------------------------------------------- bundles


def fact(**changes: Any) -> Make:
    return edit("bundle.json", lambda facts: facts.update(changes))


def text_fact(**changes: Any) -> Make:
    return edit("bundle.json", lambda facts: facts["text"].update(changes))


def signed(name: str, make: Callable[[Path], object]) -> Make:
    """A maker that puts something in a file's place, which the bundle then says is its own."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        edit("bundle.json", lambda facts: facts["sha256"].update({name: sha256}))(folder)

    return change


def outside_weights(location: str) -> Callable[[Path], object]:
    """A graph whose weights lie in a file outside of the bundle."""

    def make(path: Path) -> None:
        from onnx import TensorProto, helper

        weight = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("length", "16")):
            weight.external_data.add(key=key, value=value)
        shown = helper.make_tensor_value_info(
            "pixels_IHWC", TensorProto.UINT8, [None, None, None, 3]
        )
        made = helper.make_tensor_value_info("image_ID", 1, [4])
        node = helper.make_node("Identity", ["w"], ["image_ID"])
        graph = helper.make_graph([node], "g", [shown], [made], [weight])
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        path.write_bytes(model.SerializeToString())

    return make


def other_graph(path: Path) -> None:
    """The text graph where the picture graph should be."""
    path.write_bytes((path.parent / "text.onnx").read_bytes())


def texts(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


NO_TOKENIZER = Refused("is no tokenizer")

kinds(
    "bundle",
    ("bundle.json is no JSON", rewrite("bundle.json", lambda _: b"{"), Refused("is not JSON")),
    (
        "bundle.json nests 100,000 deep",
        rewrite("bundle.json", lambda _: b"[" * 100_000),
        Refused("is not JSON"),
    ),
    (
        "bundle.json is no UTF-8",
        rewrite("bundle.json", lambda _: b"\xff"),
        Refused("is not readable"),
    ),
    ("bundle of a later format", fact(format_version=99), Refused("has format 99")),
    ("bundle without hashes", fact(sha256={}), Refused("is not the file that was exported")),
    (
        "bundle with a file outside of its folder",
        edit(
            "bundle.json",
            lambda facts: facts["sha256"].update({"fp32/../../outside/secret.png": "0"}),
        ),
        Refused("is no name of a file of a bundle"),
    ),
    (
        "bundle with an absolute path",
        edit("bundle.json", lambda facts: facts["sha256"].update({"/dev/zero": "0"})),
        Refused("is no name of a file of a bundle"),
    ),
    (
        "changed graph",
        rewrite("fp32/text.onnx", lambda data: data + b"0"),
        Refused("is not the file that was exported"),
    ),
    (
        "missing graph",
        lambda folder: (folder / "fp32/text.onnx").unlink(),
        Refused("cannot be read"),
    ),
    (
        "graph that is an endless device",
        replaced("fp32/text.onnx", endless),
        Refused("is no plain file"),
    ),
    (
        "graph that is a named pipe",
        replaced("fp32/text.onnx", os.mkfifo),
        Refused("is no plain file"),
    ),
    (
        "graph that is a pickle",
        signed("fp32/picture.onnx", lambda path: path.write_bytes(EVIL)),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph with weights outside of the folder",
        signed("fp32/picture.onnx", outside_weights("../../outside/secret.png")),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph with weights at an absolute path",
        signed("fp32/picture.onnx", outside_weights("/etc/passwd")),
        Refused("onnxruntime cannot open it"),
    ),
    (
        "graph that takes other things",
        signed("fp32/picture.onnx", other_graph),
        Refused("its graphs take"),
    ),
    ("tokenizer that is no JSON", signed("tokenizer.json", texts("{")), NO_TOKENIZER),
    (
        "tokenizer of no known kind",
        signed("tokenizer.json", texts('{"model": {"type": "Evil"}}')),
        NO_TOKENIZER,
    ),
    (
        "marks that are no numbers",
        text_fact(before=["x"]),
        Refused(r"text.before\[0\] is 'x'; expected a whole number"),
    ),
    ("marks that no model knows", text_fact(after=[10**9]), Refused("a graph fails")),
    (
        "layout that is none",
        text_fact(layout="evil"),
        Refused("text.layout is 'evil'; expected packed"),
    ),
    ("cleaning that is none", text_fact(clean="__import__('os')"), Refused("text.clean is ")),
    (
        "context of 10^12 tokens",
        text_fact(context_length=10**12),
        Refused("text.context_length is 1000000000000"),
    ),
    (
        "temperature of 0",
        fact(temperature=0),
        Refused("temperature is 0; expected a number above 0"),
    ),
    ("scale that is NaN", fact(scale=float("nan")), Refused("scale is nan; expected a number")),
    (
        "pictures of a million pixels a side",
        fact(preprocess={"size": 10**6}),
        Refused("expected a size from 1 to 2048 px"),
    ),
    (
        "pictures of another size than the graph's",
        fact(preprocess={"size": 32}),
        Refused("a graph fails"),
    ),
    (
        "problem_picture that is none",
        fact(problem_picture="evil"),
        Refused("problem_picture is 'evil'"),
    ),
)


# ---------------------------------------------------------------------------- runs

kinds(
    "run",
    ("run.json is no JSON", rewrite("run.json", lambda _: b"{"), Refused("run.json: ")),
    (
        "run.json nests 100,000 deep",
        rewrite("run.json", lambda _: b"[" * 100_000),
        Refused("run.json: "),
    ),
    ("run.json is a list", edit("run.json", lambda facts: [facts]), Refused("run.json: ")),
    (
        "run.json without a hash",
        edit("run.json", lambda facts: {"temperature": 1.0}),
        Refused("run.json: lacks model"),
    ),
    (
        "temperature that is a text",
        edit("run.json", lambda facts: facts.update(temperature="warm")),
        Refused("temperature is 'warm'; expected a number"),
    ),
    (
        "problem_picture that is none",
        edit("run.json", lambda facts: facts.update(problem_picture="evil")),
        Refused("run.json: "),
    ),
    (
        "weights of another run",
        edit("run.json", lambda facts: facts.update(weights_sha256="0" * 64)),
        Refused("are not the weights that the run wrote"),
    ),
)


# ---------------------------------------------------------------------------- checkpoints

CHECKPOINT = "checkpoints/step-00000001.ckpt"


def checkpoint(change: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path) -> None:
        import torch

        state = torch.load(folder / CHECKPOINT, weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, folder / CHECKPOINT)

    return make


DAMAGED = Refused("checkpoints: every checkpoint is damaged; move")

kinds(
    "checkpoint",
    ("pickle that runs code", rewrite(CHECKPOINT, lambda _: EVIL), DAMAGED),
    (
        "zip with a pickle that runs code",
        checkpoint(lambda state: state.update(evil=Evil())),
        DAMAGED,
    ),
    ("file that is cut off", rewrite(CHECKPOINT, lambda data: data[:5000]), DAMAGED),
    ("file that is no zip", rewrite(CHECKPOINT, lambda _: b"<html>404</html>"), DAMAGED),
    ("checkpoint without a step", checkpoint(lambda state: {"state_dict": {}}), DAMAGED),
)


# ---------------------------------------------------------------------------- configurations


def clean_config(folder: Path) -> None:
    shutil.copytree(conf_folder(), folder)
    config("questions_per_skill: 7\n")(folder)


def config(text: str, name: str = "experiment/theirs.yaml") -> Make:
    """A maker: a stranger's file in a copy of `conf`, for `+experiment=theirs`."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# @package _global_\n" + text)

    return make


CALLBACK = """
hydra:
  callbacks:
    theirs: {_target_: subprocess.run, args: 'touch "$CLIPSTEM_CANARY"', shell: true}
"""

kinds(
    "config",
    ("_target_ of a function", config("_target_: os.system\n"), Refused("has a _target_")),
    (
        "_target_ in an architecture",
        config("a: {b: [{_target_: os.system}]}\n"),
        Refused("has a _target_"),
    ),
    (
        "_target_ in a key that is written otherwise",
        config('"_tar\\x67et_": os.system\n'),
        Refused("has a _target_"),
    ),
    (
        "callback of Hydra's that runs a command",
        config(CALLBACK),
        Refused("sets Hydra's own settings"),
    ),
    (
        "callback in Hydra's package",
        lambda folder: (folder / "experiment/theirs.yaml").write_text(
            "# @package hydra\ncallbacks: {}\n"
        ),
        Refused("is a setting of Hydra's own"),
    ),
    (
        "file in Hydra's own groups",
        config("a: 1\n", "hydra/job_logging/theirs.yaml"),
        Refused("is a setting of Hydra's own"),
    ),
    (
        "defaults that choose from Hydra's groups",
        config("defaults:\n  - override /hydra/launcher: theirs\n"),
        Refused("sets Hydra's own settings"),
    ),
    (
        "YAML with a Python object",
        config(f"a: !!python/object/apply:os.system ['{RUN_CODE}']\n"),
        Refused("is no plain YAML"),
    ),
    (
        "YAML whose aliases grow to 10^9",
        config(
            "a: &a [1]\n"
            + "".join(
                f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
        ),
        Refused("has .* aliases"),
    ),
    (
        "YAML that nests 100,000 deep",
        config("a: " + "[" * 100_000),
        Refused("nests deeper than 50"),
    ),
    (
        "resolver that reads the environment",
        config("out: ${oc.env:HOME}\n"),
        Refused("has the resolver"),
    ),
    (
        "interpolations in a circle",
        config("questions_per_skill: ${repeats}\nrepeats: ${questions_per_skill}\n"),
        Refused("questions_per_skill|repeats"),
    ),
    ("unknown key", config("questions_per_skil: 7\n"), Refused("questions_per_skil")),
    ("value of another type", config("questions_per_skill: many\n"), Refused("many")),
)

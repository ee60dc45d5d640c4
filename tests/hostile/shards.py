"""Prepared shards."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from preparing import encoded

from clipstem.question import Picture, Question
from clipstem.shards import TAR_END, encode_sample
from hostile.table import (
    EVIL,
    RUN_CODE,
    Accepted,
    Make,
    Refused,
    edit,
    endless,
    kinds,
    replaced,
    rewrite,
)


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
    ("manifest is a list", edit("manifest.json", lambda m: [m]), Refused("expected an object")),
    (
        "manifest of a later format",
        edit("manifest.json", lambda m: m.update(format_version=2)),
        Refused("update clipstem"),
    ),
    (
        "manifest with a version that is a text",
        edit("manifest.json", lambda m: m.update(format_version="1")),
        Refused("format_version is '1'; expected a whole number"),
    ),
    (
        "manifest with a number that no table holds",
        edit("manifest.json", lambda m: m["questions"].update(train=10**400)),
        Refused("questions.train is 1000.*; expected a whole number below 2"),
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
        "record with captions that are no texts",
        with_sample(first_sample(captions={"option0.png": 7})),
        Refused("captions are of another type"),
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

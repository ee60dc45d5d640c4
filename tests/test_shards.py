"""Shards: what is written is what is read, each batch order is exact, damage is found and named."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import pickle
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipstem.question import ClipstemError, Kind, Picture, Question
from clipstem.shards import (
    FORMAT_VERSION,
    WINDOW,
    Dataset,
    Manifest,
    Shard,
    encode_sample,
    hash_of_shards,
    open_dataset,
    order,
    write_shard,
)


def png(number: int) -> Picture:
    """A small picture, another one for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256 % 256, 7)).save(buffer, "png")
    return Picture.of(buffer.getvalue())


def question(number: int, kind: Kind = Kind.TEXT_OPTIONS) -> Question:
    pictures = kind in (Kind.PICTURE_OPTIONS, Kind.PICTURE_OPTIONS_ON_PICTURE)
    problem = kind in (Kind.TEXT_OPTIONS, Kind.PICTURE_OPTIONS_ON_PICTURE)
    return Question(
        id=f"q-{number}",
        subject=("science", "math")[number % 2],
        grade=f"grade-{number % 8}",
        skill=f"skill-{number % 3}",
        problem=f"What is №{number}?",
        picture=png(3 * number) if problem else None,
        options=(png(3 * number + 1), png(3 * number + 2)) if pictures else ("ja", "nein", "oui"),
        answer=number % 2,
        row=number,
    )


KINDS = list(Kind)


def write_dataset(folder: Path, questions: list[Question], per_shard: int = 4) -> Dataset:
    """A prepared folder with one split, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shard] = []
    for start in range(0, len(questions), per_shard):
        samples = [
            encode_sample(start + i, q, ["png"] * len(q.pictures))
            for i, q in enumerate(questions[start : start + per_shard])
        ]
        shards.append(write_shard(folder, f"train-{len(shards):06d}.tar", "train", samples))
    (folder / "manifest.json").write_text(manifest_of(shards).to_json())
    return open_dataset(str(folder))


def manifest_of(shards: list[Shard]) -> Manifest:
    questions: dict[str, int] = {}
    for shard in shards:
        questions[shard.split] = questions.get(shard.split, 0) + shard.questions
    return Manifest(
        format_version=FORMAT_VERSION,
        clipstem_version="0",
        source={},
        seed=0,
        max_image_side=None,
        source_rows=questions,
        questions=questions,
        skills={},
        skipped={},
        leaks={},
        shared_pictures={},
        data_sha256=hash_of_shards(shards),
        shards=tuple(shards),
    )


def ten(folder: Path) -> tuple[list[Question], Dataset]:
    questions = [question(i, KINDS[i % len(KINDS)]) for i in range(10)]
    return questions, write_dataset(folder, questions)


# ---------------------------------------------------------------------------- reading


def test_reads_in_the_given_order_also_twice(tmp_path: Path) -> None:
    questions, dataset = ten(tmp_path / "data")
    assert dataset.size("train") == 10
    asked = [9, 0, 4, 4, 5, 3, 0]
    assert dataset.read("train", asked) == [questions[i] for i in asked]
    assert dataset.read("train", []) == []


def test_index_describes_each_question_in_order(tmp_path: Path) -> None:
    questions, dataset = ten(tmp_path / "data")
    index = dataset.index("train")
    assert index["id"].to_pylist() == [q.id for q in questions]
    assert index["kind"].to_pylist() == [q.kind.value for q in questions]
    assert index["num_options"].to_pylist() == [len(q.options) for q in questions]
    assert {"offset", "length", "sha256"}.isdisjoint(index.column_names)


def test_a_number_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    for number in (-1, 10):
        with pytest.raises(IndexError, match="train has questions 0 to 9"):
            dataset.read("train", [number])


def test_a_pickled_data_set_is_small_and_reads_the_same(tmp_path: Path) -> None:
    questions, dataset = ten(tmp_path / "data")
    dataset.read("train", range(10))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2500
    assert pickle.loads(pickled).read("train", [7]) == [questions[7]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # leaves files open
def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    questions, dataset = ten(tmp_path / "data")
    urls = [str(tmp_path / "data" / shard.name) for shard in dataset.manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [json.loads(sample["json"])["id"] for sample in samples] == [q.id for q in questions]
    assert samples[0]["problem.png"] == questions[0].pictures[0].data
    assert samples[1]["option1.png"] == questions[1].pictures[1].data
    gc.collect()  # here, so that the warning about webdataset's open files is not another test's


def test_members_are_plain_and_sorted_by_the_writer_alone(tmp_path: Path) -> None:
    ten(tmp_path / "data")
    with tarfile.open(tmp_path / "data" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "root")
            assert re.fullmatch(r"\d{12}\.(json|(problem|option\d)\.png)", member.name)


def test_foreign_members_are_never_looked_at(tmp_path: Path) -> None:
    """Members that webdataset would unpickle are not on the list of those that are let in."""
    sample = encode_sample(0, question(0), ["png"])
    evil = tarfile.TarInfo(f"{0:012d}.pkl")
    evil.size = 512
    (tmp_path / "data").mkdir()
    whole = sample + evil.tobuf(tarfile.USTAR_FORMAT) + b"cos\nsystem\n".ljust(512, b".")
    shard = write_shard(tmp_path / "data", "train-000000.tar", "train", [whole])
    (tmp_path / "data" / "manifest.json").write_text(manifest_of([shard]).to_json())
    assert open_dataset(str(tmp_path / "data")).read("train", [0]) == [question(0)]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    pictures = st.integers(0, 2**16 - 1).map(png)
    options = draw(
        st.one_of(
            st.lists(texts, min_size=1, max_size=6), st.lists(pictures, min_size=1, max_size=6)
        )
    )
    return Question(
        id=draw(texts),
        subject=draw(st.text(st.characters(exclude_categories=["Cs"]))),
        grade=draw(texts),
        skill=draw(texts),
        problem=draw(texts),
        picture=draw(st.none() | pictures),
        options=tuple(options),  # type: ignore[arg-type]
        answer=draw(st.integers(-1, len(options) - 1)),
        row=draw(st.integers(0, 2**40)),
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(questions(), min_size=1, max_size=9), st.integers(1, 4), st.data())
def test_any_question_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[Question],
    per_shard: int,
    data: st.DataObject,
) -> None:
    dataset = write_dataset(tmp_path_factory.mktemp("data"), written, per_shard)
    asked = data.draw(st.lists(st.integers(0, len(written) - 1)))
    assert dataset.read("train", asked) == [written[i] for i in asked]


# ---------------------------------------------------------------------------- errors


def test_what_is_no_prepared_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ClipstemError, match=r"no folder '.*nowhere'.*clipstem.prepare .*out=.*nowhere"
    ):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "train-0.parquet").touch()
    with pytest.raises(ClipstemError, match=rf"parquet files.*source=stem path={tmp_path} out="):
        open_dataset(str(tmp_path))
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(ClipstemError, match=r"has no manifest\.json, so it is not, or not wholly"):
        open_dataset(str(tmp_path))


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    for ask in (dataset.size, dataset.index, partial(dataset.read, indices=[0])):
        with pytest.raises(ClipstemError, match="there is no split 'valid'; this data has train"):
            ask("valid")


def test_a_later_format_asks_for_an_update(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    later = replace(dataset.manifest, format_version=FORMAT_VERSION + 1).to_json()
    with pytest.raises(
        ClipstemError, match=r"has format version 2, .* reads up to 1; update clipstem"
    ):
        Manifest.from_json(later)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no manifest"),
        ("[]", "is no manifest"),
        ('{"format_version": 1}', "lacks clipstem_version, data_sha256"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    ten(tmp_path / "data")
    (tmp_path / "data" / "manifest.json").write_text(text)
    with pytest.raises(ClipstemError, match=rf"{tmp_path}/data/manifest.json: {message}"):
        open_dataset(str(tmp_path / "data"))


def test_a_shard_name_cannot_lead_elsewhere(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    text = dataset.manifest.to_json().replace("train-000000.tar", "../train-000000.tar")
    with pytest.raises(ClipstemError, match=r"'\.\./train-000000\.tar' is no name of a shard"):
        Manifest.from_json(text)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    assert Manifest.from_json(dataset.manifest.to_json()) == dataset.manifest


def test_missing_and_shortened_shards_are_found_when_opened(tmp_path: Path) -> None:
    ten(tmp_path / "data")
    shard = tmp_path / "data" / "train-000001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ClipstemError, match=rf"000001.tar: has {size - 512:,} bytes, .* {size:,}"):
        open_dataset(str(tmp_path / "data"))
    shard.unlink()
    with pytest.raises(ClipstemError, match=r"train-000001.tar: is missing"):
        open_dataset(str(tmp_path / "data"))


def test_a_flipped_byte_names_the_question(tmp_path: Path) -> None:
    questions, dataset = ten(tmp_path / "data")
    shard = tmp_path / "data" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ClipstemError, match=r"000001.tar: question 'q-4' does not have the bytes"):
        dataset.read("train", [3, 4])
    assert dataset.read("train", [3, 5]) == [questions[3], questions[5]]


def test_an_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    index = tmp_path / "data" / "train-000001.parquet"
    pq.write_table(pq.read_table(index).slice(1), index)
    with pytest.raises(ClipstemError, match=r"is no index of the 4 questions in train-000001.tar"):
        dataset.read("train", [4])
    index.write_bytes(b"no parquet")
    with pytest.raises(ClipstemError, match=r"is no index of the 4 questions in train-000001.tar"):
        dataset.read("train", [4])


# ---------------------------------------------------------------------------- over HTTP


class WithRange(SimpleHTTPRequestHandler):
    """Serves files, and pieces of them when asked, as any web server does."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            return super().do_GET()
        data, (start, last) = path.read_bytes(), map(int, wanted.groups())
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - start))
        self.end_headers()
        self.wfile.write(data[start : last + 1])
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


class WithoutRange(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


Serve = Callable[[Path, type[SimpleHTTPRequestHandler]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_reads_over_http(tmp_path: Path, serve: Serve) -> None:
    questions, _ = ten(tmp_path / "data")
    url = serve(tmp_path, WithRange)
    dataset = open_dataset(f"{url}/data/")
    assert dataset.read("train", [8, 1, 0]) == [questions[i] for i in (8, 1, 0)]
    assert dataset.index("train").num_rows == 10
    with pytest.raises(
        ClipstemError, match=r"/elsewhere/manifest.json: cannot be read \(File not found\)"
    ):
        open_dataset(f"{url}/elsewhere")
    shard = tmp_path / "data" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(
        ClipstemError, match=r"train-000000.tar: has [\d,]+ bytes, the manifest says"
    ):
        dataset.read("train", [0])


def test_a_server_without_range_is_refused(tmp_path: Path, serve: Serve) -> None:
    ten(tmp_path / "data")
    dataset = open_dataset(serve(tmp_path / "data", WithoutRange))
    with pytest.raises(ClipstemError, match="ignores Range requests"):
        dataset.read("train", [0])


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(ClipstemError, match=r"http://127.0.0.1:9/x/manifest.json: cannot be read"):
        open_dataset("http://127.0.0.1:9/x")


def test_a_pipe_is_only_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match="there is no folder 'pipe:touch"):
        open_dataset(f"pipe:touch {tmp_path}/x")
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------- order


def sized(*questions: int) -> Manifest:
    """A manifest of a split `train` with shards of so many questions."""
    shards = [
        Shard(f"train-{i:06d}.tar", "train", count, 1, "00") for i, count in enumerate(questions)
    ]
    return manifest_of(shards)


@given(
    st.lists(st.integers(1, 3 * WINDOW), min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.none() | st.integers(0, 1000),
    st.integers(1, 999),
)
@settings(max_examples=50, deadline=None)
def test_each_question_comes_exactly_once(
    counts: list[int], seed: int, epoch: int | None, batch_size: int
) -> None:
    batches = order(sized(*counts), "train", seed, epoch, batch_size)
    assert batches.dtype == np.int64
    assert batches.shape == (-(-sum(counts) // batch_size), batch_size)
    numbers = batches[batches >= 0]
    assert sorted(numbers.tolist()) == list(range(sum(counts)))
    filling = batches.ravel()[sum(counts) :]
    assert (filling == -1).all()
    assert (order(sized(*counts), "train", seed, epoch, batch_size) == batches).all()


def test_without_an_epoch_the_order_is_the_natural_one() -> None:
    batches = order(sized(3, 2), "train", 1, None, 4)
    assert batches.tolist() == [[0, 1, 2, 3], [4, -1, -1, -1]]


def test_the_batch_size_cuts_the_order_and_does_not_change_it() -> None:
    flat = [
        order(sized(50, 50), "train", 1, 2, size).ravel()[:100].tolist() for size in (1, 7, 100)
    ]
    assert flat[0] == flat[1] == flat[2]


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(order(sized(100), "train", seed, epoch, 100)[0])
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_reads_stay_near_each_other() -> None:
    """A window's questions come from the few shards that it covers."""
    counts = [2000] * 50
    numbers = order(sized(*counts), "train", 0, 0, 1).ravel()
    for start in range(0, len(numbers), WINDOW):
        shards = set((numbers[start : start + WINDOW] // 2000).tolist())
        assert len(shards) <= -(-WINDOW // 2000) + 1


def test_the_order_is_the_one_of_yesterday() -> None:
    """A resumed run relies on it: a change here is a change of format."""
    digest = hashlib.sha256(order(sized(9000, 1000), "train", 3, 4, 10).tobytes()).hexdigest()
    assert digest == "6b893d7cac444db8087e0a6a43d335606e558973da410918f74de2dfb9b1d205"

"""Shards: what is written is what is read, each order is exact, damage is found and named."""

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
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipstem import storage
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
    for ask in (
        dataset.shards_of,
        dataset.size,
        dataset.index,
        partial(dataset.read, indices=[0]),
    ):
        with pytest.raises(ClipstemError) as error:
            ask("valid")
        message = "there is no split 'valid'; this data has train"
        assert str(error.value) == f"{tmp_path}/data: {message}"
    with pytest.raises(ClipstemError, match=f"^{message}$"):
        dataset.manifest.of_split("valid")


def test_a_later_format_asks_for_an_update(tmp_path: Path) -> None:
    _, dataset = ten(tmp_path / "data")
    later = replace(dataset.manifest, format_version=FORMAT_VERSION + 1).to_json()
    with pytest.raises(ClipstemError, match=r"has format 2, .* reads up to 1; update clipstem"):
        Manifest.from_json(later)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON in UTF-8"),
        ("[]", "it is .*; expected an object"),
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
        last = min(last, len(data) - 1)
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
    whole = shard.read_bytes()
    for changed in (whole + b"more", whole[:700]):
        shard.write_bytes(changed)
        with pytest.raises(
            ClipstemError, match=rf"000000.tar: has {len(changed):,} bytes, the manifest says"
        ):
            dataset.read("train", [0])


def test_a_server_without_range_is_refused(tmp_path: Path, serve: Serve) -> None:
    ten(tmp_path / "data")
    dataset = open_dataset(serve(tmp_path / "data", WithoutRange))
    with pytest.raises(ClipstemError, match="ignores Range requests"):
        dataset.read("train", [0])


class Dropping(WithRange):
    """Answers each file's first requests wrongly, in the ways of `faults`; counts all requests."""

    faults: ClassVar[tuple[str, ...]] = ()
    requests: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        number = self.requests.get(self.path, 0)
        self.requests[self.path] = number + 1
        if number >= len(self.faults):
            return super().do_GET()
        fault = self.faults[number]
        if fault.isdecimal():
            return self.send_error(int(fault))
        if fault == "no status":
            self.wfile.write(b"nonsense\r\n\r\n")
        elif fault == "short":
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-99/100")
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x")
        elif fault == "short, no length":
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-99/100")
            self.end_headers()
            self.wfile.write(b"x")
        self.close_connection = True  # "nothing" sends not even a status
        return None


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Sets the faults; returns the number of requests by path. Nobody waits between tries."""

    def set_faults(*faults: str) -> dict[str, int]:
        requests: dict[str, int] = {}
        monkeypatch.setattr(Dropping, "faults", faults)
        monkeypatch.setattr(Dropping, "requests", requests)
        return requests

    monkeypatch.setattr(storage, "RETRY_WAITS_S", (0.0, 0.0))
    return set_faults


@pytest.mark.parametrize(
    "faults",
    [("nothing",), ("short", "nothing"), ("503", "429"), ("no status",)],
)
def test_a_dropped_connection_is_tried_again(
    tmp_path: Path, serve: Serve, dropping: Callable[..., dict[str, int]], faults: tuple[str, ...]
) -> None:
    questions, _ = ten(tmp_path / "data")
    requests = dropping(*faults)
    dataset = open_dataset(serve(tmp_path / "data", Dropping))
    assert dataset.read("train", [1, 5]) == [questions[1], questions[5]]
    assert requests["/manifest.json"] == requests["/train-000001.tar"] == len(faults) + 1


def test_a_short_piece_is_asked_for_again(
    tmp_path: Path, serve: Serve, dropping: Callable[..., dict[str, int]]
) -> None:
    questions, dataset = ten(tmp_path / "data")
    over_http = Dataset(serve(tmp_path / "data", Dropping), dataset.manifest)
    over_http.read("train", [0])  # the index is known from here on
    dropping("short, no length")
    assert over_http.read("train", [0, 2]) == [questions[0], questions[2]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nothing", "Remote end closed connection without response"),
        ("short", r"IncompleteRead\(1 bytes read, 99 more expected\)"),
        ("503", "Service Unavailable"),
    ],
)
def test_the_third_dropped_connection_is_one_clear_line(
    tmp_path: Path,
    serve: Serve,
    dropping: Callable[..., dict[str, int]],
    fault: str,
    reason: str,
) -> None:
    ten(tmp_path / "data")
    requests = dropping(fault, fault, fault)
    url = serve(tmp_path / "data", Dropping)
    message = (
        rf"^{url}/manifest.json: cannot be read in 3 tries \({reason}\); check the address .*$"
    )
    with pytest.raises(ClipstemError, match=message):
        open_dataset(url)
    assert requests == {"/manifest.json": 3}


def test_a_missing_file_is_not_asked_for_again(
    tmp_path: Path, serve: Serve, dropping: Callable[..., dict[str, int]]
) -> None:
    requests = dropping()
    with pytest.raises(ClipstemError, match=r"manifest.json: cannot be read \(File not found\)"):
        open_dataset(serve(tmp_path, Dropping))
    assert requests == {"/manifest.json": 1}


def test_a_server_that_does_not_say_the_size_is_read_and_one_that_says_nonsense_is_refused(
    tmp_path: Path, serve: Serve
) -> None:
    class Says(WithRange):
        size = "*"

        def send_header(self, keyword: str, value: str) -> None:
            if keyword == "Content-Range":
                value = value.rpartition("/")[0] + f"/{self.size}"
            super().send_header(keyword, value)

    questions, _ = ten(tmp_path / "data")
    dataset = open_dataset(serve(tmp_path / "data", Says))
    assert dataset.read("train", [0, 9]) == [questions[0], questions[9]]
    Says.size = "many"
    with pytest.raises(
        ClipstemError, match=r"000000.tar: the server's Content-Range is 'bytes \d+-\d+/many'; "
    ):
        dataset.read("train", [0])


def test_no_server_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_WAITS_S", (0.0,))
    with pytest.raises(
        ClipstemError, match=r"http://127.0.0.1:9/x/manifest.json: cannot be read in 2 tries \(.+\)"
    ):
        open_dataset("http://127.0.0.1:9/x")


@pytest.mark.parametrize("url", ["http://[x", "http://127.0.0.1:9/ä", "http://127.0.0.1:9/a b"])
def test_what_is_no_url_is_a_clear_error_at_once(url: str) -> None:
    with pytest.raises(ClipstemError, match=rf"{re.escape(url)}/manifest.json: cannot be read \("):
        open_dataset(url)


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
    st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_each_question_comes_exactly_once(counts: list[int], seed: int, epoch: int) -> None:
    numbers = order(sized(*counts), "train", seed, epoch)
    assert numbers.dtype == np.int64
    assert sorted(numbers.tolist()) == list(range(sum(counts)))
    assert (order(sized(*counts), "train", seed, epoch) == numbers).all()


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(order(sized(100), "train", seed, epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_reads_stay_near_each_other() -> None:
    """A window's questions come from the few shards that it covers."""
    counts = [2000] * 50
    numbers = order(sized(*counts), "train", 0, 0)
    for start in range(0, len(numbers), WINDOW):
        shards = set((numbers[start : start + WINDOW] // 2000).tolist())
        assert len(shards) <= -(-WINDOW // 2000) + 1


def test_the_order_is_the_one_of_yesterday() -> None:
    """A resumed run relies on it: a change here is a change of format."""
    digest = hashlib.sha256(order(sized(9000, 1000), "train", 3, 4).tobytes()).hexdigest()
    assert digest == "6b893d7cac444db8087e0a6a43d335606e558973da410918f74de2dfb9b1d205"

"""Batches: each question exactly once, whatever the parts and places left over."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preparing import with_broken_pictures
from samples import Letters, encoded

from clipstem import shards
from clipstem.batches import NOBODY, Batches, batched, read_ahead, usable
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.images import PictureSpec, to_pixels
from clipstem.pairs import PairBatch, collate
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Kind, ProblemPicture
from clipstem.shards import Dataset

SPEC = PictureSpec(size=16)


def batches(
    dataset: Dataset, order_SN: Any, parts: int = 1, split: str = "valid", **settings: Any
) -> Batches:
    order = np.asarray(order_SN, np.int64)
    tokenizer = Letters(context_length=120)
    return Batches(dataset, split, order, tokenizer, SPEC, ProblemPicture.added, parts, **settings)


def all_of(made: Batches) -> list[PairBatch]:
    return [made[number] for number in range(len(made))]


def ids(dataset: Dataset, numbers: Sequence[int]) -> list[str]:
    return [question.id for question in dataset.read("valid", numbers)]


def equal(left: PairBatch, right: PairBatch) -> bool:
    values = [
        (getattr(a, field.name), getattr(b, field.name))
        for a, b in ((left, right), (left.texts, right.texts))
        for field in fields(a)
        if field.name != "texts"
    ]
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b) for a, b in values
    )


def test_a_batch_is_its_questions_collated(dataset: Dataset) -> None:
    (batch,) = all_of(batches(dataset, [[7, 0, 3]]))
    expected = collate(
        dataset.read("valid", [7, 0, 3]),
        Letters(context_length=120),
        lambda picture: to_pixels(picture.data, SPEC),
    )
    third = np.full(3, 1 / 3, np.float32)
    assert equal(batch, replace(expected, weight_Q=third))


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_cover_exactly_their_batchs_questions(dataset: Dataset, parts: int) -> None:
    order = [[5, 1, 9, 0, 2, 8], [3, 4, 7, 6, NOBODY, NOBODY], [10, *[NOBODY] * 5]]
    made = batches(dataset, order, parts)
    assert len(made) == 3 * parts
    for step, numbers in enumerate(order):
        here = [made[step * parts + part] for part in range(parts)]
        counted = [
            name
            for part in here
            for name, weight in zip(part.ids, part.weight_Q.tolist(), strict=True)
            if weight > 0
        ]
        assert sorted(counted) == sorted(ids(dataset, [n for n in numbers if n != NOBODY]))
        assert sum(float(part.weight_Q.sum()) for part in here) == pytest.approx(1)
        assert len({w for part in here for w in part.weight_Q.tolist() if w > 0}) == 1
        assert {len(part.ids) for part in here} == {6 // parts}


def test_an_empty_part_gets_a_question_of_weight_0(dataset: Dataset) -> None:
    order = [[4, NOBODY, NOBODY, NOBODY]]
    _, empty = all_of(batches(dataset, order, parts=2))
    assert empty.ids == ("", "")
    assert empty.weight_Q.tolist() == [0, 0]
    assert len(empty.pixels_IHWC) > 0


def test_pictures_that_are_known_by_their_keys_are_not_decoded(dataset: Dataset) -> None:
    made = batches(dataset, [[0, 1, 2]])
    (whole,), (blind,) = all_of(made), all_of(replace(made, decodes=False))
    assert blind.pixels_IHWC.shape == (len(whole.pixels_IHWC), 1, 1, 3)
    assert blind.pictures == whole.pictures
    assert (blind.cell_QK == whole.cell_QK).all()


@given(st.integers(0, 30), st.integers(1, 9))
def test_numbers_in_rows_are_all_of_them_in_order(count: int, batch_size: int) -> None:
    numbers = np.arange(count) * 3
    rows = batched(numbers, batch_size)
    assert rows.shape == (-(-count // batch_size), batch_size)
    assert rows.dtype == np.int64
    assert rows.flatten()[:count].tolist() == numbers.tolist()
    assert (rows.flatten()[count:] == NOBODY).all()


def write_jsonl(folder: Path, pictures: dict[str, bytes], lines: Sequence[str]) -> Path:
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    path = folder / "questions.jsonl"
    start = '{"subject": "s", "grade": "g", "skill": "k", "split": "train", "problem": "which?", '
    path.write_text("\n".join(start + line + "}" for line in lines))
    return path


def prepared(tmp_path: Path, path: Path, verify: Verify = Verify.decode) -> Dataset:
    out = str(tmp_path / "out")
    config = PrepareConfig(out, Source.jsonl, str(path), verify=verify, workers=1, tune_fraction=0)
    prepare(config)
    return shards.open_dataset(out)


def test_usable_questions_have_a_picture_and_an_answer(tmp_path: Path) -> None:
    png = encoded(Image.new("RGB", (8, 8)))
    lines = [
        '"id": "both", "image": "a.png", "options": ["x", "y"], "answer": 0',
        '"id": "no answer", "image": "a.png", "options": ["x", "y"], "answer": -1',
        '"id": "no picture", "options": ["x", "y"], "answer": 1',
        '"id": "neither", "options": ["x", "y"], "answer": -1',
    ]
    data = prepared(tmp_path, write_jsonl(tmp_path / "source", {"a.png": png}, lines))
    names = np.array(data.index("train")["id"].to_pylist())
    assert set(names[usable(data, "train", answered=True)]) == {"both"}
    assert set(names[usable(data, "train", answered=False)]) == {"both", "no answer"}


def test_every_drawn_question_is_usable_and_all_three_kinds_are_there(dataset: Dataset) -> None:
    assert usable(dataset, "valid", answered=True).all()
    kinds = set(dataset.index("valid")["kind"].to_pylist())
    assert kinds == {kind.value for kind in Kind} - {Kind.TEXT_ONLY.value}


def test_reading_ahead_gives_the_same_batches_in_order(dataset: Dataset) -> None:
    made = batches(dataset, batched(np.arange(20), 2))
    for threads in (0, 1, 3):
        found = [*read_ahead(made, range(len(made)), threads)]
        assert len(found) == len(made)
        assert all(map(equal, found, all_of(made)))


@pytest.mark.parametrize("threads", [1, 3])
def test_who_stops_early_leaves_no_thread_behind(dataset: Dataset, threads: int) -> None:
    made, before = batches(dataset, batched(np.arange(20), 2)), set(threading.enumerate())
    ahead = read_ahead(made, range(len(made)), threads)
    assert equal(next(ahead), made[0])
    started = set(threading.enumerate()) - before
    assert 1 <= len(started) <= threads  # a pool starts none for work that an idle one can take
    del ahead
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


def test_what_goes_wrong_ahead_is_raised(tmp_path: Path) -> None:
    data = with_a_broken_picture(tmp_path)
    with pytest.raises(ClipstemError, match=r"^question 'q17': a picture is truncated; 'tr"):
        list(read_ahead(batches(data, [[0]], split="train"), [0], 1))


def test_a_broken_question_leaves_its_place_empty_and_all_else_as_it_is(tmp_path: Path) -> None:
    data = with_broken_pictures(tmp_path, 6, broken=[2, 5])
    place = {id: number for number, id in enumerate(data.index("train")["id"].to_pylist())}
    order = [place[f"q{number}"] for number in (0, 2, 1, 5)]
    found = batches(data, [order], split="train")[0]
    assert found.ids == ("q0", "", "q1", "")
    assert found.skipped == (("q2", "is truncated"), ("q5", "is truncated"))
    without = [order[0], NOBODY, order[2], NOBODY]
    expected = batches(data, [without], split="train")[0]
    assert found.weight_Q.tolist() == [0.25, 0, 0.25, 0]  # of the batch as it was ordered
    assert equal(replace(found, weight_Q=expected.weight_Q, skipped=()), expected)


@pytest.mark.parametrize("known", [{}, {"q2": "is truncated"}])
def test_a_part_of_broken_questions_alone_is_filled_with_one_of_no_weight(
    tmp_path: Path, known: dict[str, str]
) -> None:
    data = with_broken_pictures(tmp_path, 6, broken=[] if known else [2])
    place = {id: number for number, id in enumerate(data.index("train")["id"].to_pylist())}
    order = [place["q2"], place["q4"], NOBODY, NOBODY]
    made = batches(data, [order], split="train", parts=4, broken=known)
    broken, whole, *empty = all_of(made)
    assert (broken.ids, broken.skipped) == (("",), (("q2", "is truncated"),))
    assert (whole.ids, whole.weight_Q.tolist()) == (("q4",), [0.5])
    assert all(it.ids == ("",) and it.skipped == () for it in empty)
    for filled in (broken, *empty):
        assert filled.weight_Q.tolist() == [0] and filled.pictures == whole.pictures


def with_a_broken_picture(tmp_path: Path) -> Dataset:
    broken = encoded(Image.effect_noise((40, 40), 90))[:-300]
    lines = ['"id": "q17", "image": "a.png", "options": ["x", "y"], "answer": 0']
    path = write_jsonl(tmp_path / "source", {"a.png": broken}, lines)
    return prepared(tmp_path, path, Verify.header)

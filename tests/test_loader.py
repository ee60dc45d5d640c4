"""Batches: each question exactly once, whatever the parts, workers and places left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import Letters, encoded

from clipstem import loader, shards
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.images import PictureSpec, to_pixels
from clipstem.loader import NOBODY, Batches, batched, load, usable
from clipstem.pairs import PairBatch, collate
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Kind, ProblemPicture
from clipstem.shards import Dataset

SPEC = PictureSpec(size=16)


@pytest.fixture(scope="module")
def dataset(drawn_data: Path) -> Dataset:
    return shards.open_dataset(str(drawn_data))


def batches(dataset: Dataset, order_SN: Any, parts: int = 1, split: str = "valid") -> Batches:
    order = np.asarray(order_SN, np.int64)
    tokenizer = Letters(context_length=120)
    return Batches(dataset, split, order, tokenizer, SPEC, ProblemPicture.added, parts)


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
        torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b) for a, b in values
    )


# ---------------------------------------------------------------------------- batches


def test_a_batch_is_its_questions_collated_as_tensors(dataset: Dataset) -> None:
    (batch,) = all_of(batches(dataset, [[7, 0, 3]]))
    expected = collate(
        dataset.read("valid", [7, 0, 3]),
        Letters(context_length=120),
        lambda picture: to_pixels(picture.data, SPEC),
    )
    third = np.full(3, 1 / 3, np.float32)
    assert equal(batch, replace(expected, weight_Q=third).map(torch.from_numpy))


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
    assert empty.ids == (*ids(dataset, [4]), "")
    assert empty.weight_Q.tolist() == [0, 0]
    assert len(empty.pixels_IHWC) > 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_workers_make_the_same_batches_in_the_same_order(
    dataset: Dataset, workers: int, start: int
) -> None:
    made = batches(dataset, batched(np.arange(20), 4), parts=2)
    found = list(load(made, workers, start))
    assert len(load(made, workers, start)) == 10  # of the whole order, as Lightning counts
    assert all(map(equal, found, all_of(made)[start:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_changed_pictures_depend_on_seed_step_and_picture_alone(
    dataset: Dataset, workers: int
) -> None:
    plain = batches(dataset, [[0, 1, 2, 3]] * 2, parts=2)
    made = replace(plain, change_seed=5)
    found = list(load(made, workers))
    assert all(map(equal, found, all_of(made)))
    assert all(map(equal, load(made, workers, start=2), found[2:]))
    shown = [dict(zip(batch.pictures, batch.pixels_IHWC.unbind(), strict=True)) for batch in found]
    for before, first, second in zip(all_of(plain)[:2], shown[:2], shown[2:], strict=True):
        for key, pixels in zip(before.pictures, before.pixels_IHWC, strict=True):
            assert not torch.equal(pixels, first[key])
            assert not torch.equal(first[key], second[key])
    for key in shown[0].keys() & shown[1].keys():  # of the same step
        assert torch.equal(shown[0][key], shown[1][key])
    other = list(load(replace(made, change_seed=6), workers))
    assert not torch.equal(other[0].pixels_IHWC, found[0].pixels_IHWC)


def test_pictures_that_are_known_by_their_keys_are_not_decoded(dataset: Dataset) -> None:
    made = batches(dataset, [[0, 1, 2]])
    (whole,), (blind,) = all_of(made), all_of(replace(made, decodes=False))
    assert blind.pixels_IHWC.shape == (len(whole.pixels_IHWC), 1, 1, 3)
    assert blind.pictures == whole.pictures
    assert torch.equal(blind.cell_QK, whole.cell_QK)


def test_batches_before_the_start_are_never_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def recorded(self: Dataset, split: str, indices: Any) -> list[Any]:
        read.extend(indices.tolist())
        return original(self, split, indices)

    original = Dataset.read
    monkeypatch.setattr(Dataset, "read", recorded)
    assert len(list(load(batches(dataset, [[0, 1], [2, 3], [4, 5]]), 0, start=2))) == 1
    assert read == [4, 5]


# ---------------------------------------------------------------------------- what is loaded


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line_that_names_its_question(tmp_path: Path, workers: int) -> None:
    broken = encoded(Image.effect_noise((40, 40), 90))[:-300]
    lines = ['"id": "q17", "image": "a.png", "options": ["x", "y"], "answer": 0']
    path = write_jsonl(tmp_path / "source", {"a.png": broken}, lines)
    data = prepared(tmp_path, path, Verify.header)
    with pytest.raises(ClipstemError) as error:
        list(loader.load(batches(data, [[0]], split="train"), workers))
    assert str(error.value) == "question 'q17': a picture is truncated"

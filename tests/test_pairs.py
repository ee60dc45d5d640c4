"""Pairs: what each kind becomes, and scores equal to a plain loop, in NumPy and torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from samples import (
    Letters,
    picture,
    pixels,
    question,
    questions,
    random_embedding,
    row,
    unit,
    unpacked,
)

from clipstem.pairs import LOWEST_LOGIT, Pair, PairBatch, collate, cosines, render, score
from clipstem.question import ClipstemError, Picture, ProblemPicture, Question

ADDED, IGNORED, REFERENCE = (
    ProblemPicture.added,
    ProblemPicture.ignored,
    ProblemPicture.reference,
)
SCALE = 20.0

ON_PICTURE = question([picture(0), picture(1)], picture(2), "ask")


# ---------------------------------------------------------------------------- render


@pytest.mark.parametrize("mode", ProblemPicture)
def test_text_options_share_the_picture(mode: ProblemPicture) -> None:
    asked = question(["a", "b"], picture(0), "ask")
    assert render(asked, mode) == [Pair(picture(0), "ask", "a"), Pair(picture(0), "ask", "b")]


@pytest.mark.parametrize("mode", ProblemPicture)
def test_picture_options_share_the_text(mode: ProblemPicture) -> None:
    asked = question([picture(0), picture(1)], None, "ask")
    assert render(asked, mode) == [Pair(picture(0), "ask"), Pair(picture(1), "ask")]


@pytest.mark.parametrize(
    ("mode", "pairs"),
    [
        (ADDED, [Pair(picture(n), "ask", context=picture(2)) for n in (0, 1)]),
        (IGNORED, [Pair(picture(n), "ask") for n in (0, 1)]),
        (REFERENCE, [Pair(picture(2), "ask")]),
    ],
)
def test_a_problem_with_a_picture_among_picture_options(
    mode: ProblemPicture, pairs: list[Pair]
) -> None:
    assert render(ON_PICTURE, mode) == pairs


def test_a_question_without_a_picture_is_refused() -> None:
    with pytest.raises(ClipstemError, match=r"^question 'q' has no picture: CLIP has no score for"):
        render(question(["a", "b"]), ADDED)


# ---------------------------------------------------------------------------- collate


def collated(
    asked: Sequence[Question | None], mode: ProblemPicture = ADDED, context: int = 77
) -> PairBatch:
    return collate(asked, Letters(context_length=context), pixels, mode)


def test_a_small_batch_by_eye() -> None:
    batch = collated(
        [
            question(["a", "b", "c"], picture(7), answer=2, id="first"),
            None,
            question([picture(8), picture(7)], picture(9), id="third"),
        ]
    )
    assert batch.ids == ("first", "", "third")
    assert batch.pixels_IHWC[:, 0, 0, 0].tolist() == [7, 9, 8]
    assert batch.pixels_IHWC.dtype == np.uint8
    assert unpacked(batch.texts) == [row("aska"), row("askb"), row("askc"), row("ask")]
    assert batch.text_of_V.tolist() == [0, 1, 2, 3]
    assert batch.picture_of_V.tolist() == [-1, -1, -1, 1]
    assert batch.cell_QK.tolist() == [[0, 3, 6], [0, 0, 0], [11, 9, 0]]
    assert batch.filled_QK.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert batch.answer_Q.tolist() == [2, -1, -1]
    assert batch.weight_Q.tolist() == [1, 0, 1]
    assert batch.truncated_Q.tolist() == [0, 0, 0]


@given(st.lists(questions(), min_size=1, max_size=6))
def test_distinct_pictures_are_decoded_once_and_distinct_texts_packed_once(
    asked: list[Question],
) -> None:
    decoded: Counter[Picture] = Counter()

    def decode(shown: Picture) -> NDArray[np.uint8]:
        decoded[shown] += 1
        return pixels(shown)

    batch = collate(asked, Letters(), decode)
    assert decoded == Counter({shown for one in asked for shown in one.pictures})
    assert Counter(unpacked(batch.texts)) == Counter(
        {row(pair.question + pair.option) for one in asked for pair in render(one, ADDED)}
    )
    queries = list(zip(batch.text_of_V.tolist(), batch.picture_of_V.tolist(), strict=True))
    assert len(set(queries)) == len(queries)


def test_only_pictures_that_are_scored_are_decoded() -> None:
    assert collated([ON_PICTURE], ADDED).pixels_IHWC[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert collated([ON_PICTURE], IGNORED).pixels_IHWC[:, 0, 0, 0].tolist() == [0, 1]
    assert collated([ON_PICTURE], REFERENCE).pixels_IHWC[:, 0, 0, 0].tolist() == [2]


def test_the_tokens_that_an_option_lost_are_counted() -> None:
    asked = question(["a", "bcd"], picture(0), "question")
    assert collated([asked, None], context=10).truncated_Q.tolist() == [3, 0]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_picture_that_does_not_decode_names_its_question(broken: int) -> None:
    def decode(shown: Picture) -> NDArray[np.uint8]:
        if shown == picture(broken):
            raise ClipstemError("is truncated")
        return pixels(shown)

    good = question(["a"], picture(3), id="good")
    bad = question([picture(0), picture(1)], picture(2), id="bad")
    with pytest.raises(ClipstemError, match=r"^question 'bad': a picture is truncated$"):
        collate([good, bad], Letters(), decode)


def test_map_changes_every_array_and_nothing_else() -> None:
    batch = collated([ON_PICTURE, None])
    batch = replace(batch, teacher_QK=np.zeros(batch.cell_QK.shape, np.float32))
    tensors = batch.map(torch.from_numpy)
    for name in ("ids", "pictures", "joined", "queries", "skipped"):
        assert getattr(tensors, name) == getattr(batch, name)
    arrays = {**vars(tensors), **vars(tensors.texts)}
    assert {name for name, value in arrays.items() if not isinstance(value, torch.Tensor)} == {
        "ids",
        "pictures",
        "texts",
        "joined",
        "queries",
        "skipped",
    }
    for name, value in {**vars(batch), **vars(batch.texts)}.items():
        if name not in ("ids", "pictures", "texts", "joined", "queries", "skipped"):
            assert isinstance(value, np.ndarray)
            assert np.array_equal(arrays[name].numpy(), value)


# ---------------------------------------------------------------------------- score


def embeddings(batch: PairBatch, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What towers would give: of each picture by its pixels, of each text by what its END sees."""
    embed = random_embedding(seed)
    image_ID = np.array([embed([value]) for value in batch.pixels_IHWC[:, 0, 0, 0].tolist()])
    return image_ID, np.array([embed(tokens) for tokens in unpacked(batch.texts)])


def plain_logits(asked: Question, mode: ProblemPicture, seed: int) -> list[float]:
    """One option after the other, by the formulas as they are written down."""
    embed = random_embedding(seed)

    def of_picture(shown: Picture) -> NDArray[np.float64]:
        return embed([shown.data[0]])

    def of_text(option: str) -> NDArray[np.float64]:
        return embed(row(asked.problem + option))

    logits = []
    for option in asked.options:
        if isinstance(option, str):
            assert asked.picture is not None
            logits.append(SCALE * float(of_text(option) @ of_picture(asked.picture)))
        elif asked.picture is None or mode is IGNORED:
            logits.append(SCALE * float(of_text("") @ of_picture(option)))
        elif mode is ADDED:
            query = unit(of_text("") + of_picture(asked.picture))
            logits.append(SCALE * float(query @ of_picture(option)))
        else:
            return [SCALE * float(of_text("") @ of_picture(asked.picture))]
    return logits


@given(
    st.lists(questions() | st.none(), min_size=1, max_size=6).filter(any),
    st.sampled_from(ProblemPicture),
    st.integers(0, 99),
)
def test_logits_equal_a_plain_loop(
    asked: list[Question | None], mode: ProblemPicture, seed: int
) -> None:
    batch = collated(asked, mode)
    image_ID, text_UD = embeddings(batch, seed)
    logits_QK = score(batch, cosines(batch, image_ID, text_UD), SCALE)

    most = max(len(one.options) for one in asked if one)
    assert logits_QK.shape == (len(asked), most)
    for logits, one in zip(logits_QK, asked, strict=True):
        expected = plain_logits(one, mode, seed) if one else []
        np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-9)
        assert (logits[len(expected) :] == LOWEST_LOGIT).all()

    tensors = batch.map(torch.from_numpy)
    cosine_VI = cosines(tensors, torch.from_numpy(image_ID), torch.from_numpy(text_UD))
    in_torch = score(tensors, cosine_VI, torch.tensor(SCALE)).numpy()
    np.testing.assert_allclose(in_torch, logits_QK, atol=1e-9)


BATCH = [ON_PICTURE, question(["a", "b", "c"], picture(2)), None, question([picture(0)])]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_and_torch_keep_the_dtype(dtype: str) -> None:
    batch = collated(BATCH)
    image_ID, text_UD = (array.astype(dtype) for array in embeddings(batch, 0))
    logits_QK = score(batch, cosines(batch, image_ID, text_UD), SCALE)
    tensors = batch.map(torch.from_numpy)
    cosine_VI = cosines(tensors, torch.from_numpy(image_ID), torch.from_numpy(text_UD))
    in_torch = score(tensors, cosine_VI, SCALE).numpy()
    assert logits_QK.dtype == in_torch.dtype == dtype
    np.testing.assert_allclose(in_torch, logits_QK, rtol=1e-5, atol=1e-5)
    assert (logits_QK[batch.filled_QK == 0] == np.finfo(np.float32).min).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_short_floats_are_fp32(dtype: torch.dtype) -> None:
    tensors = collated(BATCH).map(torch.from_numpy)
    shape = len(tensors.text_of_V), len(tensors.pixels_IHWC)
    logits_QK = score(tensors, torch.ones(shape, dtype=dtype), SCALE)
    assert logits_QK.dtype == torch.float32
    assert torch.isfinite(logits_QK).all()


def test_queries_without_a_picture_are_taken_as_they_are() -> None:
    batch = collated([ON_PICTURE, question(["a"], picture(2))])
    text_UD = np.array([[0.6, 0.8, 0.0], [1 / 3, 2 / 3, 2 / 3]])
    assert batch.picture_of_V.tolist() == [0, -1]
    assert cosines(batch, np.eye(3), text_UD)[1].tolist() == text_UD[1].tolist()


def test_exact_ties_go_to_the_lowest_index() -> None:
    asked = [
        question([picture(3), picture(1), picture(3), picture(1)]),
        question(["b", "a", "a", "b"], picture(0)),
        question([picture(3), picture(1), picture(3), picture(1)], picture(2)),
    ]
    batch = collated(asked)
    image_ID, text_UD = embeddings(batch, 1)
    logits_QK = score(batch, cosines(batch, image_ID, text_UD), SCALE)
    assert (logits_QK.max(axis=1, keepdims=True) == logits_QK).sum(axis=1).tolist() == [2, 2, 2]
    lowest = [logits.tolist().index(logits.max()) for logits in logits_QK]
    assert logits_QK.argmax(axis=1).tolist() == lowest
    assert torch.from_numpy(logits_QK).argmax(dim=1).tolist() == lowest
    assert set(lowest) <= {0, 1}


def test_gradients_flow_to_pictures_texts_and_scale() -> None:
    batch = collated(BATCH).map(torch.from_numpy)
    arrays: list[Any] = [*embeddings(collated(BATCH), 2), np.array(SCALE)]
    image_ID, text_UD, scale = (torch.from_numpy(a).requires_grad_() for a in arrays)

    def filled_logits(
        image_ID: torch.Tensor, text_UD: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = score(batch, cosines(batch, image_ID, text_UD), scale)
        return logits[batch.filled_QK > 0]

    assert torch.autograd.gradcheck(filled_logits, (image_ID, text_UD, scale))
    score(batch, cosines(batch, image_ID, text_UD), scale).sum().backward()
    for leaf in (image_ID, text_UD, scale):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0

"""Packed rows: each text is read exactly as if it stood alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import Letters, unpacked

from clipstem.packing import PADDING, ROUND_TOKENS, PackedTexts, may_look_RTT, pack
from clipstem.tokens import JoinedText, join


def joined(asked: list[tuple[str, list[str]]], context: int = 77) -> list[JoinedText]:
    """The distinct texts of questions with their options."""
    texts = [
        text for q, options in asked for text in join(q, options, Letters(context_length=context))
    ]
    return list({text.tokens: text for text in texts}.values())


def texts(min_size: int = 0) -> st.SearchStrategy[list[JoinedText]]:
    options = st.lists(st.text("ab", max_size=9), min_size=1, max_size=6)
    asked = st.lists(st.tuples(st.text("abc", max_size=9), options), min_size=min_size, max_size=8)
    return st.builds(joined, asked, st.integers(4, 24))


row_limits = st.integers(1, 40)


def end_places(packed: PackedTexts) -> list[tuple[int, int]]:
    return [divmod(int(end), packed.tokens_RT.shape[1]) for end in packed.end_U]


@given(texts(), row_limits)
def test_each_text_sees_its_own_tokens_at_their_own_positions(
    texts: list[JoinedText], row_tokens: int
) -> None:
    packed = pack(texts, row_tokens)
    look_RTT = may_look_RTT(packed)

    assert unpacked(packed) == [text.tokens for text in texts]
    for (row, end), text in zip(end_places(packed), texts, strict=True):
        seen = np.flatnonzero(look_RTT[row, end])
        assert packed.position_RT[row][seen].tolist() == list(range(len(text.tokens)))
        # Each of its tokens sees those before it and itself, and nothing else of the row.
        for count, token in enumerate(seen, start=1):
            assert np.flatnonzero(look_RTT[row, token]).tolist() == seen[:count].tolist()


@given(texts(), row_limits)
def test_own_parts_belong_to_one_text_alone(texts: list[JoinedText], row_tokens: int) -> None:
    packed = pack(texts, row_tokens)
    own = [
        {(row, token) for token in range(end + 1 - len(text.own), end + 1)}
        for (row, end), text in zip(end_places(packed), texts, strict=True)
    ]
    assert sum(map(len, own)) == len(set().union(*own)) == sum(len(text.own) for text in texts)


@given(texts(min_size=1), row_limits)
def test_rows_are_no_longer_than_allowed(texts: list[JoinedText], row_tokens: int) -> None:
    packed = pack(texts, row_tokens)
    limit = max([row_tokens, *(len(text.tokens) for text in texts)])
    assert ((packed.group_RT != PADDING).sum(axis=1) <= limit).all()
    assert packed.tokens_RT.shape[1] % ROUND_TOKENS == 0
    assert packed.tokens_RT.shape[1] < limit + ROUND_TOKENS


@given(texts(), row_limits)
def test_padding_sees_padding_only_and_is_never_blind(
    texts: list[JoinedText], row_tokens: int
) -> None:
    packed = pack(texts, row_tokens)
    look_RTT = may_look_RTT(packed)
    padding_RT = packed.group_RT == PADDING
    assert look_RTT.any(axis=2).all()
    assert not look_RTT[padding_RT[:, :, None] & ~padding_RT[:, None, :]].any()
    assert not look_RTT[~padding_RT[:, :, None] & padding_RT[:, None, :]].any()


@given(texts(), row_limits)
def test_numpy_and_torch_make_the_same_mask(texts: list[JoinedText], row_tokens: int) -> None:
    packed = pack(texts, row_tokens)
    tensors = PackedTexts(**{name: torch.from_numpy(a) for name, a in vars(packed).items()})
    assert np.array_equal(may_look_RTT(tensors).numpy(), may_look_RTT(packed))


def test_a_small_row_by_eye() -> None:
    packed = pack(joined([("ab", ["x", "yz"])]))
    assert packed.tokens_RT.tolist() == [[1, 97, 98, 120, 2, 121, 122, 2]]
    assert packed.position_RT.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert packed.part_RT.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert packed.group_RT.tolist() == [[0] * 8]
    assert packed.end_U.tolist() == [4, 7]


@pytest.mark.parametrize("row_tokens", [8, 10, 16, 24])
def test_a_group_longer_than_a_row_is_continued_with_its_shared_part(row_tokens: int) -> None:
    texts = joined([("abc", ["pq", "rs", "tu", "vw", "xy"])])  # 4 shared tokens, 3 own each
    packed = pack(texts, row_tokens)
    fitting = (row_tokens - 4) // 3
    assert (packed.position_RT[packed.group_RT != PADDING] == 0).sum() == -(-5 // fitting)
    assert unpacked(packed) == [text.tokens for text in texts]


def test_short_groups_stand_in_one_row() -> None:
    packed = pack(joined([("ab", ["x"]), ("cd", ["x"]), ("efghij", ["x"])]), row_tokens=16)
    assert packed.group_RT.tolist() == [[0] * 9 + [1] * 5 + [PADDING] * 2, [0] * 5 + [PADDING] * 11]


def test_the_row_length_with_the_least_padding_is_found() -> None:
    letters = "abcdefgh"
    groups = [(letter * 29, ["x", "y", "z"]) for letter in letters]  # 30 + 3 * 2 tokens each
    assert pack(joined(groups), row_tokens=128).tokens_RT.shape == (4, 72)  # not (3, 112)


def test_a_text_longer_than_a_row_gets_a_longer_row() -> None:
    packed = pack(joined([("a" * 30, ["b"]), ("c", ["d"])]), row_tokens=16)
    assert packed.tokens_RT.shape == (2, 40)


def test_shared_beginnings_cost_far_less_than_texts_alone() -> None:
    letters = "abcdefgh"
    asked = [(letter * 17, [f"{other * 4}" for other in letters[:4]]) for letter in letters]
    texts = joined(asked)
    alone = len(texts) * max(len(text.tokens) for text in texts)
    assert pack(texts).tokens_RT.size < alone / 2


def test_no_texts_are_no_rows() -> None:
    packed = pack([])
    assert packed.tokens_RT.shape == (0, 8)
    assert packed.end_U.tolist() == []
    assert may_look_RTT(packed).shape == (0, 8, 8)

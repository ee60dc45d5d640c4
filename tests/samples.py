"""A tokenizer, questions and pictures small enough to check by eye, shared by the tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipstem.packing import PackedTexts, may_look_RTT
from clipstem.question import UNKNOWN_ANSWER, Picture, Question
from clipstem.tokens import Layout, Tokens

START, END = 1, 2


@dataclass
class Letters:
    """A tokenizer with one token a letter."""

    before: Tokens = (START,)
    after: Tokens = (END,)
    padding: int = 0
    context_length: int = 77
    layout: Layout = Layout.PACKED

    def encode(self, text: str) -> Tokens:
        return tuple(map(ord, text))


def row(text: str) -> Tokens:
    """The whole row of a text that fits."""
    return START, *map(ord, text), END


def picture(number: int) -> Picture:
    """A picture of its own for each number below 256; only `pixels` can decode it."""
    return Picture.of(bytes([number]))


def pixels(shown: Picture) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), shown.data[0], np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def question(
    options: Sequence[str] | Sequence[Picture],
    shown: Picture | None = None,
    problem: str = "ask",
    answer: int = UNKNOWN_ANSWER,
    id: str = "q",
) -> Question:
    return Question(
        id=id,
        subject="science",
        grade="grade-1",
        skill="skill",
        problem=problem,
        picture=shown,
        options=tuple(options),  # type: ignore[arg-type]  # Question itself refuses mixed ones
        answer=answer,
    )


def questions() -> st.SearchStrategy[Question]:
    """Questions of the kinds that CLIP can score, with few texts and pictures: many repeat."""
    texts = st.text("abc", min_size=1, max_size=12)
    pictures = st.integers(0, 4).map(picture)
    with_texts = st.tuples(st.lists(texts, min_size=1, max_size=4), pictures)
    with_pictures = st.tuples(st.lists(pictures, min_size=1, max_size=4), st.none() | pictures)

    def answered(made: tuple[Any, str, int]) -> Question:
        (options, shown), problem, answer = made
        return question(options, shown, problem, min(answer, len(options) - 1))

    return st.tuples(with_texts | with_pictures, texts, st.integers(-1, 3)).map(answered)


def unpacked(packed: PackedTexts) -> list[Tokens]:
    """What each text's last token can see, in the row's order: the text itself."""
    row_tokens = packed.tokens_RT.shape[1]
    look_RTT = may_look_RTT(packed)
    return [
        tuple(packed.tokens_RT[row][look_RTT[row, place]].tolist())
        for row, place in (divmod(int(end), row_tokens) for end in packed.end_U)
    ]


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length: np.float64 = np.sqrt((vector**2).sum())
    return vector / length


def random_embedding(seed: int, width: int = 6) -> Callable[[Sequence[int]], NDArray[np.float64]]:
    """A function that gives each sequence of numbers a unit vector of its own."""
    return lambda key: unit(np.random.default_rng([seed, *key]).normal(size=width))

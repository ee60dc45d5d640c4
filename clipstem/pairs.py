"""Everything is pairs: one picture with one text for each option, whatever the kind of question.

Q questions, K most options in the batch, P pairs, I distinct pictures, U distinct texts,
V distinct queries (a text, or a text with the problem's picture), D the embeddings' width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from clipstem.packing import Array, PackedTexts, lay_out
from clipstem.question import ClipstemError, Kind, Picture, ProblemPicture, Question
from clipstem.tokens import JoinedText, Tokenizer, Tokens, join

EMPTY = -1  # a cell without a pair, a query without a picture, a place without a question
LOWEST_LOGIT = float(np.finfo(np.float32).min)  # logits are fp32: this dtype's own minimum

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pair:
    """One option as CLIP sees it: `picture` against the text `question` + `option`.

    `context` is the problem's picture when the options are pictures too.
    """

    picture: Picture
    question: str
    option: str = ""
    context: Picture | None = None


def render(question: Question, problem_picture: ProblemPicture) -> list[Pair]:
    """The pairs of a question, one for each option that is to be scored, in their order.

    This is the only branch on the kind of a question.

    Raises:
        ClipstemError: for a question without any picture, which CLIP cannot score.
    """
    problem, context = question.problem, question.picture
    options = question.options
    if question.kind is Kind.TEXT_ONLY:
        raise ClipstemError(f"question '{question.id}' has no picture: CLIP has no score for it")
    if context is None:
        return [Pair(option, problem) for option in options if isinstance(option, Picture)]
    if question.kind is Kind.TEXT_OPTIONS:
        return [Pair(context, problem, option) for option in options if isinstance(option, str)]
    if problem_picture is ProblemPicture.reference:
        # The public evaluation keeps one candidate here, the problem's own picture, and so always
        # answers 0. Kept to reproduce its figures.
        return [Pair(context, problem)]
    seen = context if problem_picture is ProblemPicture.added else None
    return [Pair(o, problem, context=seen) for o in options if isinstance(o, Picture)]


class BrokenQuestion(ClipstemError):
    """A question one of whose pictures does not decode.

    Attributes:
        place: of the question in its batch.
        reason: what is wrong with the picture.
    """

    def __init__(self, id: str, place: int, reason: str) -> None:
        super().__init__(f"question '{id}': a picture {reason}")
        self.place = place
        self.reason = reason


@dataclass(frozen=True)
class PairBatch:
    """Questions made ready for a model: NumPy arrays from `collate`, tensors on the device.

    Attributes:
        ids: the questions' ids; "" where a place of the batch holds no question.
        pixels_IHWC: uint8, each distinct picture once.
        pictures: their content hashes, in the same order.
        texts: each distinct text once, packed.
        joined: the same texts, one by one.
        queries: the text of each query, and its picture or `EMPTY`.
        text_of_V, picture_of_V: the same as arrays.
        cell_QK: int64 index of the option's cosine in the flattened [V, I] matrix; 0 where empty.
        filled_QK: fp32, 1 where there is an option to score, 0 where the cell is empty.
        answer_Q: int64, the right option or `UNKNOWN_ANSWER`.
        weight_Q: fp32, what the question counts in a loss; 0 for an empty place.
        truncated_Q: int64, the most tokens that an option's text lost.
        skipped: questions that were left out of the batch, and why; their places are empty.
        teacher_QK: fp32, probabilities to learn from, 0 in the whole row of a question that has
            none; None where nobody has any.
    """

    ids: tuple[str, ...]
    pixels_IHWC: Array
    pictures: tuple[str, ...]
    texts: PackedTexts
    joined: tuple[JoinedText, ...]
    queries: tuple[tuple[int, int], ...]
    text_of_V: Array
    picture_of_V: Array
    cell_QK: Array
    filled_QK: Array
    answer_Q: Array
    weight_Q: Array
    truncated_Q: Array
    skipped: tuple[tuple[str, str], ...] = ()
    teacher_QK: Array | None = None

    def map(self, change: Callable[[Array], Array]) -> PairBatch:
        """The same batch with every array changed, for example moved to a device."""
        arrays = {
            name: change(value)
            for name, value in vars(self).items()
            if name not in ("ids", "pictures", "texts", "joined", "queries", "skipped")
            and value is not None
        }
        return replace(self, texts=self.texts.map(change), **arrays)

    def pin_memory(self) -> PairBatch:
        """What torch's loader calls so that copies to the device need not wait."""
        return self.map(lambda array: array.pin_memory())


class Distinct(dict[Key, int]):
    """Numbers things in the order in which they are first met."""

    def number(self, key: Key) -> int:
        return self.setdefault(key, len(self))


def collate(
    questions: Sequence[Question | None],
    tokenizer: Tokenizer,
    decode: Callable[[Picture], np.ndarray],
    problem_picture: ProblemPicture = ProblemPicture.added,
) -> PairBatch:
    """Make a batch: distinct pictures decoded once, distinct texts packed once.

    `decode` gives a picture's uint8 pixels [H, W, C]; None in `questions` is an empty place.

    Raises:
        BrokenQuestion: if a picture does not decode.
        ClipstemError: naming the question that has none.
    """
    ids = tuple(question.id if question else "" for question in questions)
    pictures: Distinct[str] = Distinct()
    texts: Distinct[Tokens] = Distinct()
    queries: Distinct[tuple[int, int]] = Distinct()
    pixels: list[np.ndarray] = []
    joined: list[JoinedText] = []
    cells: list[list[tuple[int, int]]] = []
    truncated: list[int] = []

    def picture_number(picture: Picture, place: int) -> int:
        number = pictures.number(picture.sha256)
        if number == len(pixels):
            try:
                pixels.append(decode(picture))
            except ClipstemError as error:
                raise BrokenQuestion(ids[place], place, str(error)) from error
        return number

    def text_number(text: JoinedText) -> int:
        number = texts.number(text.tokens)
        if number == len(joined):
            joined.append(text)
        return number

    for place, question in enumerate(questions):
        pairs = render(question, problem_picture) if question else []
        own = join(pairs[0].question, [pair.option for pair in pairs], tokenizer) if pairs else []
        truncated.append(max((text.truncated for text in own), default=0))
        row = []
        for pair, text in zip(pairs, own, strict=True):
            context = EMPTY if pair.context is None else picture_number(pair.context, place)
            query = queries.number((text_number(text), context))
            row.append((query, picture_number(pair.picture, place)))
        cells.append(row)

    text_of_V, picture_of_V = np.array([*queries], np.int64).reshape(-1, 2).T
    cell_QK, filled_QK = _cells(questions, cells, pictures=len(pixels))
    return PairBatch(
        ids=ids,
        pixels_IHWC=np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8),
        pictures=tuple(pictures),
        texts=lay_out(joined, tokenizer),
        joined=tuple(joined),
        queries=tuple(queries),
        text_of_V=text_of_V,
        picture_of_V=picture_of_V,
        cell_QK=cell_QK,
        filled_QK=filled_QK,
        answer_Q=np.array([q.answer if q else EMPTY for q in questions], np.int64),
        weight_Q=np.array([float(q is not None) for q in questions], np.float32),
        truncated_Q=np.array(truncated, np.int64),
    )


def _cells(
    questions: Sequence[Question | None], cells: list[list[tuple[int, int]]], pictures: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each option's cosine stands in the flattened [V, I] matrix, and if there is one."""
    most = max((len(question.options) for question in questions if question), default=1)
    cell_QK = np.zeros((len(questions), most), np.int64)
    filled_QK = np.zeros((len(questions), most), np.float32)
    for place, row in enumerate(cells):
        filled_QK[place, : len(row)] = 1.0
        cell_QK[place, : len(row)] = [query * pictures + picture for query, picture in row]
    return cell_QK, filled_QK


def _rows(array: Array, index: Array) -> Array:
    # The backward of torch's fancy indexing varies from run to run on two threads, index_select's
    # does not.
    return array.index_select(0, index) if hasattr(array, "index_select") else array[index]


def cosines(batch: PairBatch, image_ID: Array, text_UD: Array) -> Array:
    """cos(query, picture) for every query and picture of the batch, [V, I]; NumPy or torch."""
    query_VD = queries(batch, image_ID, text_UD)
    if isinstance(image_ID, np.ndarray):
        # Not `@`: the threads of NumPy's BLAS go on spinning behind so small a product, on the
        # cores that ONNX Runtime then needs for the next batch (a fifth of `tiny_vit`'s time).
        return np.einsum("vd,id->vi", query_VD, image_ID)
    return query_VD @ image_ID.T


def queries(batch: PairBatch, image_ID: Array, text_UD: Array) -> Array:
    """What pictures are compared with, query_VD; NumPy or torch.

    `image_ID` and `text_UD` have unit length, and so have the queries: a text, or the sum of a
    text and the problem's picture brought back to unit length.
    """
    query_VD = _rows(text_UD, batch.text_of_V)
    if bool((batch.picture_of_V != EMPTY).any()):
        has_picture_V1 = (batch.picture_of_V != EMPTY)[:, None]
        picture_VD = _rows(image_ID, batch.picture_of_V.clip(0))
        query_VD = query_VD + has_picture_V1 * picture_VD
        norm_V1 = (query_VD * query_VD).sum(-1)[:, None] ** 0.5
        # Queries without a picture have unit length already: divide by exactly 1.
        query_VD = query_VD / (has_picture_V1 * norm_V1 + ~has_picture_V1)
    return query_VD


def score(batch: PairBatch, cosine_VI: Array, scale: Array | float) -> Array:
    """logits_QK = scale · cosine, fp32; an empty cell gets `LOWEST_LOGIT`. NumPy or torch."""
    logits_QK = scale * cosine_VI.take(batch.cell_QK)
    return logits_QK * batch.filled_QK + (1 - batch.filled_QK) * LOWEST_LOGIT

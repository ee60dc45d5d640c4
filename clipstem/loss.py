"""What fine-tuning minimises. Q questions, K most options, V queries, I pictures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clipstem import ranks
from clipstem.pairs import EMPTY, LOWEST_LOGIT, Distinct, PairBatch


def listwise(logits_QK: Tensor, answer_Q: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the right option among the question's own options, [Q], nats.

    With label smoothing ε a question with n options has the target 1 - ε + ε/n for the right one
    and ε/n for each other; the empty cells of shorter questions are no options. A question whose
    answer is unknown has loss 0.
    """
    right_Q = F.cross_entropy(logits_QK, answer_Q, ignore_index=-1, reduction="none")
    if not smoothing:
        return right_Q
    empty_QK = logits_QK <= LOWEST_LOGIT
    every_QK = -F.log_softmax(logits_QK, dim=1).masked_fill(empty_QK, 0.0)
    options_Q = (~empty_QK).sum(dim=1).clamp(min=1)
    even_Q = every_QK.sum(dim=1) / options_Q * (answer_Q >= 0)
    return (1 - smoothing) * right_Q + smoothing * even_Q


def distillation(logits_QK: Tensor, teacher_QK: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) over the question's own options, [Q], nats.

    `teacher_QK` are probabilities at the temperature T, the student's are softmax(logits / T). A
    question whose row is 0 everywhere has loss 0. Source: Hinton et al. (arXiv 1503.02531): with T²
    the gradient's size does not depend on T.
    """
    empty_QK = logits_QK <= LOWEST_LOGIT
    student_QK = F.log_softmax((logits_QK / temperature).masked_fill(empty_QK, LOWEST_LOGIT), dim=1)
    cross_QK = teacher_QK * student_QK.masked_fill(empty_QK, 0.0)
    return temperature**2 * (torch.xlogy(teacher_QK, teacher_QK) - cross_QK).sum(dim=1)


def share_of_teachers(batch: PairBatch, weight: float) -> Tensor:
    """What share of each question's loss is the teachers', [Q]: `weight` beside a label."""
    assert batch.teacher_QK is not None
    is_taught_Q = batch.teacher_QK.any(dim=1).float()
    return is_taught_Q * torch.where(batch.answer_Q < 0, 1.0, weight)


def with_teachers_choices(batch: PairBatch) -> tuple[PairBatch, Tensor]:
    """The batch with an answer wherever there is one, and how sure it is, [Q].

    A label is sure, 1. Where there is none, the teachers' most probable option stands for it, as
    sure as their probability.
    """
    assert batch.teacher_QK is not None
    sure_Q, choice_Q = batch.teacher_QK.max(dim=1)
    is_guessed_Q = (batch.answer_Q < 0) & (sure_Q > 0)
    answer_Q = torch.where(is_guessed_Q, choice_Q, batch.answer_Q)
    return replace(batch, answer_Q=answer_Q), torch.where(is_guessed_Q, sure_Q, 1.0)


@dataclass(frozen=True)
class RightPairs:
    """The query and the picture of each question's right answer, as numbers.

    Attributes:
        known_Q: False where the answer is unknown or has no pair: the numbers mean nothing then.
    """

    query_Q: Tensor
    picture_Q: Tensor
    known_Q: Tensor


def right_pairs(batch: PairBatch) -> RightPairs:
    """Those of a batch; an empty place has none."""
    answer_Q1 = batch.answer_Q.clamp(min=0)[:, None]
    has_pair_Q = batch.filled_QK.gather(1, answer_Q1)[:, 0] > 0
    right_Q = batch.cell_QK.gather(1, answer_Q1)[:, 0]
    return RightPairs(
        query_Q=right_Q // len(batch.pictures),
        picture_Q=right_Q % len(batch.pictures),
        known_Q=(batch.answer_Q >= 0) & (batch.weight_Q > 0) & has_pair_Q,
    )


def in_batch_contrast(logits_VI: Tensor, own: RightPairs, every: RightPairs) -> Tensor:
    """Each of `own` right pairs against all other queries and all other pictures, [Q], nats.

    The mean of two cross-entropies: picture to queries and query to pictures. What is known to be
    right as well is no negative: the same text or picture may be the right one of several
    questions, so of `every` right pair there is, all but the one asked about are left out of the
    sums. A question whose right pair is not known has loss 0.
    From scratch this is what makes a model learn: the options of one question begin almost
    identical in text space. Source: CLIP (arXiv 2103.00020) for the symmetric loss.
    """
    right_VI = torch.zeros_like(logits_VI, dtype=torch.bool)
    right_VI[every.query_Q[every.known_Q], every.picture_Q[every.known_Q]] = True
    to_queries_Q = _against_all(logits_VI.T, right_VI.T, own.picture_Q, own.query_Q)
    to_pictures_Q = _against_all(logits_VI, right_VI, own.query_Q, own.picture_Q)
    return (to_queries_Q + to_pictures_Q) / 2 * own.known_Q


def over_ranks(
    batch: PairBatch, image_ID: Tensor, query_VD: Tensor, own: RightPairs
) -> tuple[Tensor, RightPairs, RightPairs]:
    """The contrast's inputs over the whole batch, of which each rank has a part.

    Returns the cosines of every distinct query and picture of all ranks, with gradients for the
    ranks that have made them, this rank's right pairs, and every rank's: the same pairs as if one
    rank had the batch.
    """
    mine: tuple[Sequence[Hashable], Sequence[Hashable]] = (), ()
    texts = [batch.joined[text].tokens for text, _ in batch.queries]
    contexts = [None if place == EMPTY else batch.pictures[place] for _, place in batch.queries]
    if any(batch.ids):  # else what is here only fills a part, and is no negative
        mine = batch.pictures, tuple(zip(texts, contexts, strict=True))
    pictures, queries = zip(*ranks.gathered(mine), strict=True)
    if not any(pictures):
        return query_VD @ image_ID.T, own, own
    # ---- embeddings: every rank gives as many rows, its pictures first
    rows_ND = torch.cat([image_ID, query_VD])
    most = max(len(p) + len(q) for p, q in zip(pictures, queries, strict=True))
    all_MD = ranks.gathered_rows(F.pad(rows_ND, (0, 0, 0, most - len(rows_ND))))
    starts = [rank * most for rank in range(len(pictures))]
    image_rows, image_numbers = _distinct(pictures, starts)
    behind = [start + len(p) for start, p in zip(starts, pictures, strict=True)]
    query_rows, query_numbers = _distinct(queries, behind)

    def chosen(rows: list[int]) -> Tensor:
        return all_MD.index_select(0, torch.tensor(rows, device=all_MD.device))

    cosine_VI = chosen(query_rows) @ chosen(image_rows).T

    # ---- right pairs, in the numbers of the whole batch
    def renumbered(own_Q: Tensor, numbers: list[list[int]]) -> Tensor:
        new = numbers[ranks.rank()]
        return torch.tensor(new, device=own_Q.device)[own_Q] if new else torch.zeros_like(own_Q)

    query_Q = renumbered(own.query_Q, query_numbers)
    picture_Q = renumbered(own.picture_Q, image_numbers)
    every_M3 = ranks.gathered_rows(torch.stack([query_Q, picture_Q, own.known_Q.long()], dim=1))
    every_query, every_picture, every_known = every_M3.unbind(dim=1)
    return (
        cosine_VI,
        RightPairs(query_Q, picture_Q, own.known_Q),
        RightPairs(every_query, every_picture, every_known.bool()),
    )


def _distinct(
    keys_of_rank: Sequence[Sequence[Hashable]], starts: Sequence[int]
) -> tuple[list[int], list[list[int]]]:
    """The row of each distinct key, where it is first met, and the number of each rank's keys."""
    known: Distinct[Hashable] = Distinct()
    rows: list[int] = []
    numbers: list[list[int]] = []
    for keys, start in zip(keys_of_rank, starts, strict=True):
        numbers.append([known.number(key) for key in keys])
        for place, number in enumerate(numbers[-1]):
            if number == len(rows):
                rows.append(start + place)
    return rows, numbers


def _against_all(logits_NM: Tensor, right_NM: Tensor, row_Q: Tensor, column_Q: Tensor) -> Tensor:
    """Cross-entropy of column_Q in row_Q, without the row's other right columns."""
    logits_QM = logits_NM.index_select(0, row_Q)
    own_QM = F.one_hot(column_Q, logits_NM.shape[1]).bool()
    other_right_QM = right_NM.index_select(0, row_Q) & ~own_QM
    return F.cross_entropy(
        logits_QM.masked_fill(other_right_QM, LOWEST_LOGIT), column_Q, reduction="none"
    )

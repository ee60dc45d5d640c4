"""What fine-tuning minimises. Q questions, K most options, V queries, I pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipstem.pairs import LOWEST_LOGIT, PairBatch


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


def in_batch_contrast(logits_VI: Tensor, batch: PairBatch) -> Tensor:
    """Each right pair against all other queries and all other pictures of the batch, [Q], nats.

    The mean of two cross-entropies: picture to queries and query to pictures. What is known to be
    right as well is no negative: the same text or picture may be the right one of several
    questions, so every right pair of the batch but the one asked about is left out of the sums.
    A question whose right answer is unknown, or has no pair, has loss 0.
    From scratch this is what makes a model learn: the options of one question begin almost
    identical in text space. Source: CLIP (arXiv 2103.00020) for the symmetric loss.
    """
    pictures = logits_VI.shape[1]
    answer_Q1 = batch.answer_Q.clamp(min=0)[:, None]
    has_pair_Q = batch.filled_QK.gather(1, answer_Q1)[:, 0] > 0
    known_Q = (batch.answer_Q >= 0) & (batch.weight_Q > 0) & has_pair_Q
    right_Q = batch.cell_QK.gather(1, answer_Q1)[:, 0]
    query_Q, picture_Q = right_Q // pictures, right_Q % pictures
    right_VI = torch.zeros_like(logits_VI, dtype=torch.bool)
    right_VI[query_Q[known_Q], picture_Q[known_Q]] = True
    to_queries_Q = _against_all(logits_VI.T, right_VI.T, picture_Q, query_Q)
    to_pictures_Q = _against_all(logits_VI, right_VI, query_Q, picture_Q)
    return (to_queries_Q + to_pictures_Q) / 2 * known_Q


def _against_all(logits_NM: Tensor, right_NM: Tensor, row_Q: Tensor, column_Q: Tensor) -> Tensor:
    """Cross-entropy of column_Q in row_Q, without the row's other right columns."""
    logits_QM = logits_NM.index_select(0, row_Q)
    own_QM = F.one_hot(column_Q, logits_NM.shape[1]).bool()
    other_right_QM = right_NM.index_select(0, row_Q) & ~own_QM
    return F.cross_entropy(
        logits_QM.masked_fill(other_right_QM, LOWEST_LOGIT), column_Q, reduction="none"
    )

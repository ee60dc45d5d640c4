"""Which questions belong to which split, so that no picture is on both sides. NumPy only.

N questions, T tokens. A token is the hash of a picture, or of anything else that two questions may
have in common; `question_T` is the question that each token belongs to.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from clipstem.question import SPLITS

Ints = npt.NDArray[np.int64]


def components(question_T: Ints, token_T: Ints, questions: int) -> Ints:
    """For each question the lowest number of a question connected to it over tokens, int64 [N].

    Tokens are numbered from 0. Labels spread over tokens and are shortened by looking up the label
    of the label, so a chain of any length takes a few rounds.
    """
    label_N = np.arange(questions, dtype=np.int64)
    while len(token_T):
        least = np.full(int(token_T.max()) + 1, questions, np.int64)
        np.minimum.at(least, token_T, label_N[question_T])
        new_N = label_N.copy()
        # The label's own question learns of it too: that joins whole groups at a time.
        np.minimum.at(new_N, label_N[question_T], least[token_T])
        np.minimum.at(new_N, question_T, least[token_T])
        new_N = new_N[new_N]
        if (new_N == label_N).all():
            break
        label_N = new_N
    return label_N


def divide(component_N: Ints, shares: list[float], seed: int) -> Ints:
    """Give each whole component to one of the shares; returns the share's number, int64 [N].

    Components come in random order, each to the share that is then filled least, in proportion to
    its size; so a share that is too small for a component does not get it.
    """
    _, place_N, size_C = np.unique(component_N, return_inverse=True, return_counts=True)
    goals = [share * len(component_N) for share in shares]
    filled = [0] * len(shares)
    share_C = np.zeros(len(size_C), np.int64)
    sizes = size_C.tolist()
    for component in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        size = sizes[component]
        ratios = [(have + size) / goal for have, goal in zip(filled, goals, strict=True)]
        share = ratios.index(min(ratios))
        share_C[component] = share
        filled[share] += size
    return share_C[place_N]


def in_splits(token_T: Ints, split_T: Ints) -> npt.NDArray[np.bool_]:
    """Whether a token occurs in a split, bool [distinct tokens, splits]."""
    tokens = int(token_T.max()) + 1 if len(token_T) else 0
    there = np.zeros((tokens, len(SPLITS)), np.bool_)
    there[token_T, split_T] = True
    return there


def shared(there: npt.NDArray[np.bool_]) -> dict[str, int]:
    """How many tokens each two splits have in common, by "split/split", where there are any."""
    counts = {
        f"{a}/{b}": int((there[:, i] & there[:, j]).sum())
        for (i, a), (j, b) in combinations(enumerate(SPLITS), 2)
    }
    return {pair: count for pair, count in counts.items() if count}

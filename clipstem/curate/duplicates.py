"""Questions that are the same to a person: normalised texts equal, pictures nearly so.

Pictures are compared only where the texts around them are the same, as small copies, by a k-d tree:
never all pairs. N questions, P distinct pictures, U uses: a distinct picture among questions of one
text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from clipstem.curate.fingerprints import NO_PICTURE, SIDE, Fingerprints, Ints

# Between what copies differ by (in other formats, up to a tenth larger or smaller: at most 64
# levels in a fine cell, 16.2 in a coarse one, 2 in the median, 11.2 in the root mean square) and
# what drawn questions of a skill do (a bar moved or in another shade: 12.9 and more in the root
# mean square, whatever a single cell); on the drawn bank with other seeds than it is measured with.
COARSE = 8  # cells a side that the tree knows; each is the mean of SIDE / COARSE squared
COARSE_LEVELS = 17.0  # most difference of a coarse cell in any channel, of 256 levels
FINE_LEVELS = 66  # most difference of a fine cell in any channel
MEDIAN_LEVELS = 2.0  # most median difference of the fine cells in any channel: another paper
ASPECT = 0.04  # most relative difference of width by height
RMS_LEVELS = 12.0  # most root mean square of the fine cells in any channel: copies differ at edges
POINTS_AT_ONCE = 256  # whose neighbours are held in memory together
PAIRS_AT_ONCE = 4096  # compared together: 25 MB of small copies


@dataclass(frozen=True)
class Duplicates:
    """Which questions are the same.

    Attributes:
        group_N: number of the question's group; questions that are the same have the same.
        said_N: what the answer says: equal within a group where the same option is right, −1
            where the answer is not known.
    """

    group_N: Ints
    said_N: Ints

    def groups(self, among_N: NDArray[np.bool_]) -> Iterator[Ints]:
        """Numbers of the questions of each group that has two or more of these."""
        numbers = np.flatnonzero(among_N)
        order = numbers[np.argsort(self.group_N[numbers], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.group_N[order])) + 1
        for group in np.split(order, cuts):
            if len(group) > 1:
                yield group


def find(questions: Fingerprints) -> Duplicates:
    """Group the questions of all splits.

    Two questions are the same when their kind, their normalised problem and options (in any order)
    are equal, and each picture of one is nearly the same as one of the other's in the same place:
    the problem's, or among the options.
    """
    class_N, class_O = picture_classes(questions)
    start_N, answer_N = questions.start_N, questions.answer_N
    numbers: dict[bytes, int] = {}
    group_N = np.zeros(len(questions), np.int64)
    for number in range(len(questions)):
        options = np.sort(class_O[start_N[number] : start_N[number + 1]])
        whole = [questions.text_N[number], class_N[number], *options]
        digest = hashlib.blake2b(np.array(whole, np.int64).tobytes(), digest_size=16).digest()
        group_N[number] = numbers.setdefault(digest, len(numbers))
    # A test split has no answers, and its last question no option behind it.
    place_N = np.where(answer_N >= 0, start_N[:-1] + answer_N, 0)
    said_N = np.where(answer_N >= 0, _said(class_O, questions.option_O)[place_N], -1)
    return Duplicates(group_N, said_N)


def _said(class_O: Ints, option_O: Ints) -> Ints:
    """A number from 0 for each option: of its class of pictures, or of its text."""
    return np.unique(class_O, return_inverse=True)[1] if len(option_O) else class_O


def picture_classes(questions: Fingerprints) -> tuple[Ints, Ints]:
    """Classes of nearly equal pictures, of the problems [N] and of the options [O].

    Only pictures of questions with the same texts are compared, so that a class is a number among
    these. Without a picture it is `NO_PICTURE`; of a text option it is the text's own number.
    """
    text_O = np.repeat(questions.text_N, questions.num_options_N)
    has_N = questions.picture_N != NO_PICTURE
    has_O = questions.option_O >= 0
    use_T2 = np.stack(
        [
            np.concatenate([questions.text_N[has_N], text_O[has_O]]),
            np.concatenate([questions.picture_N[has_N], questions.option_O[has_O]]),
        ],
        axis=1,
    )
    use_U2, use_T = np.unique(use_T2, axis=0, return_inverse=True)
    class_U = _classes_of_uses(questions, use_U2)
    class_N, class_O = questions.picture_N.copy(), questions.option_O.copy()
    of_problems, of_options = np.split(class_U[use_T.ravel()], [int(has_N.sum())])
    class_N[has_N], class_O[has_O] = of_problems, of_options
    return class_N, class_O


def _classes_of_uses(questions: Fingerprints, use_U2: Ints) -> Ints:
    """For each use the lowest number of a use that it is connected to over nearly equal ones."""
    cuts = np.flatnonzero(np.diff(use_U2[:, 0])) + 1
    firsts = np.concatenate([[0], cuts, [len(use_U2)]]).tolist()
    joined = []
    for first, stop in pairwise(firsts):
        if stop - first > 1:
            joined += [pairs + first for pairs in near_pairs(questions, use_U2[first:stop, 1])]
    pair_M2 = np.concatenate(joined) if joined else np.zeros((0, 2), np.int64)
    graph = coo_array(
        (np.ones(len(pair_M2), np.bool_), (pair_M2[:, 0], pair_M2[:, 1])),
        shape=(len(use_U2), len(use_U2)),
    )
    label_U = connected_components(graph, directed=False)[1]
    first_C = np.unique(label_U, return_index=True)[1]
    return np.asarray(first_C[label_U], np.int64)


def near_pairs(questions: Fingerprints, picture_U: Ints) -> Iterator[Ints]:
    """Pairs of places in `picture_U` whose pictures are nearly equal, [M, 2] at a time."""
    coarse_UD = np.concatenate(
        [
            _coarse(questions.small_PHWC[picture_U[at : at + PAIRS_AT_ONCE]])
            for at in range(0, len(picture_U), PAIRS_AT_ONCE)
        ]
    )
    tree = cKDTree(coarse_UD)
    for at in range(0, len(picture_U), POINTS_AT_ONCE):
        here = cKDTree(coarse_UD[at : at + POINTS_AT_ONCE])
        found = here.sparse_distance_matrix(tree, COARSE_LEVELS, p=np.inf, output_type="ndarray")
        pair_M2 = np.stack([found["i"] + at, found["j"]], axis=1).astype(np.int64)
        pair_M2 = pair_M2[pair_M2[:, 0] < pair_M2[:, 1]]
        for start in range(0, len(pair_M2), PAIRS_AT_ONCE):
            part_M2 = pair_M2[start : start + PAIRS_AT_ONCE]
            is_near_M = nearly_equal(questions, *picture_U[part_M2].T)
            if is_near_M.any():
                yield part_M2[is_near_M]


def _coarse(small_PHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means of the small copies' cells, [P, COARSE · COARSE · 3]."""
    step = SIDE // COARSE
    cell_PHhWwC = small_PHWC.reshape(-1, COARSE, step, COARSE, step, 3)
    return cell_PHhWwC.mean(axis=(2, 4), dtype=np.float32).reshape(len(small_PHWC), -1)


def nearly_equal(questions: Fingerprints, a_M: Ints, b_M: Ints) -> NDArray[np.bool_]:
    """Whether pictures are the same but for their encoding and a little scaling, bool [M]."""
    a_MHWC = questions.small_PHWC[a_M].astype(np.int16)
    difference_MHWC = a_MHWC - questions.small_PHWC[b_M]
    size_M2, other_M2 = questions.size_P2[a_M], questions.size_P2[b_M]
    aspect_M = (size_M2[:, 0] * other_M2[:, 1]) / np.maximum(size_M2[:, 1] * other_M2[:, 0], 1)
    near_M: NDArray[np.bool_] = np.abs(np.log(np.maximum(aspect_M, 1e-9))) <= ASPECT
    near_M &= np.abs(difference_MHWC).max(axis=(1, 2, 3)) <= FINE_LEVELS
    # These cost most, and few pairs are left.
    few_MHWC = difference_MHWC[near_M]
    square_MC = np.square(few_MHWC, dtype=np.float32).mean(axis=(1, 2))
    median_MC = np.median(few_MHWC.reshape(len(few_MHWC), SIDE * SIDE, 3), axis=1)
    near_M[near_M] = (np.abs(median_MC).max(axis=1) <= MEDIAN_LEVELS) & (
        square_MC.max(axis=1) <= RMS_LEVELS**2
    )
    return near_M

"""Which labels are likely wrong, by confident learning, and how hard questions are.

Confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels") has classes that every example may be of, and a threshold for each: the mean
probability that examples labelled so are given for it. Options are no classes: the first option of
one question has nothing to do with that of another, and questions have different numbers of them.
But options of a skill are exchangeable, so they share one threshold, the mean probability of the
skill's right options. With equal numbers of options that is the library cleanlab on all rotations
of the options, which the tests compare it with.

N questions, K most options. All probabilities must be of models that have not seen the question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipstem.curate.fingerprints import Floats, Ints
from clipstem.report.curate import Skill

FEW = 20  # answered questions of a skill from which it has a threshold of its own
BLIND = 1 / 3  # of the way from chance to 1 that the agreement must go for a skill to be judged


@dataclass(frozen=True)
class Labels:
    """What predictions say of each label.

    Attributes:
        confidence_N: probability of the labelled option ("self-confidence"); NaN where unknown.
        margin_N: that minus the largest of the others ("normalized margin"), −1 to 1; NaN likewise.
            The lowest are the most suspicious.
        other_N: where the label is suspected, the most probable of the other options; −1 elsewhere.
        skills: by name.
    """

    confidence_N: Floats
    margin_N: Floats
    other_N: Ints
    skills: tuple[Skill, ...]


def judge(
    probs_NK: Floats,
    answer_N: Ints,
    num_options_N: Ints,
    skill_N: NDArray[np.object_],
    answered_N: NDArray[np.bool_],
) -> Labels:
    """Suspect labels, skill by skill.

    Of the options that reach the skill's threshold, the most probable is taken for the right one:
    how often it is the labelled one and how often another is the confident joint. Its share of
    others, of all of a skill's questions, is how many labels are wrong. Suspected are those that
    are among as many both with the least confidence and with the lowest margin (cleanlab's
    `filter_by="both"`). Skills with fewer than `FEW` questions share a threshold. Where predictions
    agree with labels not much more often than guesses do, models know too little: nothing is
    suspected, and the skill is named as not judged.
    """
    known_N = answered_N & (answer_N >= 0)
    row_N = np.arange(len(answer_N))
    confidence_N = np.where(known_N, probs_NK[row_N, np.maximum(answer_N, 0)], np.nan)
    others_NK = np.where(np.arange(probs_NK.shape[1]) < num_options_N[:, None], probs_NK, -1.0)
    others_NK[row_N[known_N], answer_N[known_N]] = -1.0
    best_N = others_NK.argmax(axis=1)
    largest_N = np.maximum(others_NK[row_N, best_N], 0.0)  # 0 where there is no other option
    margin_N = confidence_N - largest_N
    threshold_all = float(confidence_N[known_N].mean()) if known_N.any() else 1.0
    other_N = np.full(len(answer_N), -1, np.int64)
    skills = []
    names, number_N = np.unique(skill_N.astype(str), return_inverse=True)
    order = np.argsort(number_N, kind="stable")
    cuts = np.cumsum(np.bincount(number_N, minlength=len(names)))[:-1]
    for name, places in zip(names.tolist(), np.split(order, cuts), strict=True):
        here = places[known_N[places]]
        if not len(here):
            continue
        agreement = float((margin_N[here] > 0).mean())
        chance = float((1 / num_options_N[here]).mean())
        threshold = float(confidence_N[here].mean()) if len(here) >= FEW else threshold_all
        is_judged = agreement >= chance + BLIND * (1 - chance) and chance < 1
        suspected = here[_suspected(confidence_N[here], largest_N[here], threshold)]
        if is_judged:
            other_N[suspected] = best_N[suspected]
        found = len(suspected) if is_judged else 0
        skills.append(Skill(name, len(here), agreement, chance, threshold, found, is_judged))
    return Labels(confidence_N, margin_N, other_N, tuple(skills))


def _suspected(confidence_N: Floats, largest_N: Floats, threshold: float) -> NDArray[np.bool_]:
    margin_N = confidence_N - largest_N
    right = int(((confidence_N >= threshold) & (margin_N >= 0)).sum())
    other = int(((largest_N >= threshold) & (margin_N < 0)).sum())
    wrong = round(len(margin_N) * other / max(right + other, 1))
    both_N = margin_N < 0
    for score_N in (confidence_N, margin_N):
        both_N &= score_N.argsort(kind="stable").argsort() < wrong
    return both_N


def easiest_first(confidence_N: Floats, spread_N: Floats, suspected_N: NDArray[np.bool_]) -> Ints:
    """Each question's place in an order from easy to hard, from 0; −1 without a prediction.

    The more probable the labelled option the easier; of equals, the steadier (Swayamdipta et al.
    2020, "Dataset Cartography"). Suspected labels stand last: what is wrong looks hard.
    """
    known = np.flatnonzero(~np.isnan(confidence_N))
    keys = (spread_N[known], -confidence_N[known], suspected_N[known])
    place_N = np.full(len(confidence_N), -1, np.int64)
    place_N[known[np.lexsort(keys)]] = np.arange(len(known))
    return place_N

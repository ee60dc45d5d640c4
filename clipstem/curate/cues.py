"""Options that give the answer away: rules that find the right one without the question's content.

A cue points at one option of a question, or at none. It is told from chance skill by skill: how
often is the option right, of the questions where the cue points at one? Two cues must first be
learnt, which option's content or place is right most often; that is learnt on one half of the
questions and tried on the other, so that nothing is judged by what it was chosen on.

N questions, O options of all of them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from clipstem.curate.fingerprints import Fingerprints, Floats, Ints
from clipstem.report.curate import Cue
from clipstem.statistics import holm

NOWHERE = -1  # where a cue points that says nothing of a question
FEW = 10  # questions of a skill that a cue must point at an option in
P = 0.01  # largest adjusted p-value of a cue that is named
GAIN = 0.25  # of the way from chance to 1 that a named cue's share of right options must go


@dataclass(frozen=True)
class Cues:
    """Named cues, and which of them points at the right option of each question.

    Attributes:
        named: the most reliable first.
        found_by_N: number of the first of these, or `NOWHERE`.
        tried: how many pairs of skill and cue were tested.
    """

    named: tuple[Cue, ...]
    found_by_N: Ints
    tried: int


def find(questions: Fingerprints, among_N: NDArray[np.bool_], seed: int) -> Cues:
    """Try every cue on every skill, over those of the questions whose answer is known.

    The number of right options is compared with the binomial distribution of the mean chance; where
    questions have different numbers of options, that is the more careful side (Hoeffding 1956, "On
    the distribution of the number of successes in independent trials").
    """
    known_N = among_N & (questions.answer_N >= 0) & (questions.num_options_N > 1)
    half_N = np.random.default_rng(seed).integers(2, size=len(questions)).astype(np.bool_)
    skills, skill_N = np.unique(questions.skill_N.astype(str), return_inverse=True)
    tests: list[tuple[int, str, int, int, float]] = []
    pointed: dict[str, Ints] = {}
    chance_N = 1 / np.maximum(questions.num_options_N, 1)
    for name, point in CUES.items():
        place_N = np.where(known_N, point(questions, skill_N, known_N, half_N), NOWHERE)
        pointed[name] = place_N
        here_N = place_N != NOWHERE
        right_N = here_N & (place_N == questions.answer_N)
        count_S = np.bincount(skill_N[here_N], minlength=len(skills))
        right_S = np.bincount(skill_N[right_N], minlength=len(skills))
        chance_S = np.bincount(skill_N[here_N], chance_N[here_N], len(skills))
        tests += [
            (
                skill,
                name,
                int(count_S[skill]),
                int(right_S[skill]),
                chance_S[skill] / count_S[skill],
            )
            for skill in np.flatnonzero(count_S >= FEW).tolist()
        ]
    p_T = holm(np.array([_chance_of(right, count, chance) for *_, count, right, chance in tests]))
    found = []
    for (skill, name, count, right, chance), p in zip(tests, p_T.tolist(), strict=True):
        if p < P and right / count >= chance + GAIN * (1 - chance):
            found.append(Cue(str(skills[skill]), name, count, right, chance, p))
    found.sort(key=lambda cue: (-cue.right / cue.questions, cue.skill, cue.name))
    number_of = {str(skill): number for number, skill in enumerate(skills)}
    found_by_N = np.full(len(questions), NOWHERE, np.int64)
    for number, cue in enumerate(found):
        right_N = (pointed[cue.name] == questions.answer_N) & known_N
        hit_N = right_N & (skill_N == number_of[cue.skill]) & (found_by_N == NOWHERE)
        found_by_N[hit_N] = number
    return Cues(tuple(found), found_by_N, len(tests))


def _chance_of(right: int, count: int, chance: float) -> float:
    """How likely so many or more are right by chance."""
    return float(bdtrc(right - 1, count, chance)) if right else 1.0


# ---------------------------------------------------------------------------- where cues point

Point = Callable[[Fingerprints, Ints, NDArray[np.bool_], NDArray[np.bool_]], Ints]


def _only(questions: Fingerprints, flag_O: NDArray[np.bool_]) -> Ints:
    """The one option of each question that has the flag; `NOWHERE` if none or several have it."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    count_N = np.bincount(question_O, flag_O, len(questions))
    place_O = np.arange(len(question_O)) - questions.start_N[question_O]
    place_N = np.bincount(question_O, place_O * flag_O, len(questions)).astype(np.int64)
    return np.where(count_N == 1, place_N, NOWHERE)


def _extreme(questions: Fingerprints, value_O: Floats) -> Ints:
    """The option with the largest value, if it is the only one; NaN is never the largest."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    largest_N = np.full(len(questions), -np.inf)
    np.fmax.at(largest_N, question_O, value_O)
    return _only(questions, value_O == largest_N[question_O])


def _lengths(questions: Fingerprints) -> Floats:
    return np.where(questions.option_O < 0, questions.length_O, np.nan)


def _bytes(questions: Fingerprints) -> Floats:
    return _of_pictures(questions, questions.bytes_P)


def _of_pictures(questions: Fingerprints, value_P: Ints) -> Floats:
    """A value of each option's picture; NaN of texts."""
    is_picture_O = questions.option_O >= 0
    value_O = np.full(len(questions.option_O), np.nan)
    value_O[is_picture_O] = value_P[questions.option_O[is_picture_O]]
    return value_O


def _longest(questions: Fingerprints, *_: object) -> Ints:
    return _extreme(questions, _lengths(questions))


def _shortest(questions: Fingerprints, *_: object) -> Ints:
    return _extreme(questions, -_lengths(questions))


def _largest_file(questions: Fingerprints, *_: object) -> Ints:
    return _extreme(questions, _bytes(questions))


def _smallest_file(questions: Fingerprints, *_: object) -> Ints:
    return _extreme(questions, -_bytes(questions))


def _only_size(questions: Fingerprints, *_: object) -> Ints:
    """The only picture whose width and height no other option has."""
    side = int(questions.size_P2.max(initial=0)) + 1
    return _odd_one_out(
        questions, _of_pictures(questions, questions.size_P2[:, 0] * side + questions.size_P2[:, 1])
    )


def _odd_one_out(questions: Fingerprints, value_O: Floats) -> Ints:
    """The only option with a value of its own, where all the others of three or more are alike."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    low_N, high_N = np.full(len(questions), np.inf), np.full(len(questions), -np.inf)
    np.fmin.at(low_N, question_O, value_O)  # a NaN is equal to no end: then nothing is odd
    np.fmax.at(high_N, question_O, value_O)
    at_low_O, at_high_O = value_O == low_N[question_O], value_O == high_N[question_O]
    others_N = questions.num_options_N - 1
    lows_N = np.bincount(question_O, at_low_O, len(questions))
    highs_N = np.bincount(question_O, at_high_O, len(questions))
    enough_N = (questions.num_options_N > 2) & (low_N < high_N)
    is_low_N = enough_N & (lows_N == 1) & (highs_N == others_N)
    is_high_N = enough_N & (highs_N == 1) & (lows_N == others_N)
    odd_O = np.where(is_low_N[question_O], at_low_O, at_high_O & is_high_N[question_O])
    return _only(questions, odd_O)


def _middle_number(questions: Fingerprints, *_: object) -> Ints:
    """The middle one of three, five … different numbers."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    order = np.lexsort((questions.number_O, question_O))
    rank_O = np.empty(len(order), np.int64)
    rank_O[order] = np.arange(len(order)) - questions.start_N[question_O[order]]
    is_middle_O = 2 * rank_O + 1 == questions.num_options_N[question_O]
    numbers_N = np.bincount(question_O, ~np.isnan(questions.number_O), len(questions))
    all_N = (numbers_N == questions.num_options_N) & (questions.num_options_N > 2)
    return _only(questions, is_middle_O & all_N[question_O])


def _named(questions: Fingerprints, *_: object) -> Ints:
    return _only(questions, questions.named_O)


def _popular(
    questions: Fingerprints,
    skill_N: Ints,
    known_N: NDArray[np.bool_],
    half_N: NDArray[np.bool_],
) -> Ints:
    """The option whose text or picture is right most often where it is offered."""
    return _learnt(questions, skill_N, known_N, half_N, questions.option_O)


def _position(
    questions: Fingerprints,
    skill_N: Ints,
    known_N: NDArray[np.bool_],
    half_N: NDArray[np.bool_],
) -> Ints:
    """The place among the options that is right most often."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    place_O = np.arange(len(question_O)) - questions.start_N[question_O]
    return _learnt(questions, skill_N, known_N, half_N, place_O)


def _learnt(
    questions: Fingerprints,
    skill_N: Ints,
    known_N: NDArray[np.bool_],
    half_N: NDArray[np.bool_],
    content_O: Ints,
) -> Ints:
    """The option whose content is right most often in the skill, in the other half's questions."""
    question_O = np.repeat(np.arange(len(questions)), questions.num_options_N)
    skill_O = skill_N[question_O]
    _, content_O = np.unique(content_O, return_inverse=True)
    kinds = int(content_O.max(initial=0)) + 1
    _, cell_O = np.unique(skill_O * kinds + content_O, return_inverse=True)
    place_O = np.arange(len(question_O)) - questions.start_N[question_O]
    is_right_O = (place_O == questions.answer_N[question_O]) & known_N[question_O]
    share_O = np.full(len(question_O), np.nan)
    for half in (False, True):
        there_O = known_N[question_O] & (half_N[question_O] == half)
        offered_C = np.bincount(cell_O[there_O], minlength=int(cell_O.max(initial=-1)) + 1)
        right_C = np.bincount(cell_O[there_O & is_right_O], minlength=len(offered_C))
        share_C = np.where(offered_C > 1, right_C / np.maximum(offered_C, 1), np.nan)
        here_O = half_N[question_O] != half
        share_O[here_O] = share_C[cell_O[here_O]]
    return _extreme(questions, share_O)


CUES: dict[str, Point] = {
    "the only option that stands in the question": _named,
    "the longest text": _longest,
    "the shortest text": _shortest,
    "the middle number": _middle_number,
    "the largest picture file": _largest_file,
    "the smallest picture file": _smallest_file,
    "the only picture of another size": _only_size,
    "what is right most often": _popular,
    "the place that is right most often": _position,
}
"""By what a person would say: the right option is …"""

"""Which option an answer in words means, and what that says of each option's probability.

In this order; the first that finds exactly one option decides:

1. *letter*: the answer is a letter and nothing else; it says "the answer is B", "Answer: (B)",
   "B is correct" … (the last such statement, as whoever thinks aloud ends with it); one of its
   lines is a letter; it begins with "B." or "B)"; or it chooses "option B", or has one letter in
   brackets or bold type.
2. *text*: the answer is an option's text, or has the text of one option and of no other; then the
   same for its last line.
3. *letter* again: a single capital letter of an option stands in it, and no word denies it.
4. *near*: the answer is short and nearly an option's text, by edits.

An answer that none of these understands is not counted as any option: see `probabilities`.
"""

from __future__ import annotations

import difflib
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from clipstem.ask.answers import Reply
from clipstem.ask.prompts import LETTERS

LEAST_LIKENESS = 0.8  # of a near text: twice the letters in common over all letters of both
MARGIN = 0.05  # by which the nearest option must be nearer than the second
LONGEST_NEAR = 200  # characters; a longer answer is no misspelt option
PREFERENCE = 1e-6  # of the option that is guessed among equal ones


class Way(StrEnum):
    """How an answer was understood."""

    LETTER = "letter"
    TEXT = "text"
    NEAR = "near"
    UNPARSED = "unparsed"


@dataclass(frozen=True)
class Parsed:
    """The option that an answer means, and how it says so.

    Attributes:
        option: 0-based; None for an answer that was not understood.
        place: where in the answer the letter stands; None unless it is one.
    """

    option: int | None
    way: Way
    place: int | None = None


UNPARSED = Parsed(None, Way.UNPARSED)


def parse(text: str, options: Sequence[str]) -> Parsed:
    """The option that an answer means; `options` are their texts, empty for pictures."""
    said = _without_thoughts(text)
    letters = LETTERS[: len(options)]
    place = _stated_letter(said, letters, options)
    if place is not None:
        return Parsed(letters.index(said[place].upper()), Way.LETTER, place)
    names = [_plain(option) for option in options]
    for part in (said, _conclusion(said)):
        if (option := _named(_plain(part), names)) is not None:
            return Parsed(option, Way.TEXT)
    place = _only_letter(said, letters)
    if place is not None:
        return Parsed(letters.index(said[place]), Way.LETTER, place)
    if (option := _nearest(_plain(said), names)) is not None:
        return Parsed(option, Way.NEAR)
    return UNPARSED


def _without_thoughts(text: str) -> str:
    """The answer with blanks, of the same length, where a model only thinks aloud.

    Thoughts that have no end were cut off, and no answer follows them.
    """
    end = text.rfind("</think>")
    end = 0 if end < 0 else end + len("</think>")
    said = " " * end + text[end:]
    cut = said.find("<think>")
    return said if cut < 0 else said[:cut] + " " * (len(said) - cut)


def _conclusion(text: str) -> str:
    """The last line, unless it is one of a list of options."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return "" if _BEGINS.match(last.strip()) else last


# ---------------------------------------------------------------------------- letters

_OPEN, _CLOSE = r"[\s(\[{*_`'\"$\\]*", r"[\s)\]}*_`'\".:,;!$]*"
_BOX = r"(?:\\(?:boxed|text|mathrm|textbf)\{)*"
_END = r"(?![\w'’+°^-])"
_OR = r"(?!\W{0,3}(?:or|and|[/,&])\W{0,3}[%s]\b)"  # "A or B" states neither
_LINK = (
    r"(?:[ \t*_]*(?:is|are|would be|will be|must be|should be|[:=]|-|→)){0,2}"
    r"(?:[ \t]*(?:the )?(?:option|choice|letter))?[:\s]*[(\[{*_`'\"$\\]*"
)
_ANSWER_IS = re.compile(
    r"\b(?:answer|correct(?: one| option| choice)?)\b" + _LINK + _BOX + "(?P<letter>[A-Z])" + _END,
    re.I,
)
_IS_ANSWER = re.compile(
    r"(?<!\w)(?<!nor )(?<!not )(?P<letter>[A-Z])[)\]*_'\"]{0,3}[ \t]+(?:is|would be)[ \t]+"
    r"(?:the[ \t]+)?(?:correct|right|best|answer)\b"
)
_CHOSEN = re.compile(
    r"\b(?:option|choice|choose|chose|pick|select|go with)\b" + _LINK + "(?P<letter>[A-Z])" + _END
)
_MARKED = re.compile(r"\((?P<a>[A-Z])\)|\[(?P<b>[A-Z])\]|\*\*\(?(?P<c>[A-Z])[.):]?\)?\*\*")
_BEGINS = re.compile(
    r"[(\[*_`'\"]*(?P<letter>[A-Z])(?:[*_`'\"]*[.):\]]|[ \t]+[-–—:][ \t]|[*_`]+)(?!\w)"
)
_WORD_NEXT = re.compile(r"[ \t]+(?!or\b|and\b)[a-z]")
_ALONE = re.compile(rf"{_OPEN}{_BOX}(?P<letter>[A-Za-z]){_CLOSE}")
_DENIES = re.compile(
    r"\b(?:not|no|none|neither|nor|never|cannot|wrong|incorrect|except|unless|\w+n't)\b", re.I
)


def _stated_letter(said: str, letters: str, options: Sequence[str]) -> int | None:
    """Where the letter stands that the answer states clearly; None if it states none, or two."""
    lines = list(re.finditer(r"\S[^\n]*", said))
    if not lines:
        return None
    stated = _letters_of((_ANSWER_IS, _IS_ANSWER), said, letters, options)
    alone = [
        line.start() + found.start("letter")
        for line in lines
        if (found := _ALONE.fullmatch(line[0])) and found["letter"].upper() in letters
    ]
    if stated and not (alone and len(lines) == 1):
        return max(stated)
    if alone:
        return alone[-1] if _is_one(said, alone) else None
    begins = [found for line in lines if (found := _BEGINS.match(said, line.start(), line.end()))]
    if begins and begins[0].start() == lines[0].start():
        places = [it.start("letter") for it in begins if it["letter"] in letters]
    elif _DENIES.search(said):
        return None
    else:
        places = _letters_of((_CHOSEN,), said, letters, options)
        places = places or _letters_of((_MARKED,), said, letters, options)
    return places[0] if _is_one(said, places) else None


def _is_one(said: str, places: Sequence[int]) -> bool:
    """Whether the same letter stands at all places."""
    return len({said[place].upper() for place in places}) == 1


def _letters_of(
    patterns: Sequence[re.Pattern[str]], said: str, letters: str, options: Sequence[str]
) -> list[int]:
    """Where patterns find the letters of options."""
    places = [it.start(it.lastgroup or 0) for one in patterns for it in one.finditer(said)]
    return [place for place in places if _is_letter(said, place, letters, options)]


def _is_letter(said: str, place: int, letters: str, options: Sequence[str]) -> bool:
    """Whether the letter at a place is an option's, and not one of several, nor a word."""
    letter, rest = said[place], said[place + 1 : place + 2 * LONGEST_NEAR]
    if letter.upper() not in letters or re.match(_OR % letters, rest) is None:
        return False
    if letter not in letters:  # "answer: b", but not "the answer is a circle"
        return re.match(r"\W*$|[)\]}]", rest) is not None
    if letter != "A" or not re.match(r"[ \t]+\w", rest):
        return True
    begins = _plain(rest)
    return not any(name and begins.startswith(name) for name in map(_plain, options))


def _only_letter(said: str, letters: str) -> int | None:
    """Where the one letter stands that an answer has as a word; not the words "A" and "I"."""
    found = [
        it.start()
        for it in re.finditer(rf"(?<![\w'’-])[{letters}](?![\w'’+°^-])", said)
        if not (it[0] in "AI" and _WORD_NEXT.match(said, it.end()))
    ]
    if len({said[place] for place in found}) != 1 or _DENIES.search(said):
        return None
    return found[-1]


# ---------------------------------------------------------------------------- texts


def _plain(text: str) -> str:
    """A text without case, marks around words, or an article in front; numbers in one spelling."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = text.replace("’", "'")
    text = re.sub(r"[−–](?=\.?\d)", "-", text)  # a minus sign, or what is typed for one
    text = re.sub(r"(?<![\w.,])\.(?=\d)", "0.", text)
    text = re.sub(r"[*_`\"“”()\[\]{}$\\]|(?<!\w)'|'(?!\w)", " ", text)
    text = re.sub(r"[.,;:!?]+(?=\s|$)", " ", text)
    words = text.split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _named(said: str, names: Sequence[str]) -> int | None:
    """The one option whose text the answer is, or has in it as whole words."""
    same = [number for number, name in enumerate(names) if name and name == said]
    if same:
        return same[0] if len(same) == 1 else None
    rest, found = said, []
    # Longer ones first, and what they cover is taken out: "dark red" does not name "red" too.
    for number in sorted(range(len(names)), key=lambda it: -len(names[it])):
        if not names[number]:
            continue
        pattern = rf"(?<![\w.,/+-]){re.escape(names[number])}(?![\w/+]|[.,]\d|-\w)"
        rest, times = re.subn(pattern, "\0", rest)
        found += [number] if times else []
    return found[0] if len(found) == 1 and not _DENIES.search(rest) else None


_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+")


def _nearest(said: str, names: Sequence[str]) -> int | None:
    """The option whose text is nearly the answer, and clearly nearer than any other."""
    if not said or len(said) > LONGEST_NEAR:
        return None
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(said)
    likeness: list[float] = []
    for name in names:
        matcher.set_seq1(name[: 2 * LONGEST_NEAR])
        # Other numbers are other answers, however like they look.
        is_other = _NUMBER.findall(name) != _NUMBER.findall(said)
        likeness.append(0.0 if is_other or not name else matcher.ratio())
    best, *others = sorted(range(len(names)), key=lambda it: -likeness[it])
    if likeness[best] < LEAST_LIKENESS:
        return None
    if others and likeness[best] - likeness[others[0]] < MARGIN:
        return None
    return best


# ---------------------------------------------------------------------------- probabilities


def probabilities(
    replies: Sequence[Reply], parsed: Sequence[Parsed], count: int, use_logprobs: bool, guess: str
) -> tuple[NDArray[np.float64], bool]:
    """The probability of each of `count` options, [K] with sum 1, and whether logprobs gave it.

    With logprobs: those of the letters where the answer's letter stands, made to sum to 1. Else
    shares of the N answers that were understood, with one more answer spread over all K options:
    (n + 1/K) / (N + 1), the posterior mean under Dirichlet's prior of total weight 1. So one answer
    gives its option (1 + 1/K) / 2, and no understood answer gives all the same.

    Among equal best ones, an option that is drawn by the seed `guess` gets `PREFERENCE` more: so
    that the choice is a guess, and not always the first.
    """
    for reply, found in zip(replies, parsed, strict=True):
        if use_logprobs and (from_letters := _of_letters(reply, found, count)) is not None:
            return _with_guess(from_letters, guess), True
    times_K = np.bincount([it.option for it in parsed if it.option is not None], minlength=count)
    probs_K = (times_K + 1 / count) / (times_K.sum() + 1)
    return _with_guess(probs_K, guess), False


def _of_letters(reply: Reply, parsed: Parsed, count: int) -> NDArray[np.float64] | None:
    """What the endpoint gives the letters at the place of the answer's letter, if it does.

    A letter that is not among the tokens that it names is at most as probable as the least of them,
    and all others together have what is left: it gets the smaller of that and its part of this.
    """
    here = [
        it
        for it in reply.letters
        if parsed.place is not None and it.start <= parsed.place < it.stop
    ]
    given = {it: value for at in here for it, value in at.logprobs.items() if -1e4 < value <= 1e-3}
    if not given:
        return None
    letters = LETTERS[:count]
    others = sum(letter not in given for letter in letters)
    unnamed = max(min(here[0].least, here[0].rest / max(others, 1)), 0.0)
    shares_K = np.array([np.exp(given[it]) if it in given else unnamed for it in letters])
    total = shares_K.sum()
    return shares_K / total if 0 < total < np.inf else None


def _with_guess(probs_K: NDArray[np.float64], guess: str) -> NDArray[np.float64]:
    best = np.flatnonzero(probs_K == probs_K.max())
    if len(best) == 1:
        return probs_K
    probs_K = probs_K * (1 - PREFERENCE)
    probs_K[random.Random(guess).choice(best.tolist())] += PREFERENCE
    return probs_K / probs_K.sum()

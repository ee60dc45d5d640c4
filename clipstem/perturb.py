"""Questions changed in ways that leave their answers true: does a model still find them?

A change is a function of the seed and the question's id, whatever the batch or the process. There
are no flips, no cuts to one side and no dropped numbers or negations: questions ask for left and
right, count, and say "not". What a change hides may be what was asked for: the answer to a question
about a colour stays true in grey, but cannot be seen any more.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from clipstem.config import Perturbation
from clipstem.images import decoded
from clipstem.question import ClipstemError, Kind, Picture, Question
from clipstem.shards import Dataset, Manifest

BLANK_SIDE, BLANK_GREY = 64, 127  # of a blank picture: px, and 0 to 255

NO_QUESTION = "?"  # stands for a question that is left out: a question has to have some text

SMALL_WORDS = frozenset(
    ("the", "an", "is", "are", "was", "were", "of", "do", "does", "that", "this", "these", "those")
)
"""Words without which a question still asks the same. "a" can be a side, and "to" a range."""


@dataclass(frozen=True)
class Strength:
    """What a perturbation's number means, its usual value, and the least and most it can be."""

    usual: float
    least: float
    most: float
    unit: str


STRENGTHS = {
    Perturbation.typos: Strength(0.2, 0, 1, "share of the question's words of 4 letters or more"),
    Perturbation.word_drops: Strength(1, 0, 1, "share of the question's small words"),
    Perturbation.blur: Strength(0.01, 0, 1, "standard deviation as a share of the shorter side"),
    Perturbation.noise: Strength(0.1, 0, 1, "standard deviation as a share of white"),
    Perturbation.jpeg: Strength(10, 1, 95, "quality"),
    Perturbation.crop: Strength(0.05, 0, 0.4, "share of the side that each edge loses"),
    Perturbation.rotation: Strength(5, 0, 30, "degrees, to the left or to the right"),
}
"""The others are there or not, and have no strength."""


@dataclass(frozen=True)
class Change:
    """One perturbation, how strong, and the seed it is drawn with."""

    name: Perturbation
    strength: float | None
    seed: int

    @classmethod
    def of(cls, name: Perturbation, strength: float | None, seed: int) -> Change:
        """With the usual strength where none is given.

        Raises:
            ClipstemError: for a strength that there cannot be.
        """
        known = STRENGTHS.get(name)
        if known is None:
            if strength is not None:
                raise ClipstemError(
                    f"conf key 'perturb_strength': perturb={name.value} has none; leave it out"
                )
            return cls(name, None, seed)
        strength = known.usual if strength is None else strength
        if not known.least <= strength <= known.most:
            raise ClipstemError(
                f"conf key 'perturb_strength': {strength:g} is not from {known.least:g} to "
                f"{known.most:g}; for perturb={name.value} it is the {known.unit}"
            )
        return cls(name, strength, seed)

    @property
    def facts(self) -> dict[str, Any]:
        """What predictions say about it."""
        known = STRENGTHS.get(self.name)
        unit = known.unit if known else None
        return {
            "name": self.name.value,
            "strength": self.strength,
            "unit": unit,
            "seed": self.seed,
        }


class Perturbed(Dataset):
    """The same data set with every question changed when it is read."""

    def __init__(self, dataset: Dataset, change: Change) -> None:
        super().__init__(dataset.location, dataset.manifest)
        self.change = change
        self.perturbation = change.facts
        self._others: dict[str, npt.NDArray[np.int64]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _perturbed, (self.location, self.manifest, self.change)

    def read(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[Question]:
        """The changed questions with these numbers within the split, in the given order."""
        questions = super().read(split, indices)
        if self.change.name is not Perturbation.shuffled_pictures:
            return [perturb(question, self.change) for question in questions]
        if split not in self._others:
            self._others[split] = self._exchange(split)
        others = super().read(split, self._others[split][np.asarray(indices, np.int64)])
        return [
            with_pictures(question, other.pictures)
            for question, other in zip(questions, others, strict=True)
        ]

    def _exchange(self, split: str) -> npt.NDArray[np.int64]:
        index = self.index(split)
        names = [
            # Options that are pictures can only be exchanged for as many.
            (kind, 1 if kind == Kind.TEXT_OPTIONS else options)
            for kind, options in zip(
                index["kind"].to_pylist(), index["num_options"].to_pylist(), strict=True
            )
        ]
        return exchanged(names, self.change.seed)


def _perturbed(location: str, manifest: Manifest, change: Change) -> Perturbed:
    return Perturbed(Dataset(location, manifest), change)


def exchanged(names: Sequence[Any], seed: int) -> npt.NDArray[np.int64]:
    """For each place another one of the same name, each once.

    One that is alone has only itself: under `shuffled_pictures` it keeps its own pictures. Names
    are kinds with numbers of options there, so that these are a handful of questions: at most one
    of each name.
    """
    places: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    rng = np.random.default_rng(seed)
    other = np.arange(len(names))
    for name in sorted(places):
        drawn = rng.permutation(places[name])
        other[drawn] = np.roll(drawn, 1)
    return other


def perturb(question: Question, change: Change) -> Question:
    """The changed question, with its own id, options in their order, and answer.

    `shuffled_pictures` is not among these changes: it needs the other questions. A question whose
    picture would be changed and does not decode stays as it is: whoever makes a batch of it skips
    it.
    """
    rng = np.random.default_rng([change.seed, *question.id.encode()])
    strength = change.strength or 0.0
    match change.name:
        case Perturbation.blank_picture:
            return with_pictures(question, [blank_picture()] * len(question.pictures))
        case Perturbation.options_only:
            shown = None if question.picture is None else blank_picture()
            return replace(question, problem=NO_QUESTION, picture=shown)
        case Perturbation.typos:
            return replace(question, problem=misspelt(question.problem, strength, rng))
        case Perturbation.case:
            return replace(question, problem=_LONG_WORD.sub(_in_capitals, question.problem))
        case Perturbation.word_drops:
            return replace(question, problem=shortened(question.problem, strength, rng))
        case _:
            painted = _PAINTED[change.name]
            try:
                images = [painted(decoded(it.data), strength, rng) for it in question.pictures]
            except ClipstemError:
                return question
            return with_pictures(question, [_png(image) for image in images])


def with_pictures(question: Question, pictures: Sequence[Picture]) -> Question:
    """The question with other pictures, in the order of `Question.pictures`."""
    left = iter(pictures)
    shown = None if question.picture is None else next(left)
    if isinstance(question.options[0], Picture):
        return replace(question, picture=shown, options=tuple(left))
    return replace(question, picture=shown)


# ---------------------------------------------------------------------------- texts

_LONG_WORD = re.compile(r"\b[^\W\d_]{4,}\b")  # of letters only: numbers and formulas stay


def _in_capitals(word: re.Match[str]) -> str:
    return word[0].upper()


def misspelt(text: str, share: float, rng: np.random.Generator) -> str:
    """Two neighbouring letters inside a word change places, in `share` of the longer words."""
    words = list(_LONG_WORD.finditer(text))
    count = math.ceil(share * len(words))
    letters = list(text)
    for number in rng.choice(len(words), count, replace=False) if words else []:
        start, end = words[number].span()
        # Inside: a word is read by its ends. Two equal letters would change nothing.
        places = [at for at in range(start + 1, end - 2) if text[at] != text[at + 1]]
        if places:
            at = int(rng.choice(places))
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def shortened(text: str, share: float, rng: np.random.Generator) -> str:
    """The text without `share` of its small words; one that has no others stays."""
    words = re.split(r"(\s+)", text)  # words at even places, what is between them at odd ones
    small = [place for place in range(0, len(words), 2) if words[place].lower() in SMALL_WORDS]
    count = math.ceil(share * len(small))
    for place in rng.choice(small, count, replace=False) if small else []:
        words[place : place + 2] = ["", ""][: len(words[place : place + 2])]
    made = "".join(words).strip()
    return made or text


# ---------------------------------------------------------------------------- pictures

Painted = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def blank_picture() -> Picture:
    """The same grey square each time."""
    return _png(Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), (BLANK_GREY,) * 3))


def _png(image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # it is read once
    return Picture.of(buffer.getvalue())


def _blur(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size)))


def _noise(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    values_HWC = np.asarray(image, np.float32)
    noise_HWC = 255 * strength * rng.standard_normal(values_HWC.shape, np.float32)
    return Image.fromarray((values_HWC + noise_HWC).round().clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(strength))
    return decoded(buffer.getvalue())


def _greyscale(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def _crop(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    left, top = (int(strength * side) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _rotation(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    # Enlarged, so that nothing is cut off; what comes in has the colour of a corner.
    angle = strength * (1 if rng.random() < 0.5 else -1)
    corner = image.getpixel((0, 0))
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=corner)


_PAINTED: dict[Perturbation, Painted] = {
    Perturbation.blur: _blur,
    Perturbation.noise: _noise,
    Perturbation.jpeg: _jpeg,
    Perturbation.greyscale: _greyscale,
    Perturbation.crop: _crop,
    Perturbation.rotation: _rotation,
}

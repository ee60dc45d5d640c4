"""What a skill of the drawn bank is, and how one question is drawn from it honestly.

A skill first draws the whole set of options, without knowing which will be right; `draw` then
makes any of them the right one with the same chance, and only now is the picture painted (or the
question's text written) so that this option, and no other, is true. So neither the options' texts
nor their order can give the answer away: the honesty is in the construction, not in a filter.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clipstem.question import Picture, Question

SIDE = 128  # px, of every drawn picture; all that matters is legible at half of it


@dataclass(frozen=True)
class TextOptions:
    """A picture, and options that are texts. `paint(option)` draws one of which it is true."""

    problem: str
    options: Sequence[str]
    paint: Callable[[str], Image.Image]


@dataclass(frozen=True)
class PictureOptions:
    """Options that are pictures: `show(option)` draws one, `problem(right)` asks for the right one.

    With `paint`, the problem itself has a picture too, and its text must not name the answer.
    """

    problem: Callable[[Any], str]
    options: Sequence[Any]
    show: Callable[[Any], Image.Image]
    paint: Callable[[Any], Image.Image] | None = None


Item = TextOptions | PictureOptions


@dataclass(frozen=True)
class Skill:
    """A named source of questions; `item(rng)` draws the options and says how to paint them."""

    name: str
    subject: str
    grade: str
    needs: str
    hard: bool
    item: Callable[[random.Random], Item]


NEEDS = ("counting", "reading", "relation", "recognition")
"""What a skill asks of its reader: to count, to read off a value, to compare, or to recognise."""


def arrange(skill: Skill, seed: int, index: int) -> tuple[Item, list[Any], int]:
    """An item with its options in their order and the place of the right one; nothing painted."""
    rng = random.Random(f"{seed}/{skill.name}/{index}")
    item = skill.item(rng)
    options = list(item.options)
    rng.shuffle(options)
    return item, options, rng.randrange(len(options))


def draw(skill: Skill, seed: int, index: int) -> Question:
    """The question number `index` of a skill: a function of (seed, skill name, index) alone."""
    item, options, answer = arrange(skill, seed, index)
    right = options[answer]
    return Question(
        id=f"{skill.name}-{seed}-{index}",
        subject=skill.subject,
        grade=skill.grade,
        skill=skill.name,
        problem=item.problem if isinstance(item, TextOptions) else item.problem(right),
        picture=None if item.paint is None else _png(item.paint(right)),
        options=tuple(options)
        if isinstance(item, TextOptions)
        else tuple(_png(item.show(option)) for option in options),
        answer=answer,
        row=index,
    )


def _png(image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return Picture.of(buffer.getvalue())

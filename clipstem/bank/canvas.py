"""The paper that the bank's pictures are painted on, and the marks that several subjects share."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from clipstem.bank.skill import SIDE

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "blue": (33, 90, 205),
    "green": (34, 145, 60),
    "yellow": (245, 200, 20),
    "purple": (130, 50, 170),
    "orange": (240, 125, 20),
}
"""Colours that stay apart after scaling down, by the name a question calls them."""

INK: RGB = (25, 25, 35)


def paper(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A light sheet of slightly varying tint, SIDE × SIDE px, and a pen for it.

    The tint carries no information; it makes pictures of different questions differ in bytes, so
    that no picture of `train` comes back in `valid`.
    """
    tint = tuple(rng.randint(226, 255) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), tint)
    return image, ImageDraw.Draw(image)


@lru_cache(maxsize=64)
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own embedded font, so that the bank needs no font file."""
    return ImageFont.load_default(size_px)


Point = tuple[float, float]
Pen = ImageDraw.ImageDraw


def any_colour(rng: random.Random) -> RGB:
    """One of the named colours, where the colour carries no information."""
    return rng.choice(list(COLOURS.values()))


def shaded(colour: RGB, factor: float) -> RGB:
    """A colour made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def near(rng: random.Random, centre: Point, reach: int) -> Point:
    """A random point at most `reach` px right, left, above or below of `centre`."""
    return centre[0] + rng.randint(-reach, reach), centre[1] + rng.randint(-reach, reach)


def scaled(points: Sequence[Point], centre: Point, radius: float) -> list[Point]:
    """Points given in units from -1 to 1, laid around `centre` at `radius` px a unit."""
    return [(centre[0] + radius * x, centre[1] + radius * y) for x, y in points]


def turned(points: Sequence[Point], degrees: float, centre: Point = (0, 0)) -> list[Point]:
    """Points turned clockwise (as seen on the sheet) about `centre`."""
    turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    middle = complex(*centre)
    moved = [(complex(*point) - middle) * turn + middle for point in points]
    return [(round(point.real, 3), round(point.imag, 3)) for point in moved]


def ray(start: Point, degrees: float, length: float) -> Point:
    """The point `length` px from `start`; 0 degrees is to the right, 90 is down."""
    angle = math.radians(degrees)
    x, y = start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)
    return round(x, 3), round(y, 3)  # PIL cuts off decimals: 63.999… must be 64


def corners(count: int, turn: float = -90, inner: float = 1) -> list[Point]:
    """A regular polygon of radius 1; with `inner` below 1, a star of `count` points."""
    step = 180 / count
    radii = (1.0, inner) if inner < 1 else (1.0,)
    stride = step if inner < 1 else 2 * step
    total = count * len(radii)
    return [ray((0, 0), turn + k * stride, radii[k % len(radii)]) for k in range(total)]


def arrow(pen: Pen, tail: Point, head: Point, colour: RGB, width: int) -> None:
    """A straight arrow with a solid head about three times as wide as its shaft."""
    angle = math.degrees(math.atan2(head[1] - tail[1], head[0] - tail[0]))
    neck = ray(head, angle, -2.2 * width)
    pen.line([tail, neck], colour, width)
    sides = [ray(neck, angle + side, 1.6 * width) for side in (-90, 90)]
    pen.polygon([head, *sides], colour)


def label(pen: Pen, centre: Point, text: str, size: int, colour: RGB = INK) -> None:
    """A short text centred at a point."""
    pen.text(centre, text, fill=colour, font=font(size), anchor="mm")


def spots(rng: random.Random, count: int, area: tuple[int, int, int, int], gap: int) -> list[Point]:
    """`count` centres in different cells, `gap` px wide, of a grid on `area` (x0, y0, x1, y1).

    Each centre may leave its cell's middle by an eighth of the cell: marks of a radius up to
    3/8 `gap` never touch.
    """
    x0, y0, x1, y1 = area
    cells = [(x, y) for x in range((x1 - x0) // gap) for y in range((y1 - y0) // gap)]
    middles = ((x0 + gap * (x + 0.5), y0 + gap * (y + 0.5)) for x, y in rng.sample(cells, count))
    return [near(rng, middle, gap // 8) for middle in middles]


PLAIN_SHAPES: dict[str, tuple[Point, ...]] = {
    "triangle": tuple(corners(3)),
    "square": tuple(corners(4, -45)),
    "star": tuple(corners(5, inner=0.42)),
    "hexagon": tuple(corners(6)),
    "heart": tuple(
        ((math.sin(t) ** 3), -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 16)
        for t in (k * math.pi / 18 for k in range(36))
    ),
}
"""Outlines of radius 1 of the shapes that small children can name; `mark` also knows a circle."""


def mark(
    pen: Pen, name: str, centre: Point, radius: float, fill: RGB | None, turn: float = 0
) -> None:
    """A filled, inked shape of `PLAIN_SHAPES`, or a circle."""
    width = max(2, round(radius / 12))
    if name == "circle":
        pen.ellipse(scaled(((-1, -1), (1, 1)), centre, radius), fill, INK, width)
        return
    points = scaled(turned(PLAIN_SHAPES[name], turn), centre, radius)
    pen.polygon(points, fill)
    pen.line([*points, points[0], points[1]], INK, width, joint="curve")


def disc(pen: Pen, centre: Point, radius: float, fill: RGB | None, ink: RGB | None = INK) -> None:
    """A filled, inked circle; `ink=None` leaves the line out."""
    pen.ellipse(scaled(((-1, -1), (1, 1)), centre, radius), fill, ink, 2 if ink else 0)


def block(pen: Pen, foot: Point, width: float, height: float, fill: RGB | None) -> None:
    """A filled, inked rectangle that stands on `foot`, the middle of its lower edge."""
    x, y = foot
    pen.rectangle((x - width / 2, y - height, x + width / 2, y), fill, INK, 2)


Member = TypeVar("Member")


def some(rng: random.Random, pool: Sequence[Member], low: int, high: int) -> list[Member]:
    """Between `low` and `high` different members of a pool: a set of options."""
    return rng.sample(pool, rng.randint(low, min(high, len(pool))))

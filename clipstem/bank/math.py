"""Mathematics from pre-K to grade 8: shapes, counting, measuring, charts, lines, symmetry."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from clipstem.bank.canvas import (
    COLOURS,
    INK,
    RGB,
    Pen,
    Point,
    any_colour,
    label,
    mark,
    near,
    paper,
    ray,
    scaled,
    shaded,
    some,
    spots,
)
from clipstem.bank.skill import SIDE, Item, PictureOptions, Skill, TextOptions

PALE: RGB = (205, 205, 210)
WHITE: RGB = (255, 255, 255)
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
COUNTABLE = ("circle", "square", "star", "triangle")
WHOLE: tuple[int, int, int, int] = (4, 4, SIDE - 4, SIDE - 4)


def _count(rng: random.Random) -> TextOptions:
    """How many things of one kind are there?"""
    thing = rng.choice(COUNTABLE)
    asked = rng.choice(("How many {}s are in the picture?", "Count the {}s. How many are there?"))
    return TextOptions(
        asked.format(thing),
        rng.sample(list(COUNTS), 4),
        lambda option: _scattered(rng, thing, COUNTS[option]),
    )


def _scattered(rng: random.Random, thing: str, count: int) -> Image.Image:
    image, pen = paper(rng)
    colour = any_colour(rng)
    for spot in spots(rng, count, WHOLE, 40):
        mark(pen, thing, spot, 14, colour, rng.randint(-15, 15))
    return image


def _same_number(rng: random.Random) -> PictureOptions:
    """Which picture has as many things as the first one?"""
    given, other = rng.sample(COUNTABLE, 2)
    return PictureOptions(
        lambda right: f"Which picture has as many {other}s as there are {given}s here?",
        rng.sample(list(COUNTS.values()), 3),
        lambda count: _scattered(rng, other, count),
        lambda count: _scattered(rng, given, count),
    )


def _name_shape(rng: random.Random) -> TextOptions:
    """What is the shape called?"""
    names = ("circle", "triangle", "square", "star", "heart", "hexagon")
    asked = ("What is this shape called?", "Look at the shape. What is its name?")
    return TextOptions(rng.choice(asked), rng.sample(names, 4), lambda name: _big(rng, name))


def _big(rng: random.Random, name: str) -> Image.Image:
    image, pen = paper(rng)
    centre, radius, turn = near(rng, (64, 64), 16), rng.randint(28, 46), rng.randint(-10, 10)
    mark(pen, name, centre, radius, any_colour(rng), turn)
    return image


FRACTIONS = {
    "one half": (1, 2),
    "one third": (1, 3),
    "two thirds": (2, 3),
    "one quarter": (1, 4),
    "three quarters": (3, 4),
}


def _fraction(rng: random.Random) -> TextOptions:
    """What fraction of a circle or a strip is coloured?"""
    whole, paint = rng.choice((("circle", _pie), ("strip", _strip)))
    return TextOptions(
        f"What fraction of the {whole} is coloured?",
        rng.sample(list(FRACTIONS), 4),
        lambda option: paint(rng, *FRACTIONS[option]),
    )


def _fills(rng: random.Random, coloured: int, parts: int) -> list[RGB]:
    colour = any_colour(rng)
    chosen = rng.sample(range(parts), coloured)
    return [colour if part in chosen else WHITE for part in range(parts)]


def _pie(rng: random.Random, coloured: int, parts: int) -> Image.Image:
    image, pen = paper(rng)
    box = scaled(((-1, -1), (1, 1)), near(rng, (64, 64), 8), rng.randint(44, 54))
    step = 360 / parts
    start = rng.choice((0, 90, 180, 270)) + step / 2
    for part, fill in enumerate(_fills(rng, coloured, parts)):
        pen.pieslice(box, start + step * part, start + step * (part + 1), fill, INK, 3)
    return image


def _strip(rng: random.Random, coloured: int, parts: int) -> Image.Image:
    image, pen = paper(rng)
    x0, y0, height = rng.randint(6, 14), rng.randint(14, 54), rng.randint(36, 56)
    width = 108 / parts
    for part, fill in enumerate(_fills(rng, coloured, parts)):
        pen.rectangle((x0 + width * part, y0, x0 + width * (part + 1), y0 + height), fill, INK, 3)
    return image


def _clock(rng: random.Random) -> TextOptions:
    """What full hour does the clock show?"""
    hours = {f"{hour} o'clock": hour for hour in range(1, 13)}
    asked = rng.choice(("What time does the clock show?", "Read the clock. What time is it?"))
    return TextOptions(
        asked, rng.sample(list(hours), 4), lambda option: _clock_face(rng, hours[option])
    )


def _clock_face(rng: random.Random, hour: int) -> Image.Image:
    image, pen = paper(rng)
    centre = near(rng, (64, 64), 4)
    pen.ellipse(scaled(((-1, -1), (1, 1)), centre, 58), WHITE, any_colour(rng), 5)
    for number in range(1, 13):
        spot = ray(centre, 30 * number - 90, 45)
        label(pen, spot, str(number), 15) if number % 3 == 0 else pen.circle(spot, 2, INK)
    pen.line([centre, ray(centre, -90, 38)], INK, 3)
    pen.line([centre, ray(centre, 30 * hour - 90, 27)], any_colour(rng), 8)
    pen.circle(centre, 5, INK)
    return image


def _more(rng: random.Random) -> TextOptions:
    """Which side has more of the same things?"""
    thing = rng.choice(COUNTABLE)
    sides = {
        "the left side has more": (1, -1),
        "the right side has more": (-1, 1),
        "both sides have the same number": (0, 0),
    }
    return TextOptions(
        f"Compare the {thing}s on the two sides of the line. Which side has more?",
        list(sides),
        lambda option: _two_sides(rng, thing, sides[option]),
    )


def _two_sides(rng: random.Random, thing: str, lean: tuple[int, int]) -> Image.Image:
    image, pen = paper(rng)
    pen.line(((64, 4), (64, 124)), INK, 3)
    middle, reach = rng.choice((3, 4)), rng.choice((1, 2))
    for x0, sign in zip((2, 68), lean, strict=True):
        colour = any_colour(rng)
        for spot in spots(rng, middle + reach * sign, (x0, 2, x0 + 58, 126), 29):
            mark(pen, thing, spot, 10, colour)
    return image


def _longest(rng: random.Random) -> TextOptions:
    """Which of three ribbons is the longest, or the shortest?"""
    word, lengths, extreme = rng.choice(
        (("longest", (25, 75), (98, 112)), ("shortest", (60, 112), (15, 35)))
    )
    names = rng.sample(list(COLOURS), 3)
    order = rng.sample(names, 3)

    def paint(right: str) -> Image.Image:
        image, pen = paper(rng)
        for row, name in enumerate(order):
            x0, y0 = rng.randint(4, 12), 8 + 40 * row + rng.randint(0, 8)
            length = rng.randint(*(extreme if right == f"the {name} one" else lengths))
            pen.rectangle((x0, y0, x0 + length, y0 + 22), COLOURS[name], INK, 2)
        return image

    return TextOptions(
        f"Compare the ribbons. Which one is the {word}?", [f"the {n} one" for n in names], paint
    )


def _tallest(rng: random.Random) -> TextOptions:
    """Which bar of a bar chart is the tallest, or the shortest?"""
    word, heights, extreme = rng.choice(
        (("tallest", (25, 70), (90, 106)), ("shortest", (55, 106), (12, 30)))
    )
    places = ["the first bar", "the second bar", "the third bar", "the fourth bar"]

    def paint(right: str) -> Image.Image:
        image, pen = paper(rng)
        for bar, place in enumerate(places):
            height = rng.randint(*(extreme if place == right else heights))
            x0 = 16 + 27 * bar
            pen.rectangle((x0, 116 - height, x0 + 20, 117), any_colour(rng), INK, 2)
        pen.line(((10, 6), (10, 118), (124, 118)), INK, 3)
        return image

    return TextOptions(f"Which bar of the chart, from the left, is the {word}?", places, paint)


def _axes(pen: Pen, centre: Point) -> None:
    pen.line(((4, centre[1]), (123, centre[1])), INK, 3)
    pen.line(((centre[0], 4), (centre[0], 123)), INK, 3)


def _quadrant(rng: random.Random) -> TextOptions:
    """In which quadrant of the coordinate plane is the point?"""
    quadrants = {
        "the first quadrant": (1, -1),
        "the second quadrant": (-1, -1),
        "the third quadrant": (-1, 1),
        "the fourth quadrant": (1, 1),
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        centre = near(rng, (64, 64), 6)
        _axes(pen, centre)
        right, down = quadrants[option]
        spot = centre[0] + right * rng.randint(18, 46), centre[1] + down * rng.randint(18, 46)
        mark(pen, "circle", spot, 9, any_colour(rng))
        return image

    asked = ("In which quadrant is the point?", "Where in the plane is the point plotted?")
    return TextOptions(rng.choice(asked), list(quadrants), paint)


def _slope(rng: random.Random) -> TextOptions:
    """What is the sign of the line's slope?"""
    slopes: dict[str, Callable[[], int]] = {
        "a positive slope": lambda: rng.randint(-62, -22),
        "a negative slope": lambda: rng.randint(22, 62),
        "a slope of zero": lambda: 0,
        "an undefined slope": lambda: 90,
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        _axes(pen, near(rng, (64, 64), 5))
        centre, angle = near(rng, (64, 64), 24), slopes[option]()
        pen.line([ray(centre, angle, -150), ray(centre, angle, 150)], any_colour(rng), 7)
        return image

    return TextOptions("What kind of slope does the coloured line have?", list(slopes), paint)


def _angle(rng: random.Random) -> TextOptions:
    """What kind of angle do the two arms form?"""
    openings = {
        "an acute angle": (25, 62),
        "a right angle": (90, 90),
        "an obtuse angle": (116, 152),
        "a straight angle": (180, 180),
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        start, opening = rng.randrange(360), rng.randint(*openings[option])
        shift = 26 if opening < 180 else 0
        tip = ray(near(rng, (64, 64), 5), start + opening / 2, -shift)
        arms = [ray(tip, start + turn, 56) for turn in (0, opening)]
        pen.line([arms[0], tip, arms[1]], INK, 6, joint="curve")
        mark(pen, "circle", tip, 6, any_colour(rng))
        return image

    asked = ("What kind of angle is drawn here?", "Which name fits the angle in the picture?")
    return TextOptions(rng.choice(asked), list(openings), paint)


def _line_pair(rng: random.Random) -> TextOptions:
    """Are two lines parallel, perpendicular, or neither?"""
    turns = {
        "they are parallel": (0, 0),
        "they are perpendicular": (90, 90),
        "they cross, but not at a right angle": (28, 52),
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        first, between = rng.randrange(180), rng.randint(*turns[option])
        apart = rng.randint(15, 24) if between == 0 else 0
        for angle, side in ((first, 1), (first + between, -1)):
            centre = ray(near(rng, (64, 64), 6), first + 90, side * apart)
            pen.line([ray(centre, angle, -52), ray(centre, angle, 52)], any_colour(rng), 6)
        return image

    return TextOptions("What is true of the two lines in the picture?", list(turns), paint)


def _position(rng: random.Random) -> TextOptions:
    """Where is the ball, seen from the box?"""
    places = {
        "above the box": (0, -1),
        "below the box": (0, 1),
        "to the left of the box": (-1, 0),
        "to the right of the box": (1, 0),
        "inside the box": (0, 0),
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        box, (right, down) = near(rng, (64, 64), 8), places[option]
        pen.rectangle(scaled(((-1, -1), (1, 1)), box, 21), WHITE, INK, 4)
        ball = near(rng, (box[0] + 39 * right, box[1] + 39 * down), 4)
        mark(pen, "circle", ball, 12, any_colour(rng))
        return image

    asked = (
        "Where is the ball, seen from the box?",
        "Look at the ball and the box. Where is the ball?",
    )
    return TextOptions(rng.choice(asked), some(rng, list(places), 3, 5), paint)


def _solid(rng: random.Random) -> PictureOptions:
    """Which picture shows the solid that the question names?"""
    asked = rng.choice(
        ("Which of these solids is a {}?", "Which picture shows a {}?", "Where do you see a {}?")
    )
    return PictureOptions(
        lambda right: asked.format(right),
        some(rng, list(SOLIDS), 3, 4),
        lambda name: _solid_body(rng, name),
    )


def _solid_body(rng: random.Random, name: str) -> Image.Image:
    image, pen = paper(rng)
    SOLIDS[name](pen, near(rng, (64, 64), 12), rng.randint(32, 44), any_colour(rng))
    return image


def _cube(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    faces: dict[float, tuple[Point, ...]] = {
        1.0: ((-0.9, -0.4), (0.4, -0.4), (0.4, 0.9), (-0.9, 0.9)),
        1.5: ((-0.9, -0.4), (-0.4, -0.9), (0.9, -0.9), (0.4, -0.4)),
        0.7: ((0.4, -0.4), (0.9, -0.9), (0.9, 0.4), (0.4, 0.9)),
    }
    for light, face in faces.items():
        pen.polygon(scaled(face, centre, size), shaded(colour, light), INK, 2)


def _sphere(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    pen.ellipse(scaled(((-1, -1), (1, 1)), centre, size), colour, INK, 2)
    pen.ellipse(scaled(((-0.55, -0.65), (0, -0.2)), centre, size), shaded(colour, 1.5))


def _cone(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    pen.ellipse(scaled(((-0.8, 0.45), (0.8, 1.05)), centre, size), colour, INK, 2)
    sides = scaled(((-0.8, 0.75), (0, -1.1), (0.8, 0.75)), centre, size)
    pen.polygon(sides, colour)
    pen.line(sides, INK, 2)


def _cylinder(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    pen.ellipse(scaled(((-0.75, 0.5), (0.75, 1.1)), centre, size), colour, INK, 2)
    side = scaled(((-0.75, 0.8), (-0.75, -0.75), (0.75, -0.75), (0.75, 0.8)), centre, size)
    pen.polygon(side, colour)
    pen.line(side, INK, 2)
    lid = scaled(((-0.75, -1.05), (0.75, -0.45)), centre, size)
    pen.ellipse(lid, shaded(colour, 1.5), INK, 2)


SOLIDS = {"cube": _cube, "sphere": _sphere, "cone": _cone, "cylinder": _cylinder}


def _scatter(rng: random.Random) -> PictureOptions:
    """Which scatter plot has the named trend?"""
    trends = {"a positive trend": -0.9, "a negative trend": 0.9, "no trend at all": 0.0}
    asked = rng.choice(("Which scatter plot shows {}?", "Which plot's points have {}?"))
    return PictureOptions(
        lambda right: asked.format(right),
        list(trends),
        lambda option: _cloud(rng, trends[option]),
    )


def _cloud(rng: random.Random, slope: float) -> Image.Image:
    image, pen = paper(rng)
    colour = any_colour(rng)
    pen.line(((6, 4), (6, 122), (124, 122)), INK, 3)
    grid = spots(rng, 9, (14, 10, 122, 118), 36)  # every cell of 3 x 3: nothing rises or falls
    level = [near(rng, spot, 7) for spot in grid]
    rising = [near(rng, (20 + 11 * k, 62 + slope * 11 * (k - 4)), 6) for k in range(9)]
    for spot in rising if slope else level:
        mark(pen, "circle", spot, 5, colour)
    return image


def _pattern(rng: random.Random) -> PictureOptions:
    """Which coloured shape comes next in a repeating row?"""
    shapes = rng.sample(("circle", "square", "star", "triangle", "heart"), 3)
    tokens = list(zip(shapes, rng.sample(list(COLOURS.values()), 3), strict=True))
    cycle = rng.choice(("AB", "AAB", "ABA", "ABB", "ABC"))

    def show(token: tuple[str, RGB]) -> Image.Image:
        image, pen = paper(rng)
        mark(pen, token[0], near(rng, (64, 64), 10), rng.randint(30, 42), token[1])
        return image

    def paint(right: tuple[str, RGB]) -> Image.Image:
        image, pen = paper(rng)
        others = rng.sample([token for token in tokens if token != right], 2)
        asked = cycle[7 % len(cycle)]
        meaning = dict(zip([letter for letter in "ABC" if letter != asked], others, strict=True))
        for place in range(7):
            name, colour = {**meaning, asked: right}[cycle[place % len(cycle)]]
            middle = (16 + 32 * (place % 4), 36 + 56 * (place // 4))
            mark(pen, name, near(rng, middle, 1), 13, colour)
        label(pen, (112, 92), "?", 32)
        return image

    wordings = ("Which shape comes next in the pattern?", "What goes where the question mark is?")
    problem = rng.choice(wordings)
    return PictureOptions(lambda right: problem, tokens, show, paint)


Cells = frozenset[tuple[int, int]]


def _tiles(rng: random.Random, cells: Cells) -> Image.Image:
    image, pen = paper(rng)
    colour, size = any_colour(rng), rng.randint(23, 27)
    left, top = near(rng, (64 - 2 * size, 64 - 2 * size), 8)
    for column, row in sorted(cells):
        x, y = left + size * column, top + size * row
        pen.rectangle((x, y, x + size, y + size), colour, INK, 2)
    return image


def _symmetry(rng: random.Random) -> PictureOptions:
    """Which figure has a vertical, a horizontal, or no line of symmetry?"""
    kinds = {
        "a vertical line of symmetry": {"vertical"},
        "a horizontal line of symmetry": {"horizontal"},
        "no line of symmetry": set[str](),
    }
    return PictureOptions(
        lambda right: f"Which figure has {right}?",
        list(kinds),
        lambda kind: _tiles(rng, _figure(rng, kinds[kind])),
    )


def _figure(rng: random.Random, wanted: set[str]) -> Cells:
    """Cells of a 4 x 4 grid that fold onto themselves along the wanted lines and no others."""
    grid = [(x, y) for x in range(4) for y in range(4)]
    while True:
        half = frozenset(rng.sample(grid, rng.randint(3, 5)))
        other = {
            (3 - x, y) if "vertical" in wanted else (x, 3 - y) if wanted else rng.choice(grid)
            for x, y in half
        }
        figure = half | other
        spans = {max(side) - min(side) for side in zip(*figure, strict=True)}
        if spans == {3} and _fold_lines(figure) == wanted:
            return figure


def _fold_lines(cells: Cells) -> set[str]:
    folds = {
        "vertical": {(3 - x, y) for x, y in cells},
        "horizontal": {(x, 3 - y) for x, y in cells},
        "falling": {(y, x) for x, y in cells},
        "rising": {(3 - y, 3 - x) for x, y in cells},
    }
    return {name for name, folded in folds.items() if folded == cells}


def _skill(
    name: str, grade: str, needs: str, item: Callable[[random.Random], Item], hard: bool = False
) -> Skill:
    return Skill(name, "math", grade, needs, hard, item)


SKILLS: tuple[Skill, ...] = (
    _skill("count-objects", "pre-k", "counting", _count),
    _skill("above-below-inside", "pre-k", "relation", _position),
    _skill("longest-ribbon", "pre-k", "relation", _longest),
    _skill("name-the-shape", "kindergarten", "recognition", _name_shape),
    _skill("find-the-solid", "kindergarten", "recognition", _solid),
    _skill("which-side-has-more", "kindergarten", "relation", _more),
    _skill("same-number-of-things", "kindergarten", "counting", _same_number),
    _skill("next-in-the-pattern", "kindergarten", "relation", _pattern),
    _skill("clock-full-hour", "grade-1", "reading", _clock),
    _skill("bar-chart-extreme", "grade-2", "reading", _tallest),
    _skill("fraction-coloured", "grade-3", "reading", _fraction),
    _skill("kind-of-angle", "grade-4", "recognition", _angle),
    _skill("two-lines", "grade-4", "relation", _line_pair),
    _skill("lines-of-symmetry", "grade-4", "relation", _symmetry, hard=True),
    _skill("quadrant-of-a-point", "grade-6", "reading", _quadrant),
    _skill("scatter-plot-trend", "grade-8", "relation", _scatter),
    _skill("sign-of-the-slope", "grade-7", "relation", _slope),
)

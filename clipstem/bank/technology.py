"""Technology from pre-K to grade 8: screens, symbols, devices, networks, charts, small programs."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from clipstem.bank.canvas import (
    INK,
    RGB,
    Pen,
    Point,
    any_colour,
    arrow,
    corners,
    disc,
    label,
    mark,
    near,
    paper,
    ray,
    scaled,
    some,
)
from clipstem.bank.skill import Item, PictureOptions, Skill, TextOptions

PALE: RGB = (190, 192, 200)
WHITE: RGB = (255, 255, 255)
DARK: RGB = (50, 54, 66)
LIT: RGB = (255, 215, 40)


def _box(
    pen: Pen,
    centre: Point,
    size: float,
    shape: tuple[float, float, float, float],
    fill: RGB | None,
    ink: RGB = INK,
) -> None:
    """An inked rectangle, its corners in units of `size` px around `centre`."""
    x0, y0, x1, y1 = shape
    pen.rectangle(scaled(((x0, y0), (x1, y1)), centre, size), fill, ink, 3)


def _folder(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    _box(pen, centre, size, (-1, -0.75, -0.1, 0), colour)
    _box(pen, centre, size, (-1, -0.5, 1, 0.8), colour)


def _envelope(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    _box(pen, centre, size, (-1, -0.7, 1, 0.7), colour)
    pen.line(scaled(((-1, -0.7), (0, 0.15), (1, -0.7)), centre, size), INK, 4)


def _magnifier(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    pen.line(scaled(((0.15, 0.15), (0.95, 0.95)), centre, size), INK, 10)
    pen.ellipse(scaled(((-0.95, -0.95), (0.45, 0.45)), centre, size), WHITE, colour, 8)


def _bin(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    body = scaled(((-0.65, -0.5), (0.65, -0.5), (0.5, 1), (-0.5, 1)), centre, size)
    pen.polygon(body, colour, INK, 3)
    for x in (-0.22, 0.22):
        pen.line(scaled(((x, -0.2), (x, 0.75)), centre, size), INK, 4)
    _box(pen, centre, size, (-0.25, -0.95, 0.25, -0.6), WHITE)
    _box(pen, centre, size, (-0.85, -0.75, 0.85, -0.5), colour)


def _padlock(pen: Pen, centre: Point, size: int, colour: RGB) -> None:
    pen.arc(scaled(((-0.5, -1), (0.5, 0.4)), centre, size), 180, 360, INK, 9)
    _box(pen, centre, size, (-0.75, -0.25, 0.75, 0.95), colour)
    disc(pen, scaled(((0, 0.3),), centre, size)[0], 5, INK)


def _speaker(pen: Pen, centre: Point, size: int, colour: RGB, waves: int = 0) -> None:
    cone = ((-0.9, -0.3), (-0.55, -0.3), (-0.1, -0.75), (-0.1, 0.75), (-0.55, 0.3), (-0.9, 0.3))
    pen.polygon(scaled(cone, centre, size), colour, INK, 3)
    for wave in range(1, waves + 1):
        reach = 0.15 + 0.3 * wave
        pen.arc(scaled(((-reach, -reach), (reach, reach)), centre, size), -50, 50, INK, 6)


ICONS: dict[str, Callable[[Pen, Point, int, RGB], None]] = {
    "a folder": _folder,
    "an envelope": _envelope,
    "a magnifying glass": _magnifier,
    "a trash can": _bin,
    "a padlock": _padlock,
}
USES = {
    "a folder": "keep several files together",
    "an envelope": "read your messages",
    "a magnifying glass": "search for something",
    "a trash can": "delete a file",
    "a padlock": "protect something with a password",
}


def _icon(rng: random.Random, name: str) -> Image.Image:
    image, pen = paper(rng)
    ICONS[name](pen, near(rng, (64, 64), 12), rng.randint(34, 46), any_colour(rng))
    return image


def _name_icon(rng: random.Random) -> TextOptions:
    """What does the icon show?"""
    asked = ("What does this icon on a screen show?", "Which thing is this icon a picture of?")
    return TextOptions(rng.choice(asked), some(rng, list(ICONS), 3, 5), lambda n: _icon(rng, n))


def _use_icon(rng: random.Random) -> PictureOptions:
    """Which icon is for the named use?"""
    asked = rng.choice(("Which icon would you click to {}?", "You want to {}. Which icon helps?"))
    return PictureOptions(
        lambda right: asked.format(USES[right]),
        some(rng, list(ICONS), 3, 4),
        lambda name: _icon(rng, name),
    )


def _battery(rng: random.Random) -> PictureOptions:
    """Which battery is full, half full or almost empty?"""
    levels = {"full": (98, 100), "about half full": (44, 56), "almost empty": (8, 14)}
    return PictureOptions(
        lambda right: f"Which of these batteries is {right}?",
        list(levels),
        lambda level: _cell(rng, rng.randint(*levels[level])),
    )


def _cell(rng: random.Random, percent: int) -> Image.Image:
    image, pen = paper(rng)
    x0, y0 = near(rng, (10, 36), 5)
    pen.rectangle((x0 + 98, y0 + 16, x0 + 108, y0 + 40), DARK)
    pen.rectangle((x0, y0, x0 + 98, y0 + 56), WHITE, DARK, 5)
    pen.rectangle((x0 + 8, y0 + 8, x0 + 8 + 0.82 * percent, y0 + 48), any_colour(rng))
    return image


def _signal(rng: random.Random) -> TextOptions:
    """How many of the five bars of signal are filled?"""
    counts = {"no bars": 0, "one bar": 1, "two bars": 2, "three bars": 3, "four bars": 4,
              "five bars": 5}  # fmt: skip

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        x0, foot = near(rng, (10, 108), 6)
        colour = any_colour(rng)
        for bar in range(5):
            x = x0 + 22 * bar
            fill = colour if bar < counts[option] else WHITE
            pen.rectangle((x, foot - 18 - 18 * bar, x + 17, foot), fill, INK, 2)
        return image

    asked = ("How strong is the signal: how many bars are filled?", "How many bars are filled in?")
    return TextOptions(rng.choice(asked), rng.sample(list(counts), 4), paint)


def _switches(rng: random.Random) -> TextOptions:
    """Which of two switches are on?"""
    states = {
        "both switches are on": (True, True),
        "only the upper switch is on": (True, False),
        "only the lower switch is on": (False, True),
        "both switches are off": (False, False),
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        colour, width = any_colour(rng), rng.randint(76, 92)
        for row, on in enumerate(states[option]):
            x, y = near(rng, (18, 12 + 60 * row), 5)
            pen.rounded_rectangle((x, y, x + width, y + 42), 21, colour if on else PALE, INK, 3)
            disc(pen, (x + width - 21 if on else x + 21, y + 21), 16, WHITE)
        return image

    asked = "A switch is on when its knob is at the right. Which switches are on?"
    return TextOptions(asked, some(rng, list(states), 3, 4), paint)


SIDES = {"left": 180, "right": 0, "up": -90, "down": 90}


def _arrow_key(rng: random.Random) -> TextOptions:
    """Which arrow key of the keyboard is pressed?"""
    places = {"left": (0, 1), "right": (2, 1), "up": (1, 0), "down": (1, 1)}
    keys = {f"the {name} arrow key": name for name in places}

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        (x0, y0), colour = near(rng, (6, 22), 4), any_colour(rng)
        for name, (column, row) in places.items():
            x, y = x0 + 39 * column, y0 + 42 * row
            fill = colour if name == keys[option] else WHITE
            pen.rounded_rectangle((x, y, x + 36, y + 38), 6, fill, INK, 3)
            middle = (x + 18, y + 19)
            arrow(pen, ray(middle, SIDES[name], -10), ray(middle, SIDES[name], 11), INK, 5)
        return image

    asked = (
        "Which key on the keyboard is coloured?",
        "The pressed key is coloured. Which one is it?",
    )
    return TextOptions(rng.choice(asked), list(keys), paint)


def _cursor(rng: random.Random) -> TextOptions:
    """In which part of the screen is the mouse pointer?"""
    places = {
        "in the top left corner": (-1, -1),
        "in the top right corner": (1, -1),
        "in the bottom left corner": (-1, 1),
        "in the bottom right corner": (1, 1),
        "in the middle": (0, 0),
    }
    tip = ((-0.6, -1), (-0.6, 0.8), (-0.15, 0.4), (0.2, 1), (0.5, 0.85), (0.15, 0.25), (0.75, 0.2))

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        pen.rectangle((4, 8, 123, 108), WHITE, DARK, 5)
        pen.rectangle((50, 108, 78, 122), DARK)
        right, down = places[option]
        spot = near(rng, (64 + 40 * right, 58 + 30 * down), 4)
        pen.polygon(scaled(tip, spot, 15), any_colour(rng), INK, 2)
        return image

    asked = ("Where on the screen is the mouse pointer?", "Find the pointer. Where is it?")
    return TextOptions(rng.choice(asked), some(rng, list(places), 3, 5), paint)


PLAYER: dict[str, tuple[tuple[Point, ...], ...]] = {
    "play": (((-0.6, -0.8), (0.8, 0), (-0.6, 0.8)),),
    "pause": tuple(
        ((x, -0.75), (x + 0.45, -0.75), (x + 0.45, 0.75), (x, 0.75)) for x in (-0.65, 0.2)
    ),
    "stop": (((-0.65, -0.65), (0.65, -0.65), (0.65, 0.65), (-0.65, 0.65)),),
    "skip forward": tuple(((x, -0.65), (x + 0.8, 0), (x, 0.65)) for x in (-0.8, 0.0)),
    "skip back": tuple(((x, -0.65), (x - 0.8, 0), (x, 0.65)) for x in (0.8, 0.0)),
}


def _player(rng: random.Random) -> TextOptions:
    """What does the button of a music player do?"""

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        centre, size, colour = near(rng, (64, 64), 8), rng.randint(30, 38), any_colour(rng)
        disc(pen, centre, 1.4 * size, WHITE)
        for part in PLAYER[option]:
            pen.polygon(scaled(part, centre, size), colour, INK, 2)
        return image

    asked = (
        "What does this button of a video player do?",
        "What happens if you press this button?",
    )
    return TextOptions(rng.choice(asked), some(rng, list(PLAYER), 3, 5), paint)


def _volume(rng: random.Random) -> PictureOptions:
    """Which speaker symbol is loud, quiet or muted?"""
    volumes = {"the sound is off": 0, "the sound is quiet": 1, "the sound is loud": 3}

    def show(option: str) -> Image.Image:
        image, pen = paper(rng)
        centre, size = near(rng, (60, 64), 8), rng.randint(42, 52)
        _speaker(pen, centre, size, any_colour(rng), volumes[option])
        if not volumes[option]:
            for ends in (((0.2, -0.4), (0.9, 0.4)), ((0.2, 0.4), (0.9, -0.4))):
                pen.line(scaled(ends, centre, size), INK, 7)
        return image

    return PictureOptions(lambda right: f"Which symbol says that {right}?", list(volumes), show)


def _orientation(rng: random.Random) -> TextOptions:
    """Is the tablet held upright or sideways?"""
    sizes = {"portrait (upright)": (36, 54), "landscape (sideways)": (54, 36)}

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        wide, high = (side + rng.randint(-5, 4) for side in sizes[option])
        x, y = near(rng, (64, 64), 4)
        pen.rounded_rectangle((x - wide, y - high, x + wide, y + high), 9, DARK)
        box = (x - wide + 8, y - high + 8, x + wide - 8, y + high - 8)
        pen.rectangle(box, any_colour(rng))
        return image

    return TextOptions("How is the screen of this tablet turned?", list(sizes), paint)


LIGHTS: dict[str, RGB] = {"red": (235, 30, 30), "green": (20, 200, 40), "blue": (30, 60, 240)}
MIXES: dict[RGB, tuple[str, ...]] = {
    (250, 235, 20): ("red", "green"),
    (20, 225, 235): ("green", "blue"),
    (235, 30, 225): ("red", "blue"),
    (255, 255, 255): ("red", "green", "blue"),
}


def _mixing(rng: random.Random) -> PictureOptions:
    """Which colour do the lit lights of a screen make together?"""

    def show(mix: RGB) -> Image.Image:
        image, pen = paper(rng)
        mark(pen, "square", near(rng, (64, 64), 6), rng.randint(56, 70), mix)
        return image

    def paint(mix: RGB) -> Image.Image:
        image, pen = paper(rng)
        pen.rectangle((3, 3, 124, 124), DARK)
        start, lights = rng.randrange(360), rng.sample(MIXES[mix], len(MIXES[mix]))
        for place, light in enumerate(lights):
            spot = ray((64, 64), start + 360 / len(lights) * place, 33)
            disc(pen, spot, 24, LIGHTS[light])
        return image

    asked = "These lights of a screen shine on one spot. Which colour do they make?"
    return PictureOptions(lambda right: asked, rng.sample(list(MIXES), 3), show, paint)


CONNECTORS: dict[str, tuple[Point, ...]] = {
    "flat": ((-1, -0.35), (1, -0.35), (1, 0.35), (-1, 0.35)),
    "round": tuple(corners(24)),
    "trapezoid": ((-1, -0.5), (1, -0.5), (0.6, 0.5), (-0.6, 0.5)),
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0, -0.9), (1, 0.8), (-1, 0.8)),
}


def _plug(rng: random.Random) -> PictureOptions:
    """Which port does the plug fit into?"""

    def show(name: str) -> Image.Image:
        image, pen = paper(rng)
        centre = near(rng, (64, 64), 11)
        pen.rounded_rectangle(scaled(((-1, -1), (1, 1)), centre, 50), 10, PALE, INK, 3)
        pen.polygon(scaled(CONNECTORS[name], centre, rng.randint(28, 38)), INK)
        return image

    def paint(name: str) -> Image.Image:
        image, pen = paper(rng)
        centre, size = near(rng, (64, 50), 6), rng.randint(30, 38)
        pen.line([centre, (centre[0], 128)], INK, 12)
        pen.polygon(scaled(CONNECTORS[name], centre, size), any_colour(rng), INK, 4)
        return image

    asked = rng.choice(
        ("Which port has the right shape for this plug?", "Which port does this plug fit?")
    )
    return PictureOptions(lambda right: asked, some(rng, list(CONNECTORS), 3, 4), show, paint)


def _chart(rng: random.Random) -> TextOptions:
    """What type of chart shows the data?"""
    charts = {
        "a bar chart": _bars,
        "a line chart": _line,
        "a pie chart": _pie,
        "a scatter plot": _scatter,
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        if option != "a pie chart":
            pen.line(((10, 6), (10, 118), (124, 118)), INK, 3)
        charts[option](rng, pen)
        return image

    asked = ("What type of chart is this?", "Which type of chart was chosen for the data?")
    return TextOptions(rng.choice(asked), some(rng, list(charts), 3, 4), paint)


def _bars(rng: random.Random, pen: Pen) -> None:
    for bar in range(4):
        x = 18 + 26 * bar
        pen.rectangle((x, rng.randint(20, 90), x + 19, 117), any_colour(rng), INK, 2)


def _line(rng: random.Random, pen: Pen) -> None:
    points = [(14 + 21 * k, rng.randint(20, 104)) for k in range(6)]
    pen.line(points, any_colour(rng), 6, joint="curve")


def _pie(rng: random.Random, pen: Pen) -> None:
    cuts = sorted(rng.sample(range(0, 360, 40), 3))
    box = scaled(((-1, -1), (1, 1)), near(rng, (64, 64), 6), rng.randint(44, 54))
    for start, end in zip(cuts, [*cuts[1:], cuts[0] + 360], strict=True):
        pen.pieslice(box, start, end, any_colour(rng), INK, 3)


def _scatter(rng: random.Random, pen: Pen) -> None:
    colour = any_colour(rng)
    for _ in range(10):
        disc(pen, (rng.randint(20, 118), rng.randint(12, 108)), 5, colour)


def _network(rng: random.Random) -> TextOptions:
    """How are the computers of a network connected?"""
    hub, size = 0, 6
    around = range(1, size)
    links = {
        "a star: all are connected to one in the middle": [(hub, n) for n in around],
        "a ring: each is connected to two neighbours": [(n, n % (size - 1) + 1) for n in around],
        "a full mesh: each is connected to every other": [
            (a, b) for a in around for b in around if a < b
        ],
    }

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        centre, turn, colour = near(rng, (64, 64), 6), rng.randrange(72), any_colour(rng)
        spots = [centre] + [ray(centre, turn + 72 * n, 46) for n in around]
        used = {node for link in links[option] for node in link}
        for a, b in links[option]:
            pen.line([spots[a], spots[b]], INK, 4)
        for node in sorted(used):
            mark(pen, "square", spots[node], 12, colour)
        return image

    return TextOptions("How are the computers in this network connected?", list(links), paint)


def _table_cell(rng: random.Random) -> TextOptions:
    """Which cell of the spreadsheet is highlighted?"""
    cells = {f"cell {'ABC'[x]}{y + 1}": (x, y) for x in range(3) for y in range(3)}

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        (x0, y0), colour = near(rng, (26, 28), 4), any_colour(rng)
        for x, y in cells.values():
            box = (x0 + 32 * x, y0 + 31 * y, x0 + 32 * x + 32, y0 + 31 * y + 31)
            pen.rectangle(box, colour if cells[option] == (x, y) else WHITE, INK, 2)
        for place in range(3):
            label(pen, (x0 + 16 + 32 * place, y0 - 12), "ABC"[place], 20)
            label(pen, (x0 - 12, y0 + 16 + 31 * place), "123"[place], 20)
        return image

    asked = ("Which cell of the spreadsheet is highlighted?", "What is the coloured cell called?")
    return TextOptions(rng.choice(asked), rng.sample(list(cells), 4), paint)


def _lamps(rng: random.Random) -> TextOptions:
    """Which number do four lamps show in binary?"""

    def paint(option: str) -> Image.Image:
        image, pen = paper(rng)
        x0, y = near(rng, (20, 64), 3)
        pen.rounded_rectangle((x0 - 17, y - 24, x0 + 104, y + 24), 10, DARK)
        for place, digit in enumerate(f"{int(option):04b}"):
            disc(pen, (x0 + 29 * place, y), 12, LIT if digit == "1" else DARK, WHITE)
        return image

    asked = "From left to right the lamps are worth 8, 4, 2 and 1. Which number is lit?"
    return TextOptions(asked, rng.sample([str(number) for number in range(16)], 4), paint)


def _head(pen: Pen, centre: Point, colour: RGB) -> None:
    _box(pen, centre, 12, (-1, -0.8, 1, 0.9), colour)
    for x in (-0.4, 0.4):
        disc(pen, scaled(((x, -0.1),), centre, 12)[0], 3, WHITE)


STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
Cell = tuple[int, int]


def _robot(rng: random.Random) -> PictureOptions:
    """Where is the robot after it has followed the arrows?"""
    ends = rng.sample([(x, y) for x in range(3) for y in range(3)], 3)
    asked = "The robot goes one square for each arrow. Where does it end?"
    return PictureOptions(
        lambda right: asked,
        ends,
        lambda cell: _board(rng, cell, []),
        lambda end: _board(rng, *_way_to(rng, end)),
    )


def _way_to(rng: random.Random, end: Cell) -> tuple[Cell, list[str]]:
    """A random start, and three moves on the board that lead from there to `end`."""
    cell, moves = end, list[str]()
    while len(moves) < 3:
        move = rng.choice(list(STEPS))
        before = (cell[0] - STEPS[move][0], cell[1] - STEPS[move][1])
        if set(before) <= {0, 1, 2}:
            cell, moves = before, [move, *moves]
    return cell, moves


def _board(rng: random.Random, robot: Cell, moves: list[str]) -> Image.Image:
    image, pen = paper(rng)
    x0, y0 = near(rng, (17, 3 if moves else 17), 2)
    for x, y in ((x0 + 31 * column, y0 + 31 * row) for column in range(3) for row in range(3)):
        pen.rectangle((x, y, x + 31, y + 31), WHITE, INK, 2)
    _head(pen, (x0 + 15.5 + 31 * robot[0], y0 + 15.5 + 31 * robot[1]), any_colour(rng))
    for place, move in enumerate(moves):
        middle = (x0 + 15.5 + 31 * place, 112)
        arrow(pen, ray(middle, SIDES[move], -11), ray(middle, SIDES[move], 13), INK, 6)
    return image


def _skill(
    name: str, grade: str, needs: str, item: Callable[[random.Random], Item], hard: bool = False
) -> Skill:
    return Skill(name, "technology", grade, needs, hard, item)


SKILLS: tuple[Skill, ...] = (
    _skill("pointer-on-the-screen", "pre-k", "relation", _cursor),
    _skill("tablet-orientation", "grade-3", "recognition", _orientation),
    _skill("name-the-icon", "kindergarten", "recognition", _name_icon),
    _skill("player-button", "kindergarten", "recognition", _player),
    _skill("find-the-battery", "grade-1", "reading", _battery),
    _skill("arrow-key", "grade-1", "reading", _arrow_key),
    _skill("speaker-volume", "grade-1", "recognition", _volume),
    _skill("signal-bars", "grade-2", "counting", _signal),
    _skill("icon-for-the-job", "grade-2", "recognition", _use_icon),
    _skill("switches-on-or-off", "grade-2", "reading", _switches),
    _skill("plug-and-port", "grade-3", "relation", _plug),
    _skill("type-of-chart", "grade-5", "recognition", _chart),
    _skill("spreadsheet-cell", "grade-5", "reading", _table_cell),
    _skill("mixing-screen-lights", "grade-6", "relation", _mixing),
    _skill("network-layout", "grade-7", "relation", _network),
    _skill("robot-follows-arrows", "grade-5", "relation", _robot, hard=True),
    _skill("binary-lamps", "grade-8", "reading", _lamps, hard=True),
)

"""Science skills: weather, plants and animals, forces, light, Earth and the sky, matter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageDraw, ImageOps

from clipstem.bank.canvas import (
    COLOURS,
    INK,
    RGB,
    Pen,
    Point,
    any_colour,
    arrow,
    block,
    corners,
    disc,
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

BROWN: RGB = (120, 78, 40)
GREY: RGB = (140, 145, 155)
WATER: RGB = (90, 165, 230)
GRASS: RGB = (110, 175, 80)
NIGHT: RGB = (22, 24, 52)

SEASONS = ("spring", "summer", "autumn", "winter")
CROWNS: dict[str, RGB] = {
    "spring": (245, 165, 195),
    "summer": (30, 130, 50),
    "autumn": (225, 110, 25),
}


def _seasons(rng: random.Random) -> Item:
    """Name the season that a tree shows."""
    problem = rng.choice(("Which season does this tree show?", "What time of the year is it here?"))
    return TextOptions(problem, some(rng, SEASONS, 2, 4), partial(_season_tree, rng))


def _season_tree(rng: random.Random, season: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 102), 8)
    ground = {"winter": (205, 222, 245), "autumn": (190, 150, 90)}.get(season, GRASS)
    pen.rectangle((0, y, SIDE, SIDE), ground)
    block(pen, (x, y), 12, 42, BROWN)
    if season in CROWNS:
        fill = shaded(CROWNS[season], rng.uniform(0.9, 1.05))
        disc(pen, (x, y - 58), rng.randint(26, 34), fill)
    else:
        for lean in (-130, -105, -75, -50):
            pen.line([(x, y - 40), ray((x, y - 40), lean, 44)], BROWN, 5)
    if season in ("autumn", "winter"):
        for leaf in spots(rng, 9, (4, 6, 124, 126), 20):
            disc(pen, leaf, 4, CROWNS.get(season, (120, 165, 225)), None)
    return image


SKIES = ("sunny", "cloudy", "rainy", "snowy", "windy", "stormy")


def _weather(rng: random.Random) -> Item:
    """Say what the weather is like."""
    problem = rng.choice(("What is the weather like in the picture?", "Which weather is shown?"))
    return TextOptions(problem, some(rng, SKIES, 3, 5), partial(_sky, rng))


WEATHER_FOR = {
    "sunny": "On which day do you need sunglasses and a sun hat?",
    "rainy": "On which day do you need an umbrella for the rain?",
    "snowy": "On which day can you build a snowman?",
    "windy": "On which day is the strong wind best for flying a kite?",
}


def _dress_for_the_weather(rng: random.Random) -> Item:
    """Find the weather that a thing is made for."""
    options = some(rng, tuple(WEATHER_FOR), 2, 4)
    return PictureOptions(WEATHER_FOR.__getitem__, options, partial(_sky, rng))


def _sky(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 46), 8)
    if kind == "sunny":
        pen.polygon(scaled(corners(12, rng.randint(0, 29), 0.66), (x, y + 18), 50), (250, 190, 0))
        return image
    if kind == "windy":
        for row in range(4):
            start = rng.randint(4, 24)
            wave = [(start + t, y - 14 + 24 * row + 6 * math.sin(t / 9)) for t in range(96)]
            pen.line(wave, (110, 140, 165), 5)
        return image
    fill = shaded(GREY, 0.55 if kind == "stormy" else 1.1)
    for dx, dy, radius in ((-28, 4, 18), (0, -8, 26), (28, 4, 18), (-12, 8, 18), (12, 8, 18)):
        disc(pen, (x + dx, y + dy), radius, fill, None)
    if kind == "stormy":
        bolt = ((0, -1), (-0.7, 0.3), (-0.1, 0.3), (-0.4, 1.3), (0.7, -0.1), (0.1, -0.1), (0.4, -1))
        pen.polygon(scaled(bolt, (x, y + 46), 24), (250, 195, 0))
    elif kind != "cloudy":
        for drop in spots(rng, 10, (int(x) - 44, int(y) + 28, int(x) + 46, int(y) + 74), 15):
            _drop(pen, drop, kind)
    return image


def _drop(pen: Pen, at: Point, kind: str) -> None:
    if kind == "rainy":
        pen.line([ray(at, -70, 8), ray(at, 110, 8)], (20, 80, 210), 4)
        return
    for angle in (0, 60, 120):
        pen.line([ray(at, angle, -7), ray(at, angle, 7)], (95, 165, 215), 3)


def _ladybird_spots(rng: random.Random) -> Item:
    """Count the spots of a ladybird."""
    problem = rng.choice(("How many black spots has this ladybird?", "Count the black spots."))
    options = some(rng, [f"{count} spots" for count in range(2, 7)], 2, 5)
    return TextOptions(problem, options, partial(_ladybird, rng))


def _ladybird(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 70), 5)
    disc(pen, (x, y - 40), 17, INK)
    shell = COLOURS[rng.choice(("red", "orange", "yellow"))]
    pen.ellipse((x - 45, y - 46, x + 45, y + 46), shaded(shell, rng.uniform(0.9, 1.1)), INK, 3)
    pen.line([(x, y - 46), (x, y + 46)], INK, 3)
    places = [(side * 21, row) for side in (-1, 1) for row in (-25, 0, 25)]
    for dx, dy in rng.sample(places, int(option.split()[0])):
        disc(pen, near(rng, (x + dx, y + dy), 1), 8, INK)
    return image


LEGS = {
    4: "Which toy animal has 4 legs, like a lizard?",
    6: "Which toy animal has 6 legs, like every insect?",
    8: "Which toy animal has 8 legs, like every spider?",
    10: "Which toy animal has 10 legs, like a crab?",
}


def _count_the_legs(rng: random.Random) -> Item:
    """Find the animal with a number of legs."""
    return PictureOptions(LEGS.__getitem__, some(rng, tuple(LEGS), 2, 4), partial(_crawler, rng))


def _crawler(rng: random.Random, legs: int) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 68), 5)
    fill, rows = shaded(any_colour(rng), rng.uniform(0.7, 0.9)), legs // 2
    for row in range(rows):
        dy = 76 * ((row + 0.5) / rows - 0.5)
        for side in (-1, 1):
            knee = (x + side * 36, y + dy - 4)
            pen.line([(x, y + dy * 0.8), knee, (x + side * 50, y + dy + 5)], fill, 5)
    disc(pen, (x, y - 42), 13, fill, None)
    pen.ellipse((x - 20, y - 38, x + 20, y + 40), fill)
    return image


DEPTHS = {
    "It floats on the water.": 0.0,
    "It sinks to the bottom.": 1.0,
    "It stays halfway down in the water.": 0.5,
}


def _sink_or_float(rng: random.Random) -> Item:
    """Say whether a thing floats or sinks."""
    problem = rng.choice(("What does this object do in the water?", "Does the object sink?"))
    return TextOptions(problem, some(rng, tuple(DEPTHS), 2, 3), partial(_water_tank, rng))


def _water_tank(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    left, top, level = rng.randint(6, 18), rng.randint(10, 22), rng.randint(42, 50)
    pen.rectangle((left, level, left + 102, 116), WATER)
    pen.line([(left, top), (left, 117), (left + 102, 117), (left + 102, top)], INK, 4)
    at = (rng.randint(left + 22, left + 80), level + DEPTHS[option] * (102 - level))
    shape = rng.choice(("circle", "square", "hexagon", "heart"))
    mark(pen, shape, at, 13, COLOURS[rng.choice(("red", "yellow", "orange", "purple"))])
    return image


PHASES = {
    "new moon": 0,
    "waxing crescent": 50,
    "first quarter": 90,
    "waxing gibbous": 130,
    "full moon": 180,
    "waning gibbous": 230,
    "last quarter": 270,
    "waning crescent": 310,
}


def _phases_of_the_moon(rng: random.Random) -> Item:
    """Name a phase of the moon."""
    problem = "Which phase of the moon is this, seen from the northern half of the Earth?"
    return TextOptions(problem, some(rng, tuple(PHASES), 3, 5), partial(_moon, rng))


def _moon(rng: random.Random, phase: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), shaded(NIGHT, rng.uniform(0.6, 1.2)))
    pen, (x, y) = ImageDraw.Draw(image), near(rng, (64, 64), 10)
    for star in spots(rng, 14, (0, 0, SIDE, SIDE), 16):
        disc(pen, star, 1, (250, 250, 220), None)
    radius, angle = rng.randint(38, 46), PHASES[phase]
    disc(pen, (x, y), radius, (66, 68, 86), None)
    side = 1 if angle <= 180 else -1  # the waxing moon is lit on its right
    for row in range(-radius, radius + 1):
        half = math.sqrt(radius**2 - row**2)
        edges = sorted((x + side * half, x + side * half * math.cos(math.radians(angle))))
        if angle:
            pen.line([(edges[0], y + row), (edges[1], y + row)], (250, 240, 190))
    return image


def _read_the_thermometer(rng: random.Random) -> Item:
    """Read a temperature off a thermometer."""
    problem = rng.choice(("What temperature does the thermometer show?", "How warm is it?"))
    options = some(rng, [f"{degrees} °C" for degrees in range(0, 50, 10)], 3, 5)
    return TextOptions(problem, options, partial(_thermometer, rng))


def _thermometer(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (50, 90), 3)
    x += rng.randint(-12, 12)
    red = shaded(COLOURS["red"], rng.uniform(0.85, 1.1))
    pen.rounded_rectangle((x - 9, y - 84, x + 9, y + 10), 9, (255, 255, 255), INK, 2)
    disc(pen, (x, y + 16), 15, red)
    top = y - 1.85 * int(option.split()[0])
    pen.rectangle((x - 5, top, x + 5, y + 12), red)
    for mark_at in range(0, 50, 10):
        pen.line([(x + 9, y - 1.85 * mark_at), (x + 19, y - 1.85 * mark_at)], INK, 3)
        label(pen, (x + 33, y - 1.85 * mark_at), str(mark_at), 17)
    return image


SUNS = {"low on the left": 1, "low on the right": -1, "high above the tree": 0}


def _where_is_the_sun(rng: random.Random) -> Item:
    """Tell the sun's place from a shadow."""
    problem = rng.choice(("Look at the tree's shadow. Where is the sun?", "Where is the sun now?"))
    return TextOptions(problem, some(rng, tuple(SUNS), 2, 3), partial(_shadow, rng))


def _shadow(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 92), 8)
    pen.rectangle((0, y - 10, SIDE, SIDE), shaded(GRASS, rng.uniform(1.1, 1.3)))
    dark, way = (60, 80, 60), SUNS[option]
    if way:
        pen.line([(x, y), (x + way * 26, y + 10)], dark, 9)
        pen.ellipse((x + way * 36 - 18, y + 2, x + way * 36 + 18, y + 26), dark)
    else:
        pen.ellipse((x - 20, y - 6, x + 20, y + 8), dark)
    block(pen, (x, y), 10, 40, BROWN)
    disc(pen, (x, y - 54), rng.randint(20, 26), shaded(COLOURS["green"], rng.uniform(0.8, 1.2)))
    return image


def _states_of_matter(rng: random.Random) -> Item:
    """Tell a solid, a liquid and a gas apart by their particles."""
    problem = "The dots are the particles in a jar. What does the jar hold?"
    return TextOptions(
        problem, some(rng, ("a solid", "a liquid", "a gas"), 2, 3), partial(_jar, rng)
    )


def _jar(rng: random.Random, state: str) -> Image.Image:
    image, pen = paper(rng)
    left, foot = rng.randint(8, 20), rng.randint(112, 120)
    fill = any_colour(rng)
    grid: list[Point] = [(left + 22 + 14 * (k % 5), foot - 9 - 14 * (k // 5)) for k in range(20)]
    if state == "a liquid":
        rows = [(left + 9 + 13.7 * x, foot - 10 - 12 * y) for x in range(7) for y in range(4)]
        grid = [near(rng, particle, 3) for particle in rows]
    elif state == "a gas":
        grid = spots(rng, 8, (left + 4, foot - 100, left + 96, foot - 4), 23)
    for particle in grid:
        disc(pen, particle, 6, fill)
    pen.line([(left, 8), (left, foot), (left + 100, foot), (left + 100, 8)], INK, 4)
    return image


def _hunter(rng: random.Random) -> Item:
    """Tell which fish can eat the others: the biggest."""
    problem = "Fish eat fish smaller than themselves. Which fish is the hunter here?"
    colours = some(rng, tuple(COLOURS), 2, 3)
    return TextOptions(
        problem, [f"the {colour} fish" for colour in colours], partial(_pond, rng, colours)
    )


def _pond(rng: random.Random, colours: list[str], option: str) -> Image.Image:
    image, pen = paper(rng)
    hunter, on_top = option.split()[1], rng.random() < 0.5
    for place, name in enumerate(sorted(colours, key=lambda name: name != hunter)):
        y, size = (27, 75, 106)[place], 10 if place else 25
        centre = (rng.randint(44, 80) if place else 60, y if on_top else SIDE - y)
        _fish(pen, centre, size * rng.uniform(0.88, 1.08), COLOURS[name])
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _fish(pen: Pen, at: Point, size: float, fill: RGB) -> None:
    pen.polygon(scaled(((1.2, 0), (2.3, -0.8), (2.3, 0.8)), at, size), fill, INK)
    pen.ellipse(scaled(((-1.6, -0.9), (1.6, 0.9)), at, size), fill, INK, 2)
    disc(pen, (at[0] - size, at[1] - size / 4), size / 6, INK)


MAGNETS = {"They pull each other together.": True, "They push each other apart.": False}


def _attraction(rng: random.Random) -> Item:
    """Tell whether two magnets attract or repel: it takes both facing poles."""
    problem = "What do these two magnets do when they come close?"
    return TextOptions(problem, tuple(MAGNETS), partial(_magnets, rng))


def _magnets(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 64), 4)
    first = rng.choice(("NS", "SN"))
    second = first if MAGNETS[option] else first[::-1]
    for start, poles in ((x - 58, first), (x + 8, second)):
        drop = rng.randint(-4, 4)
        for half, pole in enumerate(poles):
            fill = COLOURS["red" if pole == "N" else "blue"]
            block(pen, (start + 12 + 25 * half, y + 17 + drop), 26, 34, fill)
            label(pen, (start + 12 + 25 * half, y + drop), pole, 22, (255, 255, 255))
    return image


ACIDITY: dict[str, RGB] = {
    "pH 1, a strong acid": (215, 40, 40),
    "pH 4, a weak acid": (245, 175, 30),
    "pH 7, neutral": (60, 165, 60),
    "pH 10, a weak base": (40, 100, 210),
    "pH 13, a strong base": (110, 40, 140),
}


def _indicator_colour(rng: random.Random) -> Item:
    """Read the pH of a liquid off an indicator's colour scale."""
    problem = rng.choice(("What is the pH of the liquid in the tube?", "What is in the tube?"))
    return TextOptions(problem, some(rng, tuple(ACIDITY), 3, 5), partial(_test_tube, rng))


def _test_tube(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, level = rng.randint(34, 94), rng.randint(26, 46)
    pen.rounded_rectangle((x - 17, 6, x + 17, 86), 17, (252, 252, 255), INK, 2)
    pen.rounded_rectangle(
        (x - 14, level, x + 14, 83), 14, shaded(ACIDITY[option], rng.uniform(0.9, 1.1))
    )
    for place, (name, fill) in enumerate(ACIDITY.items()):
        block(pen, (14 + 25 * place, 106), 24, 14, fill)
        label(pen, (14 + 25 * place, 117), name.split(",")[0][3:], 15)
    return image


def _oldest_rock_layer(rng: random.Random) -> Item:
    """Tell the oldest of undisturbed rock layers: the lowest."""
    problem = "These rock layers were never disturbed. Which layer is the oldest?"
    colours = some(rng, tuple(COLOURS), 3, 4)
    return TextOptions(
        problem, [f"the {name} layer" for name in colours], partial(_rocks, rng, colours)
    )


def _rocks(rng: random.Random, colours: list[str], option: str) -> Image.Image:
    image, pen = paper(rng)
    oldest = option.split()[1]
    rows = [*rng.sample([name for name in colours if name != oldest], len(colours) - 1), oldest]
    top, phase = rng.randint(12, 26), rng.uniform(0, 6.3)
    for row, name in enumerate(rows):
        upper = top + row * (SIDE - top) / len(rows)
        wave = [(x, upper + 5 * math.sin(x / 22 + phase)) for x in range(0, SIDE + 4, 4)]
        pen.polygon([*wave, (SIDE, SIDE), (0, SIDE)], shaded(COLOURS[name], rng.uniform(0.9, 1.05)))
    return image


LIGHT = {
    "reflected": "Which picture shows a mirror that reflects the ray of light?",
    "absorbed": "Which picture shows a black wall that absorbs the ray of light?",
    "refracted": "Which picture shows a ray of light that is bent as it enters water?",
    "transmitted": "Which picture shows light that goes straight through a window?",
}

THINGS: dict[str, tuple[RGB, int, int | None]] = {
    "reflected": ((175, 190, 205), 16, -1),
    "absorbed": (INK, 34, None),
    "refracted": (WATER, 60, 72),
    "transmitted": ((200, 230, 250), 14, 90),
}
"""What a ray meets: its colour, its thickness (px), the ray's way on (degrees; -1: mirrored)."""


def _what_light_does(rng: random.Random) -> Item:
    """Find the picture where light is reflected, absorbed, refracted or transmitted."""
    return PictureOptions(LIGHT.__getitem__, some(rng, tuple(LIGHT), 2, 4), partial(_light, rng))


def _light(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), beam = near(rng, (64, 74), 6), shaded((240, 120, 0), rng.uniform(0.9, 1.05))
    fill, thick, leave = THINGS[kind]
    lean = -rng.randint(128, 136) if kind in ("reflected", "refracted") else -90
    block(pen, (64, y + thick), 108, thick, fill)
    pen.line([ray((x, y), lean, 80), (x, y)], beam, 6)
    if leave is not None:
        arrow(pen, (x, y), ray((x, y), leave if leave > 0 else -180 - lean, 48), beam, 6)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


STAGES = ("egg", "caterpillar", "chrysalis", "butterfly")


def _life_cycle_next(rng: random.Random) -> Item:
    """Find the next stage in a butterfly's life."""
    problem = "Which picture shows the next stage in the life cycle of the butterfly?"
    return PictureOptions(
        lambda _: problem,
        some(rng, STAGES, 2, 4),
        partial(_stage, rng),
        lambda right: _stage(rng, STAGES[STAGES.index(right) - 1]),
    )


def _stage(rng: random.Random, stage: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 66), 8), any_colour(rng)
    if stage == "butterfly":
        for side in (-1, 1):
            disc(pen, (x + side * 25, y - 18), 23, fill)
            disc(pen, (x + side * 19, y + 20), 17, fill)
        block(pen, (x, y + 36), 8, 72, INK)
        return image
    if stage == "chrysalis":
        pen.line([(0, y - 46), (SIDE, y - 46)], BROWN, 8)
        case = ((0, -1), (0.5, -0.4), (0.4, 0.4), (0, 1), (-0.4, 0.4), (-0.5, -0.4))
        pen.polygon(scaled(case, (x, y), 46), shaded((150, 140, 60), rng.uniform(0.8, 1.2)), INK)
        return image
    pen.polygon(scaled(((-1, 0.2), (0, -0.4), (1, 0.2), (0, 0.8)), (x, y), 54), (60, 150, 60), INK)
    if stage == "egg":
        disc(pen, (x, y + 6), 10, (255, 250, 225))
    else:
        for part in range(5):
            disc(pen, (x - 36 + 18 * part, y - 14 - 8 * (part % 2)), 13, (170, 205, 40))
    return image


FLIPS = {
    "same": None,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "half turn": Image.Transpose.ROTATE_180,
}


def _mirror_image(rng: random.Random) -> Item:
    """Find what a mirror beside a flag shows."""
    problem = "A mirror stands beside this flag. Which picture shows its reflection?"
    fill, corner = any_colour(rng), any_colour(rng)
    flag = partial(_flag, rng, fill, corner)
    return PictureOptions(
        lambda _: problem,
        some(rng, tuple(FLIPS), 3, 4),
        flag,
        lambda right: ImageOps.mirror(flag(right)),
    )


def _flag(rng: random.Random, fill: RGB, corner: RGB, flip: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (38, 116), 6)
    block(pen, (x, y), 8, 100, INK)
    pen.polygon([(x + 4, y - 100), (x + 66, y - 76), (x + 4, y - 46)], fill, INK)
    disc(pen, (x + 16, y - 20), 10, corner)
    way = FLIPS[flip]
    return image if way is None else image.transpose(way)


def _skill(
    name: str, grade: str, needs: str, item: Callable[[random.Random], Item], hard: bool = False
) -> Skill:
    return Skill(name, "science", grade, needs, hard, item)


SKILLS: tuple[Skill, ...] = (
    _skill("seasons", "pre-k", "recognition", _seasons),
    _skill("weather", "pre-k", "recognition", _weather),
    _skill("dress-for-the-weather", "kindergarten", "recognition", _dress_for_the_weather),
    _skill("ladybird-spots", "kindergarten", "counting", _ladybird_spots),
    _skill("sink-or-float", "grade-1", "recognition", _sink_or_float),
    _skill("big-fish", "grade-1", "relation", _hunter),
    _skill("where-is-the-sun", "grade-1", "relation", _where_is_the_sun),
    _skill("count-the-legs", "grade-2", "counting", _count_the_legs),
    _skill("life-cycle-next", "grade-2", "relation", _life_cycle_next),
    _skill("read-the-thermometer", "grade-2", "reading", _read_the_thermometer),
    _skill("phases-of-the-moon", "grade-3", "recognition", _phases_of_the_moon),
    _skill("magnets", "grade-4", "relation", _attraction, hard=True),
    _skill("mirror-image", "grade-4", "relation", _mirror_image, hard=True),
    _skill("states-of-matter", "grade-5", "recognition", _states_of_matter),
    _skill("oldest-rock-layer", "grade-6", "relation", _oldest_rock_layer),
    _skill("indicator-colour", "grade-7", "reading", _indicator_colour),
    _skill("what-light-does", "grade-8", "recognition", _what_light_does),
)

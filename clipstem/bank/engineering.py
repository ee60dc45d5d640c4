"""Engineering skills: structures, machines, forces on parts, gauges, signs, circuits, plans."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageOps

from clipstem.bank.canvas import (
    COLOURS,
    INK,
    RGB,
    Point,
    any_colour,
    arrow,
    block,
    corners,
    disc,
    label,
    near,
    paper,
    ray,
    scaled,
    shaded,
    some,
)
from clipstem.bank.skill import SIDE, Item, PictureOptions, Skill, TextOptions

STEEL: RGB = (120, 130, 145)
WOOD: RGB = (190, 130, 70)
WATER: RGB = (80, 155, 225)
WHITE: RGB = (255, 255, 255)

LAMPS = {
    "Stop and wait.": "red",
    "Get ready to stop.": "yellow",
    "Go if the road is clear.": "green",
}


def _traffic_light(rng: random.Random) -> Item:
    """Say what a traffic light tells the driver."""
    problem = rng.choice(("What should a driver do at this light?", "What does this light mean?"))
    return TextOptions(problem, some(rng, tuple(LAMPS), 2, 3), partial(_lamps, rng))


def _lamps(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 64), 6)
    x += rng.randint(-20, 20)
    block(pen, (x, SIDE), 12, 20, STEEL)
    block(pen, (x, y + 52), 42, 104, (50, 50, 60))
    for place, name in enumerate(LAMPS.values()):
        lit = name == LAMPS[option]
        fill = shaded(COLOURS[name], rng.uniform(1.0, 1.15)) if lit else (95, 95, 100)
        disc(pen, (x, y - 33 + 33 * place), 15, fill)
    return image


def _pillars(rng: random.Random) -> Item:
    """Count the pillars under a bridge."""
    problem = rng.choice(("How many pillars hold up this bridge?", "Count the bridge's pillars."))
    options = some(rng, [f"{count} pillars" for count in range(2, 7)], 3, 5)
    return TextOptions(problem, options, partial(_pillared_bridge, rng))


def _pillared_bridge(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    count, deck, fill = int(option.split()[0]), rng.randint(36, 56), any_colour(rng)
    pen.rectangle((0, 104, SIDE, SIDE), WATER)
    for place in range(count):
        x = 14 + 100 * (place + 0.5) / count + rng.randint(-2, 2)
        block(pen, (x, rng.randint(108, 112)), 9, 108 - deck, fill)
    block(pen, (64, deck + 8), 124, 14, shaded(fill, 0.7))
    return image


def _one_higher(rng: random.Random) -> Item:
    """Find the tower that has one block more."""
    problem = "One more block is put on this tower. Which picture shows it then?"
    tower = partial(_tower, rng)
    return PictureOptions(
        lambda _: problem, some(rng, range(2, 7), 2, 4), tower, lambda right: tower(right - 1)
    )


def _tower(rng: random.Random, height: int) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 116), 6)
    for level in range(height):
        fill = COLOURS[("red", "yellow")[level % 2]]
        block(pen, (x + rng.randint(-3, 3), y - 17 * level), 36, 18, fill)
    return image


LEANS = {
    "It leans to the left.": -1,
    "It leans to the right.": 1,
    "It stands straight up.": 0,
}


def _leaning(rng: random.Random) -> Item:
    """Tell which way a tower leans."""
    problem = rng.choice(("Is this tower built straight?", "How does this tower stand?"))
    return TextOptions(problem, some(rng, tuple(LEANS), 2, 3), partial(_leaning_tower, rng))


def _leaning_tower(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 112), 4)
    half, lean, height = rng.randint(14, 19), LEANS[option] * rng.randint(22, 32), 96
    pen.rectangle((0, y, SIDE, SIDE), (150, 190, 110))
    sides = [
        (x - half, y),
        (x + half, y),
        (x + half + lean, y - height),
        (x - half + lean, y - height),
    ]
    pen.polygon(sides, any_colour(rng), INK)
    for floor in (0.2, 0.5, 0.8):
        block(pen, (x + lean * floor, y - height * floor + 9), 10, 16, WHITE)
    return image


TIPS = {"the left end": (20, 12), "the right end": (12, 20), "neither, it stays level": (17, 17)}


def _seesaw(rng: random.Random) -> Item:
    """Tell which end of a seesaw goes down."""
    problem = "Both blocks are of the same wood. Which end of the seesaw will go down?"
    return TextOptions(problem, some(rng, tuple(TIPS), 2, 3), partial(_loaded_seesaw, rng))


def _loaded_seesaw(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 84), 6)
    pen.polygon([(x, y), (x - 20, y + 32), (x + 20, y + 32)], STEEL, INK)
    block(pen, (x, y + 4), 112, 8, shaded(WOOD, 0.8))
    fill, grow = any_colour(rng), rng.uniform(0.9, 1.15)
    for side, size in zip((-1, 1), TIPS[option], strict=True):
        block(pen, (x + side * 34, y - 4), 2 * size * grow, 2 * size * grow, fill)
    return image


SIGNS = {
    "warning": "Which sign warns people of a danger ahead?",
    "ban": "Which sign says that something is not allowed?",
    "order": "Which sign tells workers what they must wear or do?",
    "help": "Which sign shows where to find first aid?",
}


def _signs(rng: random.Random) -> Item:
    """Find the safety sign with a meaning."""
    return PictureOptions(SIGNS.__getitem__, some(rng, tuple(SIGNS), 2, 4), partial(_sign, rng))


def _sign(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), size = near(rng, (64, 64), 8), rng.randint(40, 50)
    if kind == "warning":
        pen.polygon(scaled(corners(3), (x, y + 8), size + 4), INK)
        pen.polygon(scaled(corners(3), (x, y + 8), size - 12), COLOURS["yellow"])
        label(pen, (x, y + 8), "!", 34)
    elif kind == "ban":
        red = shaded(COLOURS["red"], rng.uniform(0.9, 1.1))
        disc(pen, (x, y), size, red, None)
        disc(pen, (x, y), size - 11, WHITE, None)
        pen.line([ray((x, y), 45, size - 6), ray((x, y), 225, size - 6)], red, 11)
    elif kind == "order":
        disc(pen, (x, y), size, COLOURS["blue"], None)
        disc(pen, (x, y - 14), 10, WHITE, None)
        pen.pieslice(scaled(((-1, -1), (1, 1)), (x, y + 24), 24), 180, 360, WHITE)
    else:
        block(pen, (x, y + size), 2 * size, 2 * size, COLOURS["green"])
        pen.line([(x - 28, y), (x + 28, y)], WHITE, 18)
        pen.line([(x, y - 28), (x, y + 28)], WHITE, 18)
    return image


RAMPS = {
    "flat": "Which picture shows a loading platform with no slope at all?",
    "gentle": "Which ramp has a gentle slope that suits a wheelchair?",
    "steep": "Which ramp is very steep, so that much force is needed?",
}


def _ramps(rng: random.Random) -> Item:
    """Find a ramp by its slope."""
    return PictureOptions(RAMPS.__getitem__, some(rng, tuple(RAMPS), 2, 3), partial(_ramp, rng))


def _ramp(rng: random.Random, slope: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 108), 6), any_colour(rng)
    if slope == "flat":
        block(pen, (x, y), 100, rng.randint(18, 40), fill)
        return image
    rise, run = (rng.randint(20, 28), 104) if slope == "gentle" else (rng.randint(84, 94), 62)
    pen.polygon([(x - run / 2, y), (x + run / 2, y), (x + run / 2, y - rise)], fill, INK)
    pen.line([(0, y), (SIDE, y)], INK, 3)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


MACHINES = ("a lever", "a pulley", "an inclined plane", "a wheel and axle", "a screw")


def _machines(rng: random.Random) -> Item:
    """Name a simple machine."""
    problem = rng.choice(("Which simple machine is this?", "Which simple machine does work here?"))
    return TextOptions(problem, some(rng, MACHINES, 3, 5), partial(_machine, rng))


def _machine(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 64), 6), any_colour(rng)
    if kind == "a lever":
        pen.polygon([(x, y + 14), (x - 16, y + 42), (x + 16, y + 42)], STEEL, INK)
        pen.line([(x - 54, y + 32), (x + 54, y - 4)], WOOD, 8)
        block(pen, (x - 42, y + 24), 26, 26, fill)
    elif kind == "a pulley":
        pen.line([(x, 0), (x, y - 20)], INK, 6)
        disc(pen, (x, y - 20), 22, STEEL)
        for side, end in ((-22, y + 24), (22, y + 50)):
            pen.line([(x + side, y - 20), (x + side, end)], WOOD, 5)
        block(pen, (x - 22, y + 52), 30, 28, fill)
    elif kind == "an inclined plane":
        pen.polygon([(x - 56, y + 44), (x + 56, y + 44), (x + 56, y - 16)], STEEL, INK)
        pen.polygon(scaled(corners(4, 16), (x + 8, y - 7), 22), fill, INK)
    elif kind == "a wheel and axle":
        disc(pen, (x, y), 46, fill)
        disc(pen, (x, y), 35, WHITE)
        for spoke in range(rng.randint(0, 44), 360, 45):
            pen.line([(x, y), ray((x, y), spoke, 36)], INK, 4)
        disc(pen, (x, y), 13, STEEL)
    else:
        block(pen, (x, y - 30), 56, 14, fill)
        block(pen, (x, y + 50), 22, 80, STEEL)
        for thread in range(5):
            pen.line([(x - 20, y - 14 + 14 * thread), (x + 20, y - 24 + 14 * thread)], INK, 6)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


LEVELS = {
    "empty": 0.0,
    "a quarter full": 0.25,
    "half full": 0.5,
    "three quarters full": 0.75,
    "full": 1.0,
}


def _tank_level(rng: random.Random) -> Item:
    """Read how full a tank is."""
    problem = rng.choice(("How full is the water tank?", "What does the tank's scale show?"))
    return TextOptions(problem, some(rng, tuple(LEVELS), 3, 5), partial(_tank, rng))


def _tank(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), half, height = near(rng, (58, 114), 5), rng.randint(28, 42), rng.randint(88, 100)
    block(pen, (x, y), 2 * half, height, WHITE)
    if LEVELS[option]:
        block(pen, (x, y), 2 * half, height * LEVELS[option], shaded(WATER, rng.uniform(0.8, 1.1)))
    for quarter in range(5):
        at = y - height * quarter / 4
        pen.line([(x + half, at), (x + half + (16 if quarter % 2 == 0 else 9), at)], INK, 3)
    return image


def _gauge(rng: random.Random) -> Item:
    """Read a pressure gauge."""
    problem = rng.choice(("What pressure does the gauge show?", "Where does the needle point?"))
    options = some(rng, [f"{value} bar" for value in range(5)], 3, 5)
    return TextOptions(problem, options, partial(_dial, rng))


def _dial(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    centre, radius = near(rng, (64, 66), 4), rng.randint(52, 56)
    disc(pen, centre, radius, shaded(any_colour(rng), rng.uniform(0.8, 1.2)))
    disc(pen, centre, radius - 5, WHITE)
    for value in range(5):
        label(pen, ray(centre, 150 + 60 * value, radius - 16), str(value), 22)
    arrow(pen, centre, ray(centre, 150 + 60 * int(option[0]), radius - 28), COLOURS["red"], 6)
    disc(pen, centre, 7, INK)
    return image


CIRCUITS = {
    "Yes, the current can flow all the way round.": False,
    "No, there is a gap where the switch is open.": True,
}


def _circuit(rng: random.Random) -> Item:
    """Tell whether the lamp of a circuit lights up."""
    problem = rng.choice(("Does the lamp in this circuit light up?", "Will the lamp be lit?"))
    return TextOptions(problem, tuple(CIRCUITS), partial(_wiring, rng))


def _wiring(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), wire = near(rng, (60, 66), 4), any_colour(rng)
    side = rng.choice((-1, 1)) * 42
    for turn in (-36, 36):
        edge = [(x + side, y + turn / 2), (x + side, y + turn), (x - side, y + turn), (x - side, y)]
        pen.line(edge, wire, 7)
    lever = (x + side + 24, y - 8) if CIRCUITS[option] else (x + side, y - 17)
    pen.line([(x + side, y + 17), lever], INK, 6)
    for end in (-17, 17):
        disc(pen, (x + side, y + end), 5, INK)
    disc(pen, (x, y - 36), 18, WHITE)
    pen.line([ray((x, y - 36), 45, 15), ray((x, y - 36), 225, 15)], INK, 3)
    pen.line([ray((x, y - 36), -45, 15), ray((x, y - 36), 135, 15)], INK, 3)
    block(pen, (x, y + 46), 40, 20, STEEL)
    return image


BRIDGES = ("a beam bridge", "an arch bridge", "a suspension bridge", "a truss bridge")


def _bridges(rng: random.Random) -> Item:
    """Name the type of a bridge."""
    problem = rng.choice(("Which type of bridge is this?", "What is such a bridge called?"))
    return TextOptions(problem, some(rng, BRIDGES, 2, 4), partial(_bridge, rng))


def _bridge(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    y, fill = rng.randint(72, 82), shaded(any_colour(rng), rng.uniform(0.7, 1.0))
    pen.rectangle((0, 110, SIDE, SIDE), WATER)
    if kind == "an arch bridge":
        pen.arc((8, y - 4, 120, y + 76), 180, 360, fill, 12)
    elif kind == "a truss bridge":
        peaks = [(4 + 20 * k, y - (32 if k % 2 else 0)) for k in range(7)]
        pen.line([*peaks, peaks[0]], fill, 5)
        pen.line([peaks[1], peaks[5]], fill, 5)
    else:
        hangs = kind == "a suspension bridge"
        for tower in (30, 98):
            pen.rectangle((tower - 5, y - (58 if hangs else 0), tower + 5, 112), fill)
        cable = [(x, y - 54 + 46 * (1 - ((x - 64) / 34) ** 2)) for x in range(30, 100, 4)]
        if hangs:
            pen.line([(0, y), *cable, (SIDE, y)], INK, 4)
            for at in cable[2:-2:3]:
                pen.line([at, (at[0], y)], INK, 2)
    pen.rectangle((0, y - 4, SIDE, y + 5), fill)
    return image


FRAMES = {
    "stiff": "Which frame keeps its shape when you push its side?",
    "weak": "Which frame has no brace and folds sideways when you push it?",
}


def _frames(rng: random.Random) -> Item:
    """Find the frame that a brace makes stiff."""
    return PictureOptions(FRAMES.__getitem__, tuple(FRAMES), partial(_frame, rng))


def _frame(rng: random.Random, kind: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 64), 8), any_colour(rng)
    wide, high = rng.randint(32, 46), rng.randint(32, 46)
    ends = [(x - wide, y - high), (x + wide, y - high), (x + wide, y + high), (x - wide, y + high)]
    pen.line([*ends, ends[0]], fill, 9)
    if kind == "stiff":
        pen.line(ends[:: rng.choice((2, -2))], shaded(fill, 0.8), 9)
    for end in ends:
        disc(pen, end, 8, STEEL)
    return image


def _belt(rng: random.Random) -> Item:
    """Tell which of two wheels on one belt turns faster."""
    problem = rng.choice(
        ("A belt drives both wheels. Which wheel turns faster?", "Which wheel spins faster here?")
    )
    colours = some(rng, tuple(COLOURS), 2, 2)
    options = [f"the {colour} wheel" for colour in colours]
    options += ["both turn equally fast"][: rng.randint(0, 1)]
    return TextOptions(problem, options, partial(_belt_drive, rng, colours))


def _belt_drive(rng: random.Random, colours: list[str], option: str) -> Image.Image:
    image, pen = paper(rng)
    x, y = near(rng, (64, 64), 5)
    faster = option.split()[1]
    radii = [14 if name == faster else 30 if faster in colours else 23 for name in colours]
    sides = rng.sample((-1, 1), 2)
    wheels = [(x + s * (56 - r), y) for s, r in zip(sides, radii, strict=True)]
    for edge in (-1, 1):
        pen.line([(at, y + edge * r) for (at, _), r in zip(wheels, radii, strict=True)], INK, 5)
    for wheel, radius, name in zip(wheels, radii, colours, strict=True):
        disc(pen, wheel, radius + 2, INK)
        disc(pen, wheel, radius - 2, shaded(COLOURS[name], rng.uniform(0.95, 1.1)))
    return image


def _plan(rng: random.Random) -> Item:
    """Find the building that matches a plan."""
    problem = rng.choice(
        (
            "Which building was built from this plan?",
            "Which picture shows the building of the plan?",
        )
    )
    pool = [(a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]
    options = some(rng, pool, 3, 4)
    while any(_unlike(one, two) < 2 for one in options for two in options if one != two):
        options = some(rng, pool, 3, 4)
    return PictureOptions(
        lambda _: problem, options, partial(_building, rng), partial(_building, rng, plan=True)
    )


def _unlike(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(one, two, strict=True))


def _building(rng: random.Random, heights: tuple[int, ...], plan: bool = False) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 112), 6), any_colour(rng)
    if plan:
        blue = (rng.randint(10, 45), rng.randint(45, 80), rng.randint(115, 165))
        pen.rectangle((0, 0, SIDE, SIDE), blue)
    for column, height in enumerate(heights):
        for level in range(height):
            left, foot = x - 50 + 34 * column, y - 32 * level
            box = (left, foot - 32, left + 34, foot)
            pen.rectangle(box, None if plan else fill, WHITE if plan else INK, 3)
    return image


TURNS = {"clockwise, like a clock": 1, "counterclockwise, against the clock": -1}


def _gears(rng: random.Random) -> Item:
    """Tell which way the last gear of a train turns."""
    problem = "The arrow shows how the top of the left gear moves. How does the right gear turn?"
    return TextOptions(problem, tuple(TURNS), partial(_gear_train, rng))


def _gear_train(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    count, (x, y) = rng.randint(2, 4), near(rng, (64, 76), 5)
    first_turn = TURNS[option] * (-1) ** (count - 1)
    radius, teeth = 56 / count, 10
    for place in range(count):
        centre = (x - 56 + radius * (2 * place + 1), y)
        turn = place % 2 * 180 / teeth
        pen.polygon(_gear(centre, radius, teeth, turn), any_colour(rng), INK)
        disc(pen, centre, 5, INK)
    left, top = x - 56 + radius, y - radius - 14
    arrow(pen, (left - 22 * first_turn, top), (left + 22 * first_turn, top), COLOURS["red"], 7)
    return image


def _gear(centre: Point, radius: float, teeth: int, turn: float) -> list[Point]:
    """A gear's outline, its teeth reaching a little beyond `radius` so that neighbours mesh."""
    step = 360 / teeth
    rims = ((-0.36, 0.86), (-0.2, 1.08), (0.2, 1.08), (0.36, 0.86))
    return [
        ray(centre, turn + step * (tooth + part), radius * rim)
        for tooth in range(teeth)
        for part, rim in rims
    ]


def _balance(rng: random.Random) -> Item:
    """Tell which end of a lever goes down: blocks times distance."""
    problem = "All blocks weigh the same. Which end of the lever goes down?"
    return TextOptions(problem, some(rng, tuple(TIPS), 2, 3), partial(_lever, rng))


def _lever(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill = near(rng, (64, 92), 4), any_colour(rng)
    sign = {20: 1, 12: -1}.get(TIPS[option][0], 0)
    sides = [(blocks, place) for blocks in (1, 2, 3, 4) for place in (1, 2, 3)]
    pairs = [(a, b) for a in sides for b in sides if a != b]
    left, right = rng.choice([(a, b) for a, b in pairs if _torque_sign(a, b) == sign])
    pen.polygon([(x, y), (x - 16, y + 26), (x + 16, y + 26)], STEEL, INK)
    block(pen, (x, y + 3), 118, 6, WOOD)
    for side, (blocks, place) in ((-1, left), (1, right)):
        for level in range(blocks):
            block(pen, (x + side * 17 * place, y - 3 - 15 * level), 16, 15, fill)
    return image


def _torque_sign(left: tuple[int, int], right: tuple[int, int]) -> int:
    more = left[0] * left[1] - right[0] * right[1]
    return (more > 0) - (more < 0)


LOADS = {
    "tension: it is pulled longer": (28, 60),
    "compression: it is pressed together": (60, 28),
    "bending: it sags in the middle": None,
    "shear: its halves slide past each other": None,
}


def _loads(rng: random.Random) -> Item:
    """Name the kind of load that acts on a bar."""
    problem = rng.choice(("What kind of load acts on this part?", "How do the forces act on it?"))
    return TextOptions(problem, some(rng, tuple(LOADS), 2, 4), partial(_loaded_bar, rng))


def _loaded_bar(rng: random.Random, option: str) -> Image.Image:
    image, pen = paper(rng)
    (x, y), fill, ends = near(rng, (64, 66), 4), any_colour(rng), LOADS[option]
    if ends:
        block(pen, (x, y + 14), 52, rng.randint(26, 32), fill)
        for side in (-1, 1):
            arrow(pen, (x + side * ends[0], y), (x + side * ends[1], y), INK, 7)
    elif option.startswith("bending"):
        bar = [(x - 54, y), (x - 28, y + 8), (x, y + 11), (x + 28, y + 8), (x + 54, y)]
        pen.line(bar, fill, rng.randint(12, 16), joint="curve")
        arrow(pen, (x, y - 46), (x, y + 2), INK, 7)
        for side in (-48, 48):
            pen.polygon(scaled(corners(3), (x + side, y + 26), 16), STEEL, INK)
    else:
        way, size = rng.choice((-1, 1)), rng.randint(24, 28)
        for row, side in ((-1, way), (1, -way)):
            block(pen, (x + 10 * side, y + (size if row > 0 else 0)), 56, size, fill)
            arrow(pen, (x - 54 * side, y + row * 13), (x - 20 * side, y + row * 13), INK, 7)
    return image


def _skill(
    name: str, grade: str, needs: str, item: Callable[[random.Random], Item], hard: bool = False
) -> Skill:
    return Skill(name, "engineering", grade, needs, hard, item)


SKILLS: tuple[Skill, ...] = (
    _skill("traffic-light", "pre-k", "recognition", _traffic_light),
    _skill("tower-one-block-higher", "pre-k", "counting", _one_higher),
    _skill("count-the-pillars", "kindergarten", "counting", _pillars),
    _skill("leaning-tower", "kindergarten", "recognition", _leaning),
    _skill("seesaw", "grade-1", "relation", _seesaw),
    _skill("how-steep-is-the-ramp", "grade-2", "recognition", _ramps),
    _skill("safety-signs", "grade-2", "recognition", _signs),
    _skill("simple-machines", "grade-3", "recognition", _machines),
    _skill("tank-level", "grade-3", "reading", _tank_level),
    _skill("pressure-gauge", "grade-4", "reading", _gauge),
    _skill("closed-circuit", "grade-4", "recognition", _circuit),
    _skill("building-from-a-plan", "grade-5", "relation", _plan),
    _skill("bridge-types", "grade-5", "recognition", _bridges),
    _skill("stiff-frame", "grade-6", "recognition", _frames),
    _skill("belt-drive", "grade-6", "relation", _belt),
    _skill("gear-train", "grade-7", "relation", _gears, hard=True),
    _skill("lever-balance", "grade-7", "relation", _balance, hard=True),
    _skill("kinds-of-load", "grade-8", "recognition", _loads),
)

"""The questions that `bench.py` measures on: real ones, drawn ones, and a set in STEM's shape."""

from __future__ import annotations

import io
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clipstem import shards
from clipstem.bank import SKILLS
from clipstem.config import PrepareConfig, Source, Verify
from clipstem.images import check_picture
from clipstem.prepare import prepare
from clipstem.question import Kind, Picture, Question
from clipstem.shards import Dataset

SKILL_COUNT, TEXTS_A_SKILL, WORDS_A_TEXT = 448, 20, 17
TEXT_OPTION_PERCENT = 57
OPTION_COUNTS = (2, 2, 3, 3, 4)  # mean 2.8
PICTURE_PX = (320, 240)
WORDS = """
    which of these the a picture shows what is how many use to and in on graph table number line
    shape animal plant object water energy force magnet circuit sound light temperature volume
    area angle triangle square circle fraction decimal ratio slope point map city river rock soil
    cell organ trait offspring parent food chain sun moon planet season weather climate solid
    liquid gas mixture model test design bridge lever wheel ramp spring mass length metre litre
""".split()  # noqa: SIM905


def real_or_drawn(count: int) -> dict[str, list[Question]]:
    """Questions with text options and with picture options, by a name that says their source.

    They are of the realset's validation split where `CLIPSTEM_REALSET` names it, else drawn. Where
    options are pictures the problem's own is left out, because the reference cannot use it.
    """
    folder = os.environ.get("CLIPSTEM_REALSET")
    with tempfile.TemporaryDirectory() as name:
        config = PrepareConfig(out=f"{name}/data", workers=1, verify=Verify.header)
        if folder:
            config = replace(config, source=Source.stem, path=folder)
        else:
            config = replace(config, questions_per_skill={"valid": -(-6 * count // len(SKILLS))})
        prepare(config)
        dataset = shards.open_dataset(config.out)
        questions = dataset.read("valid", range(dataset.size("valid")))
    source = "realset validation" if folder else "drawn (CLIPSTEM_REALSET is not set)"
    texts = [it for it in questions if it.kind is Kind.TEXT_OPTIONS]
    pictures = [
        replace(it, picture=None)
        for it in questions
        if it.kind in (Kind.PICTURE_OPTIONS, Kind.PICTURE_OPTIONS_ON_PICTURE)
    ]
    return {
        f"text options, {source}": texts[:count],
        f"picture options, {source}": pictures[:count],
    }


def stem_shaped(count: int) -> list[Question]:
    """The first questions of a set with STEM's proportions, the same on every machine.

    448 skills with 20 question texts each of 17 words, 57 % of the questions with text options,
    2 to 4 options with mean 2.8; no picture comes twice. Skills follow each other at random, as in
    shuffled shards.
    """
    return [_question(number) for number in range(count)]


def problem(skill: int, text: int) -> str:
    """One of the 20 question texts of a skill."""
    words = random.Random(f"skill {skill}, text {text}").choices(WORDS, k=WORDS_A_TEXT)
    return " ".join(words) + "?"


def _question(number: int) -> Question:
    rng = random.Random(f"question {number}")
    skill, text = rng.randrange(SKILL_COUNT), rng.randrange(TEXTS_A_SKILL)
    # By turns, so that the shares hold in a short set as well.
    has_texts = (number + 1) * TEXT_OPTION_PERCENT // 100 > number * TEXT_OPTION_PERCENT // 100
    count = OPTION_COUNTS[number % len(OPTION_COUNTS)]
    texts = tuple(" ".join(rng.choices(WORDS, k=3)) for _ in range(count))
    return Question(
        id=f"stem-shaped-{number}",
        subject=("science", "technology", "engineering", "math")[skill % 4],
        grade=f"grade-{skill % 8 + 1}",
        skill=f"skill-{skill}",
        problem=problem(skill, text),
        picture=_picture(rng) if has_texts else None,
        options=texts if has_texts else tuple(_picture(rng) for _ in range(count)),
        answer=rng.randrange(count),
        row=number,
    )


def _picture(rng: random.Random) -> Picture:
    """Rectangles of any colour: a PNG of the size that exercise sites use."""
    width, height = PICTURE_PX
    pixels = np.full((height, width, 3), 255, np.uint8)
    for _ in range(12):
        left, top = rng.randrange(width), rng.randrange(height)
        colour = rng.choices(range(256), k=3)
        pixels[top : top + rng.randint(10, 120), left : left + rng.randint(10, 160)] = colour
    return Picture.of(_png(pixels))


def _png(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


BLANK = Picture.of(_png(np.zeros((1, 1, 3), np.uint8)))


def stored(questions: Sequence[Question], folder: Path) -> Dataset:
    """The questions as the `valid` and the `train` split of a prepared folder."""
    folder.mkdir(parents=True)
    samples = [
        shards.encode_sample(
            key, question, [check_picture(p.data, decode=False) for p in question.pictures]
        )
        for key, question in enumerate(questions)
    ]
    splits = ("train", "valid")
    made = [shards.write_shard(folder, f"{split}-000000.tar", split, samples) for split in splits]
    manifest = shards.Manifest(
        format_version=shards.FORMAT_VERSION,
        clipstem_version="",
        source={},
        seed=0,
        max_image_side=None,
        source_rows={split: len(questions) for split in splits},
        questions={split: len(questions) for split in splits},
        skills={split: {} for split in splits},
        skipped={},
        leaks={},
        shared_pictures={},
        data_sha256=shards.hash_of_shards(made),
        shards=tuple(made),
    )
    (folder / shards.MANIFEST).write_text(manifest.to_json())
    return shards.open_dataset(str(folder))

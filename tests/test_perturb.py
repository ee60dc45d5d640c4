"""Perturbations: each changes what it says and nothing else, and answers stay true."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from samples import encoded, question

from clipstem.config import Perturbation
from clipstem.images import decoded
from clipstem.perturb import (
    NO_QUESTION,
    STRENGTHS,
    Change,
    Perturbed,
    blank_picture,
    exchanged,
    misspelt,
    perturb,
    shortened,
    with_pictures,
)
from clipstem.question import ClipstemError, Kind, Picture, Question
from clipstem.scorer import load
from clipstem.shards import open_dataset

ALONE = [name for name in Perturbation if name is not Perturbation.shuffled_pictures]
OF_TEXTS = {Perturbation.typos, Perturbation.case, Perturbation.word_drops}
OF_PICTURES = set(ALONE) - OF_TEXTS - {Perturbation.options_only}


def drawn_picture(number: int, size: tuple[int, int] = (80, 60)) -> Picture:
    """A coloured arrow that points to the right and stands above the middle."""
    image = Image.new("RGB", size, (250, 240 - number, 230))
    paint = ImageDraw.Draw(image)
    paint.polygon([(20, 10), (20, 30), (70, 20)], fill=(200, 30 + 40 * number, 10))
    return Picture.of(encoded(image))


PROBLEM = "What is the name of this animal that does not have 4 legs?"
WITH_TEXTS = question(["a dog", "an eel"], drawn_picture(0), PROBLEM, answer=1)
WITH_PICTURES = question([drawn_picture(1), drawn_picture(2)], None, PROBLEM, answer=0)
ON_PICTURE = question([drawn_picture(1), drawn_picture(2)], drawn_picture(3), PROBLEM, answer=1)
ALL = [WITH_TEXTS, WITH_PICTURES, ON_PICTURE]


def changed(
    name: Perturbation, asked: Question, seed: int = 0, strength: float | None = None
) -> Question:
    return perturb(asked, Change.of(name, strength, seed))


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("asked", ALL, ids=lambda it: it.kind.value)
def test_a_change_is_what_it_says_and_nothing_else(name: Perturbation, asked: Question) -> None:
    found = changed(name, asked)
    for field in ("id", "subject", "grade", "skill", "answer", "row", "kind"):
        assert getattr(found, field) == getattr(asked, field)
    assert len(found.options) == len(asked.options)
    assert (found.problem != asked.problem) == (name not in OF_PICTURES)
    if name in OF_TEXTS:
        assert found.pictures == asked.pictures
    if isinstance(asked.options[0], str) or name is Perturbation.options_only:
        assert found.options == asked.options
    if name in OF_PICTURES:
        assert all(a != b for a, b in zip(found.pictures, asked.pictures, strict=True))


@pytest.mark.parametrize("name", ALONE)
def test_a_change_hangs_on_the_seed_and_the_id_alone(name: Perturbation) -> None:
    assert changed(name, ON_PICTURE, 3) == changed(name, ON_PICTURE, 3)
    seeds = {changed(name, ON_PICTURE, seed).problem for seed in range(20)}
    pictures = {changed(name, ON_PICTURE, seed).pictures for seed in range(20)}
    drawn = len(seeds) > 1 or len(pictures) > 1
    assert drawn == (name in {Perturbation.typos, Perturbation.noise, Perturbation.rotation})


@pytest.mark.parametrize("name", sorted(OF_PICTURES - {Perturbation.blank_picture}, key=str))
def test_a_changed_picture_is_still_the_same_way_up(name: Perturbation) -> None:
    found = changed(name, WITH_TEXTS)
    assert WITH_TEXTS.picture and found.picture
    before = np.asarray(decoded(WITH_TEXTS.picture.data).convert("L"), float)
    image = decoded(found.picture.data).convert("L").resize((80, 60))
    likeness = [
        np.corrcoef(before.ravel(), np.asarray(shown, float).ravel())[0, 1]
        for shown in (
            image,
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            image.transpose(Image.Transpose.ROTATE_180),
        )
    ]
    assert likeness[0] > 0.6 and likeness[0] == max(likeness)


def test_pictures_change_by_the_stated_strengths() -> None:
    grey = Picture.of(encoded(Image.new("RGB", (200, 100), (128,) * 3)))
    asked = question(["a", "b"], grey)

    def shown(name: Perturbation, strength: float | None = None) -> Image.Image:
        found = changed(name, asked, strength=strength).picture
        assert found
        return decoded(found.data)

    noise = np.asarray(shown(Perturbation.noise), float) - 128
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert abs(noise.mean()) < 0.5
    assert shown(Perturbation.crop).size == (180, 90)
    assert shown(Perturbation.crop, strength=0.25).size == (100, 50)
    assert shown(Perturbation.rotation, strength=0).size == (200, 100)
    assert shown(Perturbation.rotation).size > (200, 100)
    for name in (Perturbation.blur, Perturbation.jpeg, Perturbation.greyscale):
        assert shown(name).size == (200, 100)


def test_greyscale_has_no_colour_and_blank_nothing_at_all() -> None:
    found = changed(Perturbation.greyscale, WITH_TEXTS).picture
    assert found
    values = np.asarray(decoded(found.data))
    assert (values.max(axis=2) == values.min(axis=2)).all() and values.std() > 10
    for asked in ALL:
        pictures = changed(Perturbation.blank_picture, asked).pictures
        assert set(pictures) == {blank_picture()}
    assert np.asarray(decoded(blank_picture().data)).std() == 0


def test_options_only_leaves_only_the_options() -> None:
    for asked in ALL:
        found = changed(Perturbation.options_only, asked)
        assert (found.problem, found.options) == (NO_QUESTION, asked.options)
        assert found.picture == (None if asked.picture is None else blank_picture())


def test_transparent_and_palette_pictures_are_taken() -> None:
    image = Image.new("RGBA", (30, 20), (10, 20, 30, 0))
    for shown in (image, image.convert("P"), image.convert("L"), image.convert("1")):
        found = changed(Perturbation.crop, question(["a"], Picture.of(encoded(shown))))
        assert found.picture and Image.open(io.BytesIO(found.picture.data)).mode == "RGB"


def test_a_question_with_a_broken_picture_stays_as_it_is() -> None:
    asked = question(["a"], Picture.of(b"<html>"), id="q7")
    assert changed(Perturbation.blur, asked) == asked


# ---------------------------------------------------------------------------- texts


@given(text=st.text("abcdeé 12,.?", max_size=60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_typos_keep_every_words_letters_ends_and_short_words(
    text: str, share: float, seed: int
) -> None:
    found = misspelt(text, share, np.random.default_rng(seed))
    assert len(found) == len(text)
    for before, after in zip(text.split(" "), found.split(" "), strict=True):
        assert sorted(before) == sorted(after)
        assert before[:1] == after[:1] and before[-1:] == after[-1:]
        if len(before) < 4:
            assert before == after


def test_typos_are_in_the_stated_share_of_words() -> None:
    text = " ".join(["animals"] * 10)
    for share in (0, 0.2, 1):
        found = misspelt(text, share, np.random.default_rng(0))
        assert sum(word != "animals" for word in found.split()) == 10 * share
    assert misspelt("see 1234 aaaa", 1, np.random.default_rng(0)) == "see 1234 aaaa"


def test_small_words_are_dropped_and_what_carries_meaning_is_not() -> None:
    rng = np.random.default_rng(0)
    assert shortened(PROBLEM, 1, rng) == "What name animal not have 4 legs?"
    assert shortened(PROBLEM, 0, rng) == PROBLEM
    assert shortened("Is this the\n  one of 3?", 1, rng) == "one 3?"
    assert shortened("the the", 1, rng) == "the the"
    assert shortened("No more than a third", 1, rng) == "No more than a third"
    assert len(shortened(PROBLEM, 0.5, rng).split()) == len(PROBLEM.split()) - 3


def test_case_leaves_short_words_formulas_and_options() -> None:
    asked = question(["Cobalt", "Co"], drawn_picture(0), "Which metal is Co, not CO2 nor side a?")
    found = changed(Perturbation.case, asked)
    assert found.problem == "WHICH METAL is Co, not CO2 nor SIDE a?"
    assert found.options == asked.options


# ---------------------------------------------------------------------------- exchange


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 99))
def test_everyone_gets_another_ones_of_the_same_sort(names: list[str], seed: int) -> None:
    other = exchanged(names, seed)
    assert sorted(other.tolist()) == list(range(len(names)))
    for place, found in enumerate(other):
        assert names[found] == names[place]
        assert found != place or names.count(names[place]) == 1


def test_shuffled_pictures_are_another_questions(drawn_data: Path) -> None:
    plain = open_dataset(str(drawn_data))
    change = Change.of(Perturbation.shuffled_pictures, None, 0)
    shuffled = pickle.loads(pickle.dumps(Perturbed(plain, change)))
    numbers = np.arange(plain.size("valid"))
    before, after = plain.read("valid", numbers), shuffled.read("valid", numbers)
    assert {asked.kind for asked in before} == set(Kind) - {Kind.TEXT_ONLY}
    for asked, found in zip(before, after, strict=True):
        assert with_pictures(found, asked.pictures) == asked
        assert any(found.pictures == other.pictures for other in before)
    moved = [a.pictures != b.pictures for a, b in zip(before, after, strict=True)]
    assert np.mean(moved) > 0.9  # some questions have the same picture
    backwards = shuffled.read("valid", numbers[::-1])
    assert backwards[::-1] == after == Perturbed(plain, change).read("valid", numbers)


def test_a_perturbed_data_set_is_the_same_but_for_its_questions(drawn_data: Path) -> None:
    plain = open_dataset(str(drawn_data))
    change = Change.of(Perturbation.typos, None, 4)
    typos = Perturbed(plain, change)
    assert (typos.location, typos.manifest) == (plain.location, plain.manifest)
    assert typos.index("valid") == plain.index("valid")
    expected = [perturb(asked, change) for asked in plain.read("valid", range(9))]
    assert typos.read("valid", range(9)) == expected != plain.read("valid", range(9))


# ---------------------------------------------------------------------------- strengths


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_out_of_range_is_refused(name: Perturbation) -> None:
    known = STRENGTHS[name]
    assert known.least <= known.usual <= known.most
    assert Change.of(name, None, 0).strength == known.usual
    with pytest.raises(ClipstemError, match=f"perturb={name.value} it is the {known.unit}"):
        Change.of(name, known.most + 1, 0)
    assert Change.of(name, known.most, 5).facts == {
        "name": name.value,
        "strength": known.most,
        "unit": known.unit,
        "seed": 5,
    }


def test_permuting_the_options_changes_nothing() -> None:
    scorer = load("tiny_vit", device="cpu")
    texts = ["a dog", "an eel", "a very small bird", "7"]
    pictures = [drawn_picture(number).data for number in range(4)]
    rng = np.random.default_rng(0)
    for shown, options in ((pictures[0], texts), (None, pictures), (pictures[0], pictures)):
        probs_K = scorer.score(shown, PROBLEM, options)
        for _ in range(5):
            order = rng.permutation(4)
            found_K = scorer.score(shown, PROBLEM, [options[place] for place in order])
            np.testing.assert_allclose(found_K, probs_K[order], atol=1e-5)
            assert order[found_K.argmax()] == probs_K.argmax()

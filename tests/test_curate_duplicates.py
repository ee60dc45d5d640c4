"""Near-duplicates, against all pairs."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from curating import NOTHING, data, read
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from preparing import row

from clipstem.curate import duplicates, fingerprints
from clipstem.curate.fingerprints import Fingerprints
from clipstem.shards import Dataset


def groups(dataset: Dataset) -> set[frozenset[str]]:
    """The ids of each group of two or more that are the same."""
    questions = read(dataset)
    ids = questions.column("id")
    everything = np.ones(len(questions), np.bool_)
    return {frozenset(ids[group]) for group in duplicates.find(questions).groups(everything)}


def drawing(number: int, side: int = 96) -> Image.Image:
    """A picture of its own for each number: coloured cells on paper."""
    rng = np.random.default_rng(number)
    cells = rng.choice((70, 130, 190), (6, 6, 1)) + rng.integers(-30, 31, (6, 6, 3))
    return Image.fromarray(cells.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def saved(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def with_dot(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.paste((0, 0, 0), (40, 40, 50, 50))
    changed.paste((255, 255, 255), (43, 43, 47, 47))
    return changed


def test_a_question_again_in_other_bytes_letters_and_order_is_the_same(tmp_path: Path) -> None:
    picture = drawing(1)
    pictures = {
        "a.png": saved(picture),
        "b.jpg": saved(picture, "JPEG", quality=88),
        "c.webp": saved(picture.resize((101, 101), Image.Resampling.BICUBIC), "WEBP", quality=90),
        "dot.png": saved(with_dot(picture)),
        "wide.png": saved(picture.resize((96, 80))),
        "other.png": saved(drawing(2)),
    }
    rows = [row(n, image=name, problem="Which one?") for n, name in enumerate(pictures)]
    rows[1] |= {"problem": "WHICH  one ?"}
    rows[2] |= {"options": ["That", "this"]}
    found = groups(data(tmp_path, rows, pictures))
    assert found == {frozenset(("q0", "q1", "q2"))}


def test_a_shape_in_another_shade_is_another_picture(tmp_path: Path) -> None:
    pictures = {}
    for name, shade in (("a.png", 110), ("b.png", 143)):
        paper = Image.new("RGB", (96, 96), (250, 235, 235))
        for top in (18, 66):  # half of a coarse cell each
            paper.paste((shade, 40, 140), (0, top, 96, top + 12))
        pictures[name] = saved(paper)
        pictures[f"{name}.jpg"] = saved(paper, "JPEG", quality=88)
    rows = [row(n, image=name, problem="Which one?") for n, name in enumerate(pictures)]
    found = groups(data(tmp_path, rows, pictures))
    assert found == {frozenset(("q0", "q1")), frozenset(("q2", "q3"))}


def test_other_texts_options_or_kinds_are_other_questions(tmp_path: Path) -> None:
    pictures = {"a.png": saved(drawing(1))}
    rows = [
        row(0, image="a.png", problem="Which one?"),
        row(1, image="a.png", problem="Which two?"),
        row(2, image="a.png", problem="Which one?", options=["this", "those"]),
        row(3, image="a.png", problem="Which one?", options=["this", "that", "those"]),
        row(4, problem="Which one?"),
        row(5, problem="which one?"),
    ]
    assert groups(data(tmp_path, rows, pictures)) == {frozenset(("q4", "q5"))}


def test_letters_case_counts_where_it_tells_options_apart(tmp_path: Path) -> None:
    rows = [
        row(0, problem="Genotype?", options=["AA", "Aa"], answer=0),
        row(1, problem="Genotype?", options=["AA", "aa"], answer=0),
        row(2, problem="genotype?", options=["Aa", "AA"], answer=1),
    ]
    dataset = data(tmp_path, rows)
    assert groups(dataset) == {frozenset(("q0", "q2"))}
    questions = read(dataset)
    said = duplicates.find(questions).said_N[questions.column("id").argsort()]
    assert said[0] == said[2]


def test_pictures_as_options_are_the_same_in_any_order(tmp_path: Path) -> None:
    pictures = {f"{n}.png": saved(drawing(n)) for n in range(3)}
    pictures |= {f"{n}.jpg": saved(drawing(n), "JPEG", quality=90) for n in range(3)}

    def options(*names: str) -> list[dict[str, str]]:
        return [{"image": name} for name in names]

    rows = [
        row(0, problem="Which?", options=options("0.png", "1.png"), answer=0),
        row(1, problem="Which?", options=options("1.jpg", "0.jpg"), answer=1),
        row(2, problem="Which?", options=options("1.png", "2.png"), answer=1),
        row(3, problem="Which?", options=options("1.jpg", "0.png"), answer=0),
    ]
    dataset = data(tmp_path, rows, pictures)
    assert groups(dataset) == {frozenset(("q0", "q1", "q3"))}
    questions = read(dataset)
    said = dict(zip(questions.column("id"), duplicates.find(questions).said_N, strict=True))
    assert said["q0"] == said["q1"] != said["q3"]


def small_pictures(count: int, seed: int) -> Fingerprints:
    """Small copies in clusters: some nearly equal, some a little too far."""
    rng = np.random.default_rng(seed)
    centre_CHWC = rng.integers(20, 236, (max(1, count // 4), fingerprints.SIDE, 8, 3))
    whole = np.repeat(centre_CHWC, fingerprints.SIDE // 8, axis=2)[
        rng.integers(len(centre_CHWC), size=count)
    ]
    noise = rng.integers(-11, 12, whole.shape) * rng.integers(0, 5, (count, 1, 1, 1))
    noise += rng.integers(-2, 3, (count, 1, 1, 3))
    sizes = 100 + rng.integers(0, 4, (count, 2))
    return replace(
        NOTHING,
        small_PHWC=(whole + noise).clip(0, 255).astype(np.uint8),
        size_P2=sizes.astype(np.int64),
    )


@given(count=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_tree_finds_the_pairs_that_all_pairs_have(count: int, seed: int) -> None:
    questions = small_pictures(count, seed)
    picture_U = np.random.default_rng(seed).permutation(count)
    found = {
        tuple(p) for part in duplicates.near_pairs(questions, picture_U) for p in part.tolist()
    }
    expected = {
        (a, b) for a, b in combinations(range(count), 2) if near(questions, *picture_U[[a, b]])
    }
    assert found == expected


def near(questions: Fingerprints, a: int, b: int) -> bool:
    """The rule as it is written down, for one pair."""
    one, other = questions.small_PHWC[a].astype(float), questions.small_PHWC[b].astype(float)
    step = fingerprints.SIDE // duplicates.COARSE
    for top in range(0, fingerprints.SIDE, step):
        for left in range(0, fingerprints.SIDE, step):
            cell = (one - other)[top : top + step, left : left + step].mean(axis=(0, 1))
            if np.abs(cell).max() > duplicates.COARSE_LEVELS:
                return False
    (w, h), (v, g) = questions.size_P2[[a, b]].tolist()
    return bool(
        np.abs(one - other).max() <= duplicates.FINE_LEVELS
        and np.abs(np.median(one - other, axis=(0, 1))).max() <= duplicates.MEDIAN_LEVELS
        and ((one - other) ** 2.0).mean(axis=(0, 1)).max() <= duplicates.RMS_LEVELS**2
        and abs(np.log(w / h) - np.log(v / g)) <= duplicates.ASPECT
    )


def test_classes_are_those_of_a_plain_search(tmp_path: Path) -> None:
    questions = replace(
        small_pictures(90, 2),
        index=pa.table({"id": [f"q{n}" for n in range(90)]}),
        text_N=np.arange(90) % 3,
        picture_N=np.arange(90),
        start_N=np.arange(91) * 2,
        option_O=-1 - np.arange(180) % 2,
    )
    class_N, _ = duplicates.picture_classes(questions)
    of_a_text = [(a, b) for a, b in combinations(range(90), 2) if a % 3 == b % 3]
    close = [(a, b) for a, b in of_a_text if near(questions, a, b)]
    label = list(range(90))
    for _ in range(90):
        for a, b in close:
            label[a] = label[b] = min(label[a], label[b])
    same = {(a, b) for a, b in combinations(range(90), 2) if label[a] == label[b]}
    assert {(a, b) for a, b in combinations(range(90), 2) if class_N[a] == class_N[b]} == same
    assert same

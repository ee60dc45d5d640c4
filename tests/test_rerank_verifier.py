"""The scorer of generated answers: what it reads, what it learns, what it must not have seen."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipstem import towers
from clipstem.command import composed
from clipstem.config import RerankConfig, TuneMode
from clipstem.images import to_pixels
from clipstem.packing import PADDING, one_a_row
from clipstem.question import ClipstemError
from clipstem.rerank import candidates, drawn
from clipstem.rerank.__main__ import main
from clipstem.rerank.candidates import Asked, Candidate
from clipstem.rerank.verifier import (
    Embeddings,
    Remembered,
    Verifier,
    cross_fitted,
    joined,
    laid_out,
    work,
)
from clipstem.tokens import Layout
from clipstem.towers import Towers

create = towers.create  # as it is

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a model takes longer than all else here; what trains is a copy of it."""
    monkeypatch.setattr(towers, "create", lambda given, seed=0: copy.deepcopy(model()))


def config(**changes: Any) -> RerankConfig:
    made = composed(
        "rerank",
        RerankConfig,
        ["out=o", "folds=3", "optimizer.lr=0.01", "epochs=1", "batch_size=4"],
    )
    made.model.architecture = SMALL
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@cache
def model() -> Towers:
    return create(config().model).eval()


def questions(folder: Path, count: int = 12, pictures: bool = False) -> list[Asked]:
    lines = []
    for number, line in enumerate(drawn.lines(count, 0)):
        if pictures and number % 3:
            colour = (255, 0, 0) if number % 2 else (0, 0, 255)
            Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
            line["image"] = f"{number}.png"
        lines.append(json.dumps(line))
    (folder / "c.jsonl").write_text("\n".join(lines))
    return candidates.read([folder / "c.jsonl"], [], False, 0.0).asked


def asked(problem: str, *texts: tuple[str, str | None]) -> Asked:
    made = tuple(
        Candidate(n, "s", text, final, None, None) for n, (text, final) in enumerate(texts)
    )
    return Asked("q", problem, None, "", "", "", made, len(made))


# ---------------------------------------------------------------------------- texts

words = st.lists(st.sampled_from(["one", "two", "three", "fourteen"]), max_size=60).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(words, st.lists(st.tuples(words, st.none() | words), min_size=1, max_size=4))
def test_what_is_cut_is_the_beginning(problem: str, texts: list[tuple[str, str | None]]) -> None:
    tokenizer = model().tokenizer
    made = joined(asked(problem, *texts), asked(problem, *texts).candidates, tokenizer)
    question = tokenizer.encode(problem)
    assert len({text.shared for text in made}) == 1
    shared = made[0].shared[1:]
    assert question[len(question) - len(shared) :] == shared  # the end of the question
    room = tokenizer.context_length - 2
    assert len(shared) >= min(len(question), room // 3)
    wholes = []
    for text, (written, final) in zip(made, texts, strict=True):
        assert len(text.tokens) <= tokenizer.context_length
        own = text.own[:-1]
        ending = tokenizer.encode(f"= {final or ''}")
        if len(ending) <= (room - len(shared)) // 2:
            assert own[len(own) - len(ending) :] == ending  # the final answer is whole
        whole = len(question) + len(tokenizer.encode(written)) + len(ending)
        assert text.truncated == whole - len(text.tokens) + 2
        wholes.append(whole)
    if max(wholes) <= room:  # else the longest candidate may cost all of them the question's start
        assert not any(text.truncated for text in made)


def test_a_word_without_end_does_not_keep_the_tokenizer() -> None:
    long = asked("what?", ("x" * 100_000, "y" * 10_000))
    (text,) = joined(long, long.candidates, model().tokenizer)
    assert len(text.tokens) == 40


# ---------------------------------------------------------------------------- scores


def test_packed_scores_are_one_text_at_a_time(tmp_path: Path) -> None:
    every = questions(tmp_path, 12, pictures=True)
    own = model()
    assert own.tokenizer.layout is Layout.PACKED
    texts = [joined(one, one.candidates, own.tokenizer) for one in every]
    embed = Embeddings(every, texts, own, bf16=False)
    verifier = Verifier(own, 0.3)
    torch.nn.init.normal_(verifier.direction_D)
    groups = [(number, range(4)) for number in range(12)]
    with torch.no_grad():
        found = verifier.log_odds(*embed(groups)).numpy()
        expected = []
        for one, of_question in zip(every, texts, strict=True):
            direction_D = verifier.direction_D.clone()
            if one.picture is not None:
                pixels = torch.from_numpy(to_pixels(one.picture.data, own.spec))[None]
                direction_D += own.encode_pictures(pixels)[0]
            for text in of_question:
                alone = one_a_row([text], len(text.tokens), 0).map(torch.from_numpy)
                cosine = own.encode_texts(alone)[0] @ direction_D
                expected.append(float(own.scale * cosine + verifier.bias))
    assert found == pytest.approx(np.array(expected), abs=1e-4)
    assert np.ptp(found) > 0.1


def test_what_candidates_share_is_read_once(tmp_path: Path) -> None:
    (one,) = questions(tmp_path, 1)
    texts = joined(one, one.candidates, model().tokenizer)
    packed = laid_out(texts, model().tokenizer)
    own = sum(len(text.own) for text in texts)
    assert len(texts[0].shared) > 1 and len(packed.tokens_RT) == 1
    assert int((packed.group_RT != PADDING).sum()) == len(texts[0].shared) + own


def test_what_is_remembered_is_what_is_read(tmp_path: Path) -> None:
    every = questions(tmp_path, 6, pictures=True)
    own = model()
    texts = [joined(one, one.candidates, own.tokenizer) for one in every]
    embed = Embeddings(every, texts, own, bf16=False)
    told: list[int] = []
    known = Remembered(embed, told.append)
    groups = [(3, [1, 2]), (0, [0])]
    with torch.no_grad():
        for a, b in zip(known(groups), embed(groups), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert sum(told) == 24


# ---------------------------------------------------------------------------- learning

FOLDS = np.arange(12) % 3


@pytest.mark.parametrize("learns", [TuneMode.full, TuneMode.zero_shot])
def test_scores_know_nothing_of_what_they_judge(tmp_path: Path, learns: TuneMode) -> None:
    """Row k does not change with the labels of fold k, not even for other folds' candidates."""
    every = questions(tmp_path, pictures=True)
    told: list[int] = []
    before = cross_fitted(every, FOLDS, config(learns=learns), told.append).score_KC
    assert sum(told) == work(every, FOLDS, config(learns=learns))
    flipped = [
        replace(one, candidates=tuple(replace(it, correct=not it.correct) for it in one.candidates))
        if fold == 1
        else one
        for one, fold in zip(every, FOLDS, strict=True)
    ]
    after = cross_fitted(flipped, FOLDS, config(learns=learns), lambda done: None).score_KC
    assert before.shape == (4, 48)
    assert (before[1] == after[1]).all()
    assert (before[0] != after[0]).any() and (before[3] != after[3]).any()
    of_fold = np.repeat(FOLDS, 4)
    for fold in range(3):  # the last row has of each candidate the mean over who has not seen it
        assert (before[3, of_fold == fold] == before[fold, of_fold == fold]).all()


def test_what_has_nothing_to_learn_fails_before_any_training(tmp_path: Path) -> None:
    """The last scorer has the questions of part 0 alone to learn from, where all is right."""
    every = [
        replace(one, candidates=tuple(replace(it, correct=True) for it in one.candidates))
        if fold == 0
        else one
        for one, fold in zip(questions(tmp_path), FOLDS, strict=True)
    ]
    told: list[int] = []
    with pytest.raises(ClipstemError, match=r"of the 4 questions .* no candidate is wrong"):
        cross_fitted(every, FOLDS, config(), told.append)
    assert not told


def test_what_nobody_knows_is_scored_by_all(tmp_path: Path) -> None:
    fold_Q = np.where(np.arange(12) < 9, FOLDS, -1)
    found = cross_fitted(questions(tmp_path), fold_Q, config(), lambda done: None)
    assert (found.score_KC[3] != 0).all() and (found.score_KC[:3, 36:] == 0).all()
    assert found.facts["scorers"] == 3 and found.facts["context_tokens"] == 40


def test_a_scorer_learns_a_word(tmp_path: Path) -> None:
    lines = []
    for number in range(24):
        texts = {word: word == "surely" for word in ("surely", "perhaps")}
        made = [
            {"system": "s", "text": f"{word} it is {number}", "final": "1", "correct": right}
            for word, right in texts.items()
        ]
        lines.append(json.dumps({"id": str(number), "problem": f"{number}?", "candidates": made}))
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    every = candidates.read([tmp_path / "c.jsonl"], [], False, 0.0).asked
    found = cross_fitted(every, np.arange(24) % 3, config(epochs=10), lambda done: None)
    surely, perhaps = found.score_KC[3].reshape(-1, 2).T
    assert (surely > 0).all() and (perhaps < 0).all()


def test_more_candidates_than_a_step_takes_are_drawn_anew(tmp_path: Path) -> None:
    made = [
        {"system": "s", "text": f"try {n}", "final": str(n), "correct": n == 3} for n in range(150)
    ]
    lines = [json.dumps({"id": str(q), "problem": f"{q}?", "candidates": made}) for q in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    every = candidates.read([tmp_path / "c.jsonl"], [], False, 0.0).asked
    told: list[int] = []
    found = cross_fitted(every, np.arange(3), config(epochs=1), told.append)
    assert (found.score_KC[3] != 0).all()
    assert sum(told) == work(every, np.arange(3), config(epochs=1)) == 3 * 32 + 2 * 450


def test_gradients_without_end_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = questions(tmp_path)
    monkeypatch.setattr(
        Verifier, "log_odds", lambda self, text_CD, _: text_CD.sum(dim=1) * float("nan")
    )
    with pytest.raises(ClipstemError, match="the gradients of 11 steps are not finite; try a low"):
        cross_fitted(every, FOLDS, config(epochs=20), lambda done: None)


# ---------------------------------------------------------------------------- the verb


def test_the_verb_draws_trains_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["out=r", "questions=24", "epochs=1", "trainer.workers=0", "folds=3"]
    monkeypatch.setattr("sys.argv", ["rerank", *arguments])
    GlobalHydra.instance().clear()
    main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "scores add" in printed and "24 questions, 96 candidates" in printed
    lines = [json.loads(line) for line in Path("r/choices.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all(len(line["scores"]) == 4 for line in lines)
    assert len(Path("r/candidates.jsonl").read_text().splitlines()) == 24
    made_by = json.loads(Path("r/rerank.json").read_text())["made_by"]
    assert made_by["scorer"]["model"] == "verifier"

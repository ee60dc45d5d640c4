from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, oracle_of_folder
from PIL import Image

import clipstem
from clipstem import metrics, pairs, scorer, shards
from clipstem.command import model_config
from clipstem.config import ModelConfig, Precision, PrepareConfig, Source, TrainerConfig
from clipstem.engine import PictureLike
from clipstem.memory import Memory
from clipstem.prepare import prepare
from clipstem.question import ClipstemError, Kind, Picture, ProblemPicture, Question
from clipstem.scorer import Scorer
from clipstem.towers import Towers

ON_CPU = TrainerConfig(device="cpu", workers=0)
MODES = list(ProblemPicture)


@pytest.fixture(scope="module")
def b32(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Oracle]:
    """ViT-B/32 with random weights at the scale that CLIP's training ends with, and its oracle."""
    ours = scorer.of_model(ModelConfig(name="ViT-B-32"), ON_CPU)
    with torch.no_grad():
        ours.model.model.logit_scale.fill_(np.log(100))
    folder = tmp_path_factory.mktemp("b32")
    ours.model.save(folder)
    return ours, oracle_of_folder(str(folder))


@pytest.fixture(scope="module")
def tiny() -> Scorer:
    return scorer.of_model(model_config("tiny_vit"), ON_CPU)


def questions_of(dataset: shards.Dataset, split: str, each: int | None) -> list[Question]:
    """The split's first `each` questions of each kind that CLIP can score."""
    questions = dataset.read(split, range(dataset.size(split)))
    kinds = [kind for kind in Kind if kind is not Kind.TEXT_ONLY]
    return [q for kind in kinds for q in [q for q in questions if q.kind is kind][:each]]


def score_together(ours: Scorer, questions: Sequence[Question]) -> list[np.ndarray]:
    """Probabilities of questions that share a batch."""
    batch = pairs.collate(questions, ours.model.tokenizer, ours._decode, ours.problem_picture)
    logits_QK = ours.logits(batch.map(torch.from_numpy)).numpy()
    counts = np.array([len(question.options) for question in questions])
    probs_QK = metrics.probabilities(logits_QK, counts, ours.temperature)
    return [row[:count] for row, count in zip(probs_QK, counts, strict=True)]


def assert_oracle_exact(
    ours: Scorer, oracle: Oracle, questions: Sequence[Question], batch_size: int
) -> None:
    found = [
        row
        for start in range(0, len(questions), batch_size)
        for row in score_together(ours, questions[start : start + batch_size])
    ]
    for question, probs_K in zip(questions, found, strict=True):
        expected_K = oracle.probabilities(question, ours.problem_picture)
        assert probs_K.argmax() == expected_K.argmax(), question.id
        np.testing.assert_allclose(probs_K, expected_K, atol=1e-5, err_msg=question.id)


@pytest.mark.slow
def test_vit_b32_answers_18_questions_as_the_oracle_does(
    b32: tuple[Scorer, Oracle], mixed_data: Path
) -> None:
    questions = questions_of(shards.open_dataset(str(mixed_data)), "valid", each=6)
    assert len(questions) == 18
    assert_oracle_exact(*b32, questions, batch_size=9)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_vit_b32_answers_the_realsets_validation_as_the_oracle_does(
    b32: tuple[Scorer, Oracle], realset: Path, tmp_path: Path, mode: ProblemPicture
) -> None:
    prepare(PrepareConfig(out=str(tmp_path / "d"), source=Source.stem, path=str(realset)))
    questions = questions_of(shards.open_dataset(str(tmp_path / "d")), "valid", each=None)
    assert len(questions) == 559
    if mode is not ProblemPicture.added:  # the mode matters to one kind alone
        questions = [q for q in questions if q.kind is Kind.PICTURE_OPTIONS_ON_PICTURE]
    ours, oracle = b32
    ours.problem_picture = mode
    assert_oracle_exact(ours, oracle, questions, batch_size=32)


@pytest.fixture
def some_questions(drawn_data: Path) -> list[Question]:
    return questions_of(shards.open_dataset(str(drawn_data)), "valid", each=4)


def tiny_oracle(tiny: Scorer, folder: Path) -> Oracle:
    tiny.model.save(folder)
    return oracle_of_folder(str(folder))


@pytest.mark.parametrize("mode", MODES)
def test_every_treatment_of_the_problems_picture_is_the_oracles(
    tiny: Scorer, some_questions: list[Question], tmp_path: Path, mode: ProblemPicture
) -> None:
    ours = Scorer(tiny.model, ON_CPU, problem_picture=mode)
    assert_oracle_exact(ours, tiny_oracle(tiny, tmp_path), some_questions, batch_size=5)


def test_the_reference_always_answers_0_where_both_sides_have_pictures(
    tiny: Scorer, some_questions: list[Question]
) -> None:
    third = [q for q in some_questions if q.kind is Kind.PICTURE_OPTIONS_ON_PICTURE]
    ours = Scorer(tiny.model, ON_CPU, problem_picture=ProblemPicture.reference)
    assert third
    for row in score_together(ours, third):
        np.testing.assert_array_equal(row, [1.0] + [0.0] * (len(row) - 1))


def test_an_answer_does_not_depend_on_the_batch(
    tiny: Scorer, some_questions: list[Question]
) -> None:
    together = score_together(tiny, some_questions)
    backwards = score_together(tiny, some_questions[::-1])[::-1]
    for question, first, second in zip(some_questions, together, backwards, strict=True):
        (alone,) = score_together(tiny, [question])
        for other in (second, alone):
            np.testing.assert_allclose(other, first, atol=1e-5)
            assert other.argmax() == first.argmax()


def test_an_answer_does_not_depend_on_the_order_of_the_options(
    tiny: Scorer, some_questions: list[Question]
) -> None:
    for question in some_questions:
        turned = replace(question, options=question.options[::-1], answer=-1)
        first, second = score_together(tiny, [question, turned])
        np.testing.assert_allclose(second[::-1], first, atol=1e-5)
        assert len(first) - 1 - second.argmax() == first.argmax()


def test_predictions_come_in_the_splits_order_whatever_the_batch(
    tiny: Scorer, drawn_data: Path
) -> None:
    dataset = shards.open_dataset(str(drawn_data))
    done: list[int] = []
    whole = tiny.predict(dataset, "valid", 64, done.append)
    parts = tiny.predict(dataset, "valid", 7)
    assert whole.columns["id"] == parts.columns["id"] == dataset.index("valid")["id"].to_pylist()
    assert sum(done) == len(whole) == dataset.size("valid")
    np.testing.assert_allclose(whole.probs_QK, parts.probs_QK, atol=1e-5)
    np.testing.assert_allclose(whole.probs_QK.sum(axis=1), 1, atol=1e-12)


def test_predictions_are_the_same_with_workers(tiny: Scorer, drawn_data: Path) -> None:
    dataset = shards.open_dataset(str(drawn_data))
    alone = tiny.predict(dataset, "test", 4)
    helped = Scorer(tiny.model, TrainerConfig(device="cpu", workers=1)).predict(dataset, "test", 4)
    np.testing.assert_array_equal(alone.logits_QK, helped.logits_QK)


def test_what_is_known_is_not_encoded_again(
    tiny: Scorer, some_questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []
    batch = pairs.collate(some_questions, tiny.model.tokenizer, tiny._decode)
    batch = batch.map(torch.from_numpy)
    memory = Memory()
    ((_, first),) = tiny.scored([batch], memory)
    for way in ("encode_pictures", "encode_texts"):
        monkeypatch.setattr(tiny.model, way, encoded.append)
    ((_, second),) = tiny.scored([batch], memory)
    assert not encoded
    np.testing.assert_array_equal(first, second)


def test_each_text_of_a_split_is_encoded_once(
    tiny: Scorer, some_questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collated(questions: Sequence[Question]) -> pairs.PairBatch:
        batch = pairs.collate(questions, tiny.model.tokenizer, tiny._decode)
        return batch.map(torch.from_numpy)

    batches = [collated(some_questions[:7]), collated(some_questions[4:]), collated(some_questions)]
    counts = {"encode_pictures": 0, "encode_texts": 0}
    for way in counts:
        encode = getattr(tiny.model, way)

        def counted(given: Any, way: str = way, encode: Any = encode) -> torch.Tensor:
            found: torch.Tensor = encode(given)
            counts[way] += len(found)
            return found

        monkeypatch.setattr(tiny.model, way, counted)
    together = [logits for _, logits in tiny.scored(batches, Memory())]
    assert counts["encode_texts"] == len({text for it in batches for text in it.joined})
    assert counts["encode_pictures"] == len({hash for it in batches for hash in it.pictures})
    for batch, logits in zip(batches, together, strict=True):
        np.testing.assert_allclose(logits, tiny.logits(batch), atol=1e-4)


def test_bf16_keeps_the_weights_and_almost_every_choice(tiny: Scorer, drawn_data: Path) -> None:
    dataset = shards.open_dataset(str(drawn_data))
    before = tiny.model.weights_sha256()
    half = Scorer(tiny.model, TrainerConfig("cpu", Precision.bf16, workers=0))
    found, exact = half.predict(dataset, "valid", 16), tiny.predict(dataset, "valid", 16)
    assert tiny.model.weights_sha256() == before == found.provenance["weights_sha256"]
    assert found.logits_QK.dtype == np.float32
    assert 0 < np.abs(found.probs_QK - exact.probs_QK).max() < 0.1


@pytest.mark.parametrize("weights_stay", [True, False])
def test_weights_are_cast_again_only_where_they_may_have_changed(
    weights_stay: bool, tiny: Scorer, drawn_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cast = shards.open_dataset(str(drawn_data)), []
    in_bf16 = Towers.in_bf16

    def counted(model: Towers) -> Towers:
        cast.append(model)
        return in_bf16(model)

    monkeypatch.setattr(Towers, "in_bf16", counted)
    known = tiny.model.weights_sha256() if weights_stay else None
    half = Scorer(
        copy.deepcopy(tiny.model),
        TrainerConfig("cpu", Precision.bf16, workers=0),
        weights_sha256=known,
    )
    first, second = (half.predict(dataset, "valid", 16).logits_QK for _ in range(2))
    assert np.array_equal(first, second) and len(cast) == (1 if weights_stay else 2)
    if not weights_stay:
        with torch.no_grad():
            for weight in half.model.parameters():
                weight.mul_(1.1)
        assert not np.array_equal(half.predict(dataset, "valid", 16).logits_QK, first)


def test_questions_without_a_picture_are_counted_and_left_out(tiny: Scorer, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (9, 9), "red").save(picture)
    lines = [
        '{"problem": "What colour?", "image": "p.png", "options": ["red", "blue"], "answer": 0}',
        '{"problem": "What is 1 + 1?", "options": ["1", "2"], "answer": 1}',
    ]
    labels = '"subject": "math", "grade": "grade-1", "skill": "s"'
    text = "\n".join(f'{{"id": "q{n}", {labels}, {line[1:]}' for n, line in enumerate(lines))
    (tmp_path / "q.jsonl").write_text(text)
    prepare(
        PrepareConfig(
            out=str(tmp_path / "data"),
            source=Source.jsonl,
            path=str(tmp_path / "q.jsonl"),
            split="valid",
            workers=1,
        )
    )
    found = tiny.predict(shards.open_dataset(str(tmp_path / "data")), "valid", 8)
    assert found.columns["id"] == ["q0"]
    assert found.provenance["without_picture"] == 1
    zeros = found.write_choices(tmp_path / "preds.txt", found.provenance["source_rows"])
    assert zeros == 1
    assert (tmp_path / "preds.txt").read_text() == f"{found.choice_Q[0]}\n0"


def test_score_gives_the_probability_of_each_option(
    tiny: Scorer, some_questions: list[Question]
) -> None:
    for question in some_questions:
        (expected,) = score_together(tiny, [question])
        picture = None if question.picture is None else question.picture.data
        options = [o.data if isinstance(o, Picture) else o for o in question.options]
        np.testing.assert_allclose(
            tiny.score(picture, question.problem, options), expected, atol=1e-6
        )


def test_score_takes_paths_bytes_and_pil_pictures(tiny: Scorer, tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 30), (10, 200, 30))
    image.save(tmp_path / "p.png")
    data = io.BytesIO()
    image.save(data, "png")
    options = ["green", "red"]
    found = [
        tiny.score(picture, "What colour is it?", options)
        for picture in (str(tmp_path / "p.png"), tmp_path / "p.png", data.getvalue(), image)
    ]
    for row in found:
        np.testing.assert_array_equal(row, found[0])


def test_load_opens_a_folder_of_weights_and_a_model_file(tiny: Scorer, tmp_path: Path) -> None:
    tiny.model.save(tmp_path)
    image = Image.new("RGB", (64, 64), "blue")
    asked = (image, "What colour is it?", ["blue", "red", "green"])
    from_folder = clipstem.load(tmp_path, device="cpu").score(*asked)
    from_name = clipstem.load("tiny_vit", device="cpu").score(*asked)
    np.testing.assert_array_equal(from_folder, tiny.score(*asked))
    np.testing.assert_array_equal(from_name, tiny.score(*asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("missing.png", "What?", ["a"]), "the picture missing.png cannot be read: No such file"),
        ((b"<html>", "What?", ["a"]), r"question 'What\?': a picture is not a picture"),
        ((Image.new("L", (3, 3)), "What?", []), "options: there are none"),
        ((Image.new("L", (3, 3)), " ", ["a"]), "problem: is empty"),
    ],
)
def test_score_says_what_is_wrong(
    tiny: Scorer, asked: tuple[PictureLike, str, list[str]], message: str
) -> None:
    with pytest.raises(ClipstemError, match=message):
        tiny.score(*asked)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "'gpu' is no device"), ("cuda", "torch sees no CUDA device here")],
)
def test_a_device_that_is_not_there_is_named(device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ClipstemError, match=message):
        scorer.device_of(device)

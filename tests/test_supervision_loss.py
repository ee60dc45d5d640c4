"""Batches with labels, teachers and weights, and the loss that they make, against a slow, obvious
one: a question at a time, teachers' files taken by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, oracle_of_folder
from samples import Letters
from supervising import Case, found_for
from torch import Tensor

from clipstem import loss, towers
from clipstem.batches import NOBODY, Batches
from clipstem.images import PictureSpec
from clipstem.learner import Learner
from clipstem.pairs import PairBatch
from clipstem.question import Picture, ProblemPicture, Question
from clipstem.shards import Dataset
from clipstem.supervision import Supervision
from clipstem.train import training_order

# ---------------------------------------------------------------------------- batches


def batches(
    dataset: Dataset,
    found: Supervision,
    order_SN: Any,
    parts: int = 1,
    model: towers.Towers | None = None,
) -> Batches:
    tokenizer, spec = Letters(context_length=120), PictureSpec(size=8)
    return Batches(
        dataset,
        "train",
        order_SN,
        model.tokenizer if model else tokenizer,
        model.spec if model else spec,
        ProblemPicture.added,
        parts=parts,
        supervision=found,
    )


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_only_the_ratio_of_weights_matters(scale: float, case: Case, dataset: Dataset) -> None:
    found = found_for(case.config, dataset)
    order_SN = training_order(dataset, case.config, found)
    scaled = replace(found, weight_N=scale * found.weight_N)
    for step in range(len(order_SN)):
        expected, weight_Q = (
            batches(dataset, it, order_SN)._weights(order_SN[step]) for it in (found, scaled)
        )
        assert weight_Q.sum() == pytest.approx(1)
        np.testing.assert_allclose(weight_Q, expected, rtol=1e-6)


def same(left: PairBatch, right: PairBatch) -> bool:
    arrays = ("answer_Q", "weight_Q", "teacher_QK", "cell_QK", "filled_QK", "pixels_IHWC")
    return left.ids == right.ids and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays
    )


def test_nothing_in_a_batch_depends_on_a_label_that_is_hidden(
    case: Case, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_for(case.config, dataset)
    order_SN = training_order(dataset, case.config, found)
    made = batches(dataset, found, order_SN)
    before = [made[step] for step in range(len(made))]
    ids = dataset.index("train")["id"].to_pylist()
    hidden = {id for id, is_shown in zip(ids, found.labelled_N, strict=True) if not is_shown}
    read = Dataset.read

    def with_others(self: Dataset, split: str, indices: Any) -> list[Question]:
        return [
            replace(it, answer=(it.answer + 1) % len(it.options)) if it.id in hidden else it
            for it in read(self, split, indices)
        ]

    monkeypatch.setattr(Dataset, "read", with_others)
    assert all(same(made[step], batch) for step, batch in enumerate(before))
    answers = [
        (id, answer)
        for batch in before
        for id, answer in zip(batch.ids, batch.answer_Q.tolist(), strict=True)
        if id
    ]
    assert (
        {id for id, answer in answers if answer < 0} == hidden & {id for id, _ in answers} != set()
    )


def test_a_batchs_empty_places_are_learnt_from_nobody(case: Case, dataset: Dataset) -> None:
    found = found_for(case.config, dataset)
    order_SN = np.array([[np.flatnonzero(found.learns_N)[0], NOBODY, NOBODY, NOBODY]])
    made = batches(dataset, found, order_SN, parts=2)
    for batch in (made[0], made[1]):
        assert batch.teacher_QK is not None
        is_there = np.array([id != "" for id in batch.ids])
        assert not batch.teacher_QK[~is_there].any() and not batch.weight_Q[~is_there].any()
    assert made[0].weight_Q.tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------------- the loss


def slow_terms(
    case: Case, dataset: Dataset, numbers: Sequence[int], oracle: Oracle
) -> dict[str, float]:
    """The batch's losses, a question at a time, from oracle scores and the teachers' own logits."""
    config, temperature = case.config, case.config.distill.temperature
    shown = found_for(config, dataset).labelled_N
    questions = dataset.read("train", list(numbers))
    weight = [case.weight_of.get(it.id, 1.0) for it in questions]
    sums = dict.fromkeys(("listwise", "distill", "contrast", "accuracy"), 0.0)
    answers, sureness = [], []
    for question, number, counts in zip(questions, numbers, weight, strict=True):
        logs = np.log(oracle.probabilities(question)).tolist()
        said = [
            t.probabilities(question.id, temperature)
            for t in case.teachers
            if question.id in t.logits_of
        ]
        target = [sum(values) / len(said) for values in zip(*said, strict=True)]
        answer = question.answer if shown[number] else -1
        share = 0.0 if not target else 1.0 if answer < 0 else config.distill.weight
        if answer >= 0:
            sums["listwise"] += counts * (1 - share) * -logs[answer]
        softer = [math.exp(it / temperature) for it in logs]
        for wanted, value in zip(target, softer, strict=False):
            divergence = wanted * (math.log(wanted) - math.log(value / sum(softer)))
            sums["distill"] += counts * share * temperature**2 * divergence
        answers.append(answer if answer >= 0 else target.index(max(target)))
        sureness.append(1.0 if answer >= 0 else max(target))
        sums["accuracy"] += counts * (logs.index(max(logs)) == answers[-1])
    for counts, sure, own in zip(
        weight, sureness, slow_contrast(questions, answers, oracle), strict=True
    ):
        sums["contrast"] += counts * sure * own
    return {name: value / sum(weight) for name, value in sums.items()}


@torch.inference_mode()
def slow_contrast(questions: list[Question], answers: list[int], oracle: Oracle) -> list[float]:
    """Each right pair against every other query and picture of the batch that is not right too."""
    scale = float(oracle.model.logit_scale.exp())
    queries: dict[Any, Tensor] = {}
    pictures: dict[str, Tensor] = {}
    rights: list[tuple[Any, str]] = []
    for question, answer in zip(questions, answers, strict=True):
        options: Sequence[str | Picture] = question.options
        for place, option in enumerate(options):
            picture = option if isinstance(option, Picture) else question.picture
            assert picture is not None
            context = question.picture if isinstance(option, Picture) else None
            query = (
                question.problem,
                option if isinstance(option, str) else "",
                context.sha256 if context else "",
            )
            if context:
                pictures[context.sha256] = oracle.encode_picture(context)
            queries[query] = oracle.text_side(question, option, ProblemPicture.added)
            pictures[picture.sha256] = oracle.picture_side(question, option)
            if place == answer:
                rights.append((query, picture.sha256))

    def one_of(own: tuple[Any, str], others: list[tuple[Any, str]]) -> float:
        logits = [
            scale * float(queries[query] @ pictures[picture]) for query, picture in [own, *others]
        ]
        return math.log(sum(math.exp(it - logits[0]) for it in logits))

    losses = []
    for own in rights:
        asked, shown = own
        over_queries = [(it, shown) for it in queries if (it, shown) not in rights]
        over_pictures = [(asked, it) for it in pictures if (asked, it) not in rights]
        losses.append((one_of(own, over_queries) + one_of(own, over_pictures)) / 2)
    return losses


@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_is_the_slow_one(case: Case, dataset: Dataset, parts: int, tmp_path: Path) -> None:
    found = found_for(case.config, dataset)
    order_SN = training_order(dataset, case.config, found)
    config = replace(case.config, accumulate=parts)
    model = towers.create(config.model, 0)
    with torch.no_grad():
        model.model.logit_scale.fill_(math.log(20))
    model.save(tmp_path)
    oracle = oracle_of_folder(str(tmp_path))
    learner = Learner(model, config, 1, Path("unused"))
    made = batches(dataset, found, order_SN, parts, model)
    step = len(order_SN) - 1  # which is not full
    # Lightning divides by the number of parts.
    terms = [learner.terms(made[step * parts + n].map(torch.from_numpy)) for n in range(parts)]
    numbers = order_SN[step][order_SN[step] != NOBODY].tolist()
    assert len(numbers) > 5
    expected = slow_terms(case, dataset, numbers, oracle)
    for name, value in expected.items():
        if name == "contrast" and parts > 1:
            continue  # a part has its own negatives
        total = sum(float(it[name].detach()) for it in terms) / parts
        assert total == pytest.approx(value, abs=2e-5), name


def test_a_question_that_a_teacher_knows_alone_does_not_push_its_own_answer_away(
    case: Case, dataset: Dataset
) -> None:
    """Where the contrast has no label, the teachers' choice stands for it, and is no negative."""
    found = found_for(case.config, dataset)
    assert found.teacher_NK is not None
    alone = np.flatnonzero(found.learns_N & ~found.labelled_N)[:4]
    made = batches(dataset, found, alone[None])
    batch, sure_Q = loss.with_teachers_choices(made[0].map(torch.from_numpy))
    assert batch.answer_Q.tolist() == found.teacher_NK[alone].argmax(axis=1).tolist()
    assert sure_Q.tolist() == found.teacher_NK[alone].max(axis=1).tolist()
    assert loss.right_pairs(batch).known_Q.all()

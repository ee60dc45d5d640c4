"""Losses, against double loops that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Letters, picture, pixels, question, questions, unpacked

from clipstem.loss import distillation, in_batch_contrast, listwise, right_pairs
from clipstem.pairs import LOWEST_LOGIT, PairBatch, collate, render
from clipstem.question import ProblemPicture, Question
from clipstem.tokens import join

ADDED = ProblemPicture.added


def test_listwise_is_the_cross_entropy_over_the_questions_own_options() -> None:
    logits_QK = torch.tensor([[1.0, 2.0, 0.5], [3.0, -1.0, LOWEST_LOGIT]])
    first = -math.log(math.exp(0.5) / (math.exp(1) + math.exp(2) + math.exp(0.5)))
    second = -math.log(math.exp(3) / (math.exp(3) + math.exp(-1)))
    losses = listwise(logits_QK, torch.tensor([2, 0]))
    torch.testing.assert_close(losses, torch.tensor([first, second]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_spreads_over_a_questions_own_options(smoothing: float) -> None:
    rows = [[1.0, -2.0, 0.5], [3.0, 3.0], [0.2, 0.1, -5.0, 4.0]]
    answers = [2, 0, 1]
    logits_QK = torch.full((3, 4), LOWEST_LOGIT)
    expected = []
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        logits_QK[place, : len(row)] = torch.tensor(row)
        total = math.log(sum(math.exp(logit) for logit in row))
        loss = 0.0
        for option, logit in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing) * (option == answer)
            loss -= target * (logit - total)
        expected.append(loss)
    logits_QK.requires_grad_()
    losses_Q = listwise(logits_QK, torch.tensor(answers), smoothing)
    assert losses_Q.tolist() == pytest.approx(expected, abs=1e-5)
    (gradient_QK,) = torch.autograd.grad(losses_Q.sum(), logits_QK)
    assert not gradient_QK[logits_QK <= LOWEST_LOGIT].any()


def test_smoothing_leaves_unknown_answers_and_empty_places_at_0() -> None:
    logits_QK = torch.tensor([[1.0, 2.0], [LOWEST_LOGIT, LOWEST_LOGIT]])
    assert listwise(logits_QK, torch.tensor([-1, -1]), 0.2).tolist() == [0, 0]


def test_listwise_leaves_unknown_answers_and_empty_cells_alone() -> None:
    logits_QK = torch.tensor(
        [[1.0, 2.0], [0.0, LOWEST_LOGIT], [LOWEST_LOGIT, LOWEST_LOGIT]], requires_grad=True
    )
    losses = listwise(logits_QK, torch.tensor([-1, 0, -1]))
    assert losses.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(losses.sum(), logits_QK)
    assert gradient.tolist() == [[0, 0], [0, 0], [0, 0]]


# ---------------------------------------------------------------------------- distillation


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sampled_from([0.3, 1.0, 2.0, 20.0]),
    st.integers(0, 99),
)
def test_distillation_is_the_divergence_over_the_questions_own_options(
    options: list[int], temperature: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits_QK = torch.full((len(options) + 1, max(options)), LOWEST_LOGIT)
    teacher_QK = torch.zeros_like(logits_QK)
    expected = []
    for place, count in enumerate(options):
        logits_QK[place, :count] = 5 * torch.randn(count, generator=rng)
        if place % 3 == 2:
            expected.append(0.0)  # nobody teaches it
            continue
        teacher_QK[place, :count] = torch.rand(count, generator=rng)
        teacher_QK[place, 0] *= place % 2  # some say 0
        teacher_QK[place] /= teacher_QK[place].sum().clamp(min=1e-9)
        values = [math.exp(it / temperature) for it in logits_QK[place, :count].tolist()]
        wanted = teacher_QK[place, :count].tolist()
        pairs = zip(wanted, values, strict=True)
        each = [p * (math.log(p) - math.log(v / sum(values))) for p, v in pairs if p]
        expected.append(temperature**2 * sum(each))
    expected.append(0.0)  # an empty place
    logits_QK.requires_grad_()
    losses_Q = distillation(logits_QK, teacher_QK, temperature)
    torch.testing.assert_close(losses_Q, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    (gradient_QK,) = torch.autograd.grad(losses_Q.sum(), logits_QK)
    assert gradient_QK.isfinite().all() and not gradient_QK[logits_QK <= LOWEST_LOGIT].any()
    assert not gradient_QK[~teacher_QK.any(dim=1)].any()


def test_whoever_agrees_with_the_teacher_has_nothing_to_lose() -> None:
    logits_QK = torch.tensor([[3.0, -1.0, 0.5]], requires_grad=True)
    losses_Q = distillation(logits_QK, (logits_QK.detach() / 2).softmax(dim=1), 2.0)
    assert losses_Q.item() == pytest.approx(0, abs=1e-6)
    (gradient_QK,) = torch.autograd.grad(losses_Q.sum(), logits_QK)
    assert gradient_QK.abs().max() < 1e-6


def test_the_gradients_size_does_not_depend_on_the_temperature() -> None:
    """Hinton et al. (arXiv 1503.02531): at high temperatures it is (z - v) / K."""
    logits_QK = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    theirs_QK = torch.tensor([[-0.5, 0.4, 0.1]])
    for temperature in (100.0, 1000.0):
        losses_Q = distillation(logits_QK, (theirs_QK / temperature).softmax(dim=1), temperature)
        (gradient_QK,) = torch.autograd.grad(losses_Q.sum(), logits_QK)
        torch.testing.assert_close(gradient_QK, (logits_QK - theirs_QK) / 3, atol=2e-2, rtol=0)


# ---------------------------------------------------------------------------- contrast


def batch_of(asked: list[Question | None], mode: ProblemPicture = ADDED) -> PairBatch:
    return collate(asked, Letters(), pixels, mode).map(torch.from_numpy)


def right_pair(asked: Question | None, batch: PairBatch) -> tuple[int, int] | None:
    """(query, picture) of the right option, found by what they show and not by `cell_QK`."""
    if asked is None or asked.answer < 0:
        return None
    pair = render(asked, ADDED)[asked.answer]
    (text,) = join(pair.question, [pair.option], Letters())
    shown = batch.pixels_IHWC[:, 0, 0, 0].tolist()
    context = -1 if pair.context is None else shown.index(pair.context.data[0])
    queries = list(zip(batch.text_of_V.tolist(), batch.picture_of_V.tolist(), strict=True))
    query = queries.index((unpacked(batch.texts).index(text.tokens), context))
    return query, shown.index(pair.picture.data[0])


def slow_contrast(logits: list[list[float]], rights: list[tuple[int, int] | None]) -> list[float]:
    known = {right for right in rights if right is not None}
    losses = []
    for right in rights:
        if right is None:
            losses.append(0.0)
            continue
        query, shown = right
        over_queries = over_pictures = 0.0
        for other in range(len(logits)):
            if other == query or (other, shown) not in known:
                over_queries += math.exp(logits[other][shown])
        for other in range(len(logits[0])):
            if other == shown or (query, other) not in known:
                over_pictures += math.exp(logits[query][other])
        own = logits[query][shown]
        losses.append((math.log(over_queries) - own + math.log(over_pictures) - own) / 2)
    return losses


def contrast(logits_VI: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    right = right_pairs(batch)
    return in_batch_contrast(logits_VI, right, right)


def contrast_case(asked: list[Question | None], seed: int) -> tuple[torch.Tensor, list[float]]:
    batch = batch_of(asked)
    shape = len(batch.text_of_V), len(batch.pixels_IHWC)
    logits_VI = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    slow = slow_contrast(logits_VI.tolist(), [right_pair(one, batch) for one in asked])
    return contrast(logits_VI, batch), slow


@settings(max_examples=40)
@given(st.lists(questions() | st.none(), min_size=1, max_size=8).filter(any), st.integers(0, 99))
def test_contrast_equals_a_double_loop(asked: list[Question | None], seed: int) -> None:
    fast, slow = contrast_case(asked, seed)
    torch.testing.assert_close(fast, torch.tensor(slow), rtol=1e-5, atol=1e-5)


SAME_TEXT: list[Question | None] = [question([picture(n), picture(9)], answer=0) for n in range(3)]
SAME_PICTURE: list[Question | None] = [
    question([text, "z"], picture(0), answer=0) for text in ("a", "b", "c")
]
SAME_PAIR: list[Question | None] = [question([picture(0), picture(9)], answer=0)] * 3


@pytest.mark.parametrize("asked", [SAME_TEXT, SAME_PICTURE, SAME_PAIR])
def test_right_pairs_are_no_negatives_of_each_other(asked: list[Question | None]) -> None:
    fast, slow = contrast_case(asked, 0)
    torch.testing.assert_close(fast, torch.tensor(slow))
    # Where only what is right has a high logit, nothing is left to lose.
    batch = batch_of(asked)
    logits_VI = torch.full((len(batch.text_of_V), len(batch.pixels_IHWC)), -50.0)
    for one in asked:
        right = right_pair(one, batch)
        assert right is not None
        logits_VI[right] = 50.0
    assert contrast(logits_VI, batch).abs().max() < 1e-6


def test_unknown_answers_and_empty_places_have_no_loss_and_no_gradient() -> None:
    asked = [question([picture(0), picture(1)], answer=-1), None]
    batch = batch_of(asked)
    logits_VI = torch.randn(1, 2, requires_grad=True)
    losses = contrast(logits_VI, batch)
    assert losses.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(losses.sum(), logits_VI)
    assert gradient.tolist() == [[0, 0]]


def test_a_right_option_without_a_pair_counts_as_unknown() -> None:
    third_kind = question([picture(0), picture(1)], picture(2), answer=1)
    other = question([picture(3), picture(4)], answer=0, problem="other")
    batch = batch_of([third_kind, other], ProblemPicture.reference)
    losses = contrast(torch.randn(len(batch.text_of_V), len(batch.pixels_IHWC)), batch)
    assert losses[0] == 0
    assert losses[1] > 0


def test_weight_0_takes_a_question_out_of_the_right_pairs() -> None:
    asked: list[Question | None] = [question([picture(n)], answer=0) for n in range(2)]
    batch = batch_of(asked)
    batch.weight_Q[1] = 0
    losses = contrast(torch.zeros(1, 2), batch)
    torch.testing.assert_close(losses, torch.tensor([math.log(2) / 2, 0.0]))


def test_gradients_are_those_of_finite_differences() -> None:
    asked: list[Question | None] = [
        *SAME_TEXT,
        *SAME_PICTURE,
        None,
        question([picture(0), picture(5)], picture(1), answer=1),
        question([picture(0)], picture(1), answer=-1),
    ]
    batch = batch_of(asked)
    shape = len(batch.text_of_V), len(batch.pixels_IHWC)
    logits_VI = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits_VI.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: contrast(logits, batch), (logits_VI,))


def test_large_logits_stay_finite() -> None:
    batch = batch_of(SAME_TEXT)
    logits_VI = torch.full((len(batch.text_of_V), len(batch.pixels_IHWC)), 100.0)
    logits_VI[:, 0] = -100
    logits_VI.requires_grad_()
    losses = contrast(logits_VI, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), logits_VI)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clipstem.averages import ALPHAS, MovingAverage, Weights, between, greedy_soup, wise_ft
from clipstem.metrics import Summary


def weights(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor([float(value)]), "count": torch.tensor(int(value))}


def score_by(macro: Callable[[float], float]) -> Callable[[Weights], Summary]:
    """A stand-in for `tune`: accuracy is a function of the single weight."""
    return lambda it: Summary(1, 0.5, macro(float(it["w"])), 0.0, 0.0, 0.1, {})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_the_ends_are_exactly_the_two_weights() -> None:
    start, end = ({"w": torch.randn(1000)} for _ in range(2))
    assert torch.equal(between(start, end, 0.0)["w"], start["w"])
    assert torch.equal(between(start, end, 1.0)["w"], end["w"])
    expected = 0.7 * start["w"] + 0.3 * end["w"]
    torch.testing.assert_close(between(start, end, 0.3)["w"], expected)


def test_the_moving_average_is_the_hand_loops() -> None:
    model = network()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    average = MovingAverage(model, 0.9)
    for step in range(1, 120):
        model(torch.randn(8, 3))  # moves the batch statistics
        with torch.no_grad():
            model.get_parameter("0.weight").add_(torch.randn(4, 3))
        average.update(model)
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                expected[name] = value.clone()
            else:
                expected[name] = keep * expected[name] + (1 - keep) * value
    assert keep == 0.9
    for name, value in expected.items():
        torch.testing.assert_close(average.weights[name], value)
    assert int(average.weights["1.num_batches_tracked"]) == 119


def test_the_average_takes_the_weights_place_and_gives_it_back() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    mean = average.weights["0.weight"].clone()
    with average.in_place(model):
        assert torch.equal(model.state_dict()["0.weight"], mean)
    assert not model.state_dict()["0.weight"].any()
    assert torch.equal(average.weights["0.weight"], mean)


def brute_force_soup(values: list[float], macro: Callable[[float], float]) -> list[int]:
    taken = [0]
    for number in range(1, len(values)):
        mean = sum(values[n] for n in [*taken, number]) / (len(taken) + 1)
        now = sum(values[n] for n in taken) / len(taken)
        if macro(mean) >= macro(now):
            taken.append(number)
    return taken


@given(st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=5), st.integers(-3, 3))
def test_the_soup_is_the_one_that_greedy_brute_force_picks(values: list[float], best: int) -> None:
    def macro(weight: float) -> float:
        return -round(abs(weight - best), 3)

    values.sort(key=lambda value: -macro(value))
    soup, taken = greedy_soup(weights(values[0]), map(weights, values[1:]), score_by(macro))
    assert taken == brute_force_soup(values, macro)
    assert float(soup["w"]) == pytest.approx(sum(values[n] for n in taken) / len(taken), abs=1e-5)


@pytest.mark.parametrize(
    ("macro", "keeps", "alpha"),
    [
        (lambda w: w, 0.95, 1.0),
        (lambda w: w, 0.5, 0.5),
        (lambda w: min(w, 0.4), 0.98, 0.4),  # the whole gain is there early
        (lambda w: min(w, 0.4), 1.0, 0.4),
        (lambda w: 1 - w, 0.98, 0.0),  # nothing was gained
        (lambda w: 0.5, 0.98, 0.0),
        (lambda w: w * (1.4 - w), 0.98, 0.4),  # best in the middle
    ],
)
def test_the_least_alpha_that_keeps_the_gain_is_chosen(
    macro: Callable[[float], float], keeps: float, alpha: float
) -> None:
    chosen, curve = wise_ft(weights(0), weights(1), score_by(macro), keeps)
    assert chosen == alpha
    assert [point.alpha for point in curve] == list(ALPHAS)
    assert [point.macro for point in curve] == pytest.approx([macro(a) for a in ALPHAS], abs=1e-6)


@pytest.mark.parametrize(("start", "tuned"), [(0.0, 2.0), (2.0, 0.0)])
def test_the_curve_ends_at_start_and_tuned(start: float, tuned: float) -> None:
    _, curve = wise_ft(weights(start), weights(tuned), score_by(lambda w: w), 0.9)
    assert (curve[0].macro, curve[-1].macro) == (start, tuned)

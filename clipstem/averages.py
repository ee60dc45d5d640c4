"""Weights between weights: moving average, greedy soup, and from the start to the tuned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipstem.metrics import Summary

Weights = Mapping[str, Tensor]
Score = Callable[[Weights], Summary]
"""How good weights are, on `tune`."""

ALPHAS = tuple(step / 10 for step in range(11))


def between(start: Weights, end: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) · start + alpha · end, exactly the one at 0 and the other at 1.

    Batch statistics are weights here too; counters are the end's.
    """
    return {
        name: torch.lerp(start[name], value, alpha) if value.is_floating_point() else value
        for name, value in end.items()
    }


class MovingAverage:
    """The exponential moving average of a model's weights and batch statistics.

    Early on it keeps less, min(decay, (1 + n) / (10 + n)) after n updates, as TensorFlow's and
    timm's do: a short run's average would else be mostly its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Meanwhile the model has the averaged weights."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            kept = value.clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)


def greedy_soup(
    best: Weights, others: Iterable[Weights], score: Score
) -> tuple[dict[str, Tensor], list[int]]:
    """The mean of those candidates that, one after the other, do not lower the macro accuracy.

    `others` come best first. Returns the weights and the places of the candidates in it, of which
    0 is the best. Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
    """
    soup, taken, reached = dict(best), [0], score(best).macro
    for place, candidate in enumerate(others, start=1):
        richer = between(soup, candidate, 1 / (len(taken) + 1))
        if (macro := score(richer).macro) >= reached:
            soup, reached = richer, macro
            taken.append(place)
    return soup, taken


@dataclass(frozen=True)
class Point:
    """What weights between start and tuned reach on `tune`."""

    alpha: float
    macro: float
    micro: float
    nll: float


def wise_ft(
    start: Weights, tuned: Weights, score: Score, keeps: float
) -> tuple[float, list[Point]]:
    """The smallest α that keeps `keeps` of the tuned weights' gain in macro accuracy; the curve.

    Without a gain that is 0: the start. Source: Wortsman et al. 2021, "Robust fine-tuning of
    zero-shot models"; the criterion is ours, see `TuneConfig.wise_ft_keeps`.
    """
    curve = []
    for alpha in ALPHAS:
        found = score(between(start, tuned, alpha))
        curve.append(Point(alpha, found.macro, found.micro, found.nll))
    enough = curve[0].macro + keeps * (curve[-1].macro - curve[0].macro)
    # Rounding must not turn a curve that is flat at its end into one that keeps too little.
    chosen = next(point for point in curve if point.macro >= enough - 1e-9)
    return chosen.alpha, curve

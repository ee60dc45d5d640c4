"""Splits: whole components, exact shares."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipstem.splits import components, divide


@given(st.data(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_a_plain_search(data: st.DataObject, questions: int) -> None:
    edge = st.tuples(st.integers(0, questions - 1), st.integers(0, 30))
    edges = data.draw(st.lists(edge, max_size=60))
    question_T, token_T = np.array(edges, np.int64).reshape(-1, 2).T
    label = list(range(questions))
    for _ in range(questions):
        for question, token in edges:
            least = min(label[q] for q, t in edges if t == token)
            label[question] = least
    assert components(question_T, token_T, questions).tolist() == label


def test_a_long_chain_is_one_component() -> None:
    links = np.arange(100_000)
    question_T = np.concatenate([links, links + 1])
    token_T = np.concatenate([links, links])
    assert (components(question_T, token_T, 100_001) == 0).all()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(0, 99))
@settings(deadline=None)
def test_shares_hold_whole_components(component_N: list[int], seed: int) -> None:
    share_N = divide(np.array(component_N), [0.7, 0.3], seed)
    assert len({(c, s) for c, s in zip(component_N, share_N.tolist(), strict=True)}) == len(
        set(component_N)
    )


def test_single_questions_are_divided_exactly() -> None:
    share_N = divide(np.arange(1000), [0.8, 0.15, 0.05], seed=1)
    assert np.bincount(share_N).tolist() == [800, 150, 50]

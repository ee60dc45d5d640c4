"""Each key is made once while it is remembered, and always gets its own row."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipstem.memory import Memory


@given(st.lists(st.lists(st.integers(0, 12), unique=True, min_size=1), max_size=8), st.data())
def test_a_memory_gives_each_key_its_own_row(asked: list[list[int]], data: st.DataObject) -> None:
    memory, made, asked_at_once = Memory(size=data.draw(st.integers(1, 20))), 0, 0
    of_numpy = data.draw(st.booleans())
    for keys in asked:

        def make(new: list[int] | None, keys: list[int] = keys) -> Any:
            nonlocal made
            assert new is None or 0 < len(new) < len(keys)
            wanted = keys if new is None else [keys[place] for place in new]
            made += len(wanted)
            rows = np.array([[float(key), 1.0] for key in wanted], np.float32)
            return rows if of_numpy else torch.from_numpy(rows)

        asked_at_once = max(asked_at_once, len(keys))
        assert memory.recall(keys, make).tolist() == [[key, 1] for key in keys]
        assert len(memory._place) <= max(memory.size, asked_at_once)
        assert memory.nbytes == 8 * len(memory._place)
    if memory.size >= 13:
        assert made == len({key for keys in asked for key in keys})


@pytest.mark.parametrize("of_numpy", [True, False])
def test_rows_come_from_every_block(of_numpy: bool) -> None:
    memory, rng = Memory(size=5000), np.random.default_rng(0)

    def rows(keys: Any) -> Any:
        made = np.stack([keys, keys], axis=1).astype(np.float32)
        return made if of_numpy else torch.from_numpy(made)

    for keys in np.arange(7000).reshape(-1, 100):
        memory.recall(keys.tolist(), partial(lambda made, _: made, rows(keys)))
    assert len(memory._blocks) > 2
    keys = rng.permutation(np.arange(2000, 7000))
    with pytest.raises(ZeroDivisionError):
        memory.recall([*keys[:5].tolist(), -1], lambda _: 1 // 0)
    found = memory.recall(keys.tolist(), lambda _: 1 // 0)
    np.testing.assert_array_equal(np.asarray(found), np.stack([keys, keys], axis=1))


def test_a_memory_that_could_not_keep_rows_has_none() -> None:
    memory = Memory(size=2)
    row = np.zeros((1, 3), np.float32)
    memory.recall(["a"], lambda _: row)
    with pytest.raises(ValueError, match="1 rows were made for 2 keys"):
        memory.recall(["b", "c"], lambda _: row)
    with pytest.raises(ValueError, match="shape mismatch"):
        memory.recall(["b"], lambda _: np.zeros((1, 4), np.float32))
    assert memory.nbytes == 0
    assert memory.recall(["a"], lambda _: row + 1).tolist() == [[1, 1, 1]]


def test_what_was_asked_for_longest_ago_is_forgotten_first() -> None:
    memory, made = Memory(size=2), []

    def recall(*keys: str) -> None:
        def make(new: list[int] | None) -> Any:
            wanted = [keys[place] for place in new] if new else list(keys)
            made.extend(wanted)
            return np.zeros((len(wanted), 1), np.float32)

        memory.recall(keys, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        recall(key)
    assert made == ["a", "b", "c", "b"]

"""Each key is made once while it is remembered, and always gets its own row."""

from __future__ import annotations

from typing import Any

import numpy as np
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

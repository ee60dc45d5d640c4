"""Each key is made once while it is remembered, and always gets its own row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from clipstem.memory import Memory


@given(st.lists(st.lists(st.integers(0, 12), unique=True, min_size=1), max_size=8), st.data())
def test_a_memory_gives_each_key_its_own_row(asked: list[list[int]], data: st.DataObject) -> None:
    memory, made = Memory(size=data.draw(st.integers(1, 20))), 0
    for keys in asked:

        def make(new: list[int] | None, keys: list[int] = keys) -> torch.Tensor:
            nonlocal made
            assert new is None or 0 < len(new) < len(keys)
            wanted = keys if new is None else [keys[place] for place in new]
            made += len(wanted)
            return torch.tensor([[float(key), 1.0] for key in wanted])

        assert memory.recall(keys, make)[:, 0].tolist() == keys
        assert len(memory._made) <= memory.size
        assert memory.nbytes == 8 * len(memory._made)
    if memory.size >= 13:
        assert made == len({key for keys in asked for key in keys})

"""Embeddings and features that a model has made, by the content of what they were made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence

from clipstem.packing import Array


class Memory:
    """What a model with these weights makes of a picture or a text, by its content.

    At most `size` entries, then the oldest are forgotten: 65,536 of 768 numbers are 0.2 GB.
    """

    def __init__(self, size: int = 65_536) -> None:
        self.size = size
        self._made: dict[Hashable, Array] = {}

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._made.values())

    def __deepcopy__(self, _: dict[int, object]) -> Memory:
        """Itself: a copy of a model, in another precision, need not copy what it knows."""
        return self

    def recall(
        self, keys: Sequence[Hashable], make: Callable[[list[int] | None], Array]
    ) -> list[Array]:
        """A row for each of the distinct `keys`, to be stacked; NumPy or torch.

        `make` makes those at the places not known yet; it is given None where that is all of them.
        """
        new = [place for place, key in enumerate(keys) if key not in self._made]
        if new:
            made_ND = make(None if len(new) == len(keys) else new)
            self._made.update(zip((keys[place] for place in new), made_ND, strict=True))
        found = [self._made[key] for key in keys]
        for key in [*itertools.islice(self._made, max(0, len(self._made) - self.size))]:
            del self._made[key]
        return found

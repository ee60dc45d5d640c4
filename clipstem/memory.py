"""Embeddings and features that a model has made, by the content of what they were made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from clipstem.packing import Array


class Memory:
    """What a model with these weights makes of a picture or a text, by its content.

    At most `size` rows, or as many as were asked for at once; those that nobody has asked for
    longest are forgotten: 65,536 of 768 numbers are 0.2 GB. They lie in one table: as tensors of
    their own, 192 numbers took three times their memory.
    """

    def __init__(self, size: int = 65_536) -> None:
        self.size = size
        self._place: OrderedDict[Hashable, int] = OrderedDict()  # in the table
        self._table_PD: Array = None  # until there is a first row

    @property
    def nbytes(self) -> int:
        return 0 if self._table_PD is None else self._table_PD[: len(self._place)].nbytes

    def __deepcopy__(self, _: dict[int, object]) -> Memory:
        """Itself: a copy of a model, in another precision, need not copy what it knows."""
        return self

    def recall(self, keys: Sequence[Hashable], make: Callable[[list[int] | None], Array]) -> Array:
        """A row for each of the distinct `keys`, [keys, D]; NumPy or torch.

        `make` makes those at the places not known yet; it is given None where that is all of them.
        """
        new = [place for place, key in enumerate(keys) if key not in self._place]
        for key in keys:
            if key in self._place:
                self._place.move_to_end(key)
        if new:
            made_ND = make(None if len(new) == len(keys) else new)
            self._keep([keys[place] for place in new], made_ND, max(self.size, len(keys)))
            if len(new) == len(keys):
                return made_ND
        return self._table_PD[self._places(keys)]

    def _keep(self, keys: Sequence[Hashable], made_ND: Array, most: int) -> None:
        for key in keys:
            if len(self._place) < most:
                self._place[key] = len(self._place)
            else:
                self._place[key] = self._place.popitem(last=False)[1]
        have = 0 if self._table_PD is None else len(self._table_PD)
        if have < len(self._place):
            larger = min(most, max(2 * have, len(self._place)))
            shape = larger, *made_ND.shape[1:]
            is_numpy = isinstance(made_ND, np.ndarray)
            table_PD = np.empty(shape, made_ND.dtype) if is_numpy else made_ND.new_empty(shape)
            if self._table_PD is not None:
                table_PD[:have] = self._table_PD
            self._table_PD = table_PD
        self._table_PD[self._places(keys)] = made_ND

    def _places(self, keys: Sequence[Hashable]) -> NDArray[np.int64]:
        return np.array([self._place[key] for key in keys])

"""Embeddings and features that a model has made, by the content of what they were made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clipstem.packing import Array

LEAST_ROWS = 1024  # of a block


class Memory:
    """What a model with these weights makes of a picture or a text, by its content.

    At most `size` rows, or as many as were asked for at once; those that nobody has asked for
    longest are forgotten: 65,536 of 768 numbers are 0.2 GB. They lie in blocks, each as large as
    all before it, so that none is ever copied: tensors of their own take far more than their rows.
    """

    def __init__(self, size: int = 65_536) -> None:
        self.size = size
        self._place: OrderedDict[Hashable, int] = OrderedDict()  # in all blocks, one after another
        self._blocks: list[Array] = []

    @property
    def nbytes(self) -> int:
        return len(self._place) * self._blocks[0][:1].nbytes if self._blocks else 0

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
        found_ND = _empty(len(keys), self._blocks[0])
        for rows, block_PD, places in self._parts(keys):
            found_ND[rows] = block_PD[places]
        return found_ND

    def _keep(self, keys: Sequence[Hashable], made_ND: Array, most: int) -> None:
        if len(made_ND) != len(keys):
            raise ValueError(f"{len(made_ND)} rows were made for {len(keys)} keys")
        try:
            have = sum(map(len, self._blocks))
            missing = min(len(self._place) + len(keys), most) - have
            if missing > 0:
                rows = min(most - have, max(have, missing, LEAST_ROWS))
                self._blocks.append(_empty(rows, made_ND))
            for key in keys:
                if len(self._place) < most:
                    self._place[key] = len(self._place)
                else:
                    self._place[key] = self._place.popitem(last=False)[1]
            for rows_N, block_PD, places in self._parts(keys):
                block_PD[places] = made_ND[rows_N]
        except BaseException:  # without memory, say: a key must never have another's row
            self._place.clear()
            self._blocks.clear()
            raise

    def _parts(
        self, keys: Sequence[Hashable]
    ) -> Iterator[tuple[NDArray[np.int64], Array, NDArray[np.int64]]]:
        """Which of `keys` lie in a block, the block, and where in it."""
        place_N = np.array([self._place[key] for key in keys])
        start = 0
        for block_PD in self._blocks:
            inside_N = (place_N >= start) & (place_N < start + len(block_PD))
            if inside_N.any():
                yield np.flatnonzero(inside_N), block_PD, place_N[inside_N] - start
            start += len(block_PD)


def _empty(rows: int, like: Array) -> Array:
    shape = rows, *like.shape[1:]
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)

"""Towers whose trunks do not learn: each distinct picture and text goes through them once.

I distinct pictures, U distinct texts, D the embeddings' width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clipstem.layers import Head, head_of
from clipstem.pairs import PairBatch
from clipstem.tokens import Tokens
from clipstem.towers import Towers, text_tower, unit

Key = TypeVar("Key", bound=Hashable)


class RememberingTowers(Towers):
    """The same towers around the same model; what goes into a head is remembered by its key.

    Right as long as the trunks' weights stay as they are. Features lie in the host's memory.

    Attributes:
        picture_head: the picture tower's head, or None where pictures are not remembered.
        text_head: the same for texts.
    """

    def __init__(self, towers: Towers, pictures: bool) -> None:
        super().__init__(towers.model, towers.model_cfg, towers.spec, towers.tokenizer)
        self.picture_head = head_of(towers.model.visual) if pictures else None
        self.text_head = head_of(text_tower(towers.model))
        self._of_picture: dict[str, Tensor] = {}
        self._of_text: dict[Tokens, Tensor] = {}

    @property
    def knows_pictures(self) -> bool:
        """Whether pictures are remembered, so that they need not be decoded again."""
        return self.picture_head is not None

    def embed(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        return self._pictures(batch), self._texts(batch)

    def remember(self, batch: PairBatch) -> None:
        """Encode what the batch has and is not known yet."""
        if self.picture_head is not None:
            self._pictures(batch)
        if self.text_head is not None:
            self._texts(batch)

    @property
    def remembered_bytes(self) -> int:
        rows = [*self._of_picture.values(), *self._of_text.values()]
        return sum(row.nbytes for row in rows)

    def _pictures(self, batch: PairBatch) -> Tensor:
        if self.picture_head is None:
            return self.encode_pictures(batch.pixels_IHWC)
        # `loader.Batches(decodes=False)` is for batches whose pictures are all known.
        return self._head_of_known(
            self.picture_head,
            self._of_picture,
            batch.picture_keys,
            lambda: self.picture_features(batch.pixels_IHWC),
        )

    def _texts(self, batch: PairBatch) -> Tensor:
        if self.text_head is None:
            return self.encode_texts(batch.texts)
        return self._head_of_known(
            self.text_head,
            self._of_text,
            batch.text_keys,
            lambda: self.text_features(batch.texts),
        )

    def _head_of_known(
        self,
        head: Head,
        known: dict[Key, Tensor],
        keys: Sequence[Key],
        features: Callable[[], Tensor],
    ) -> Tensor:
        """Unit embeddings from remembered features; a batch with an unknown key is computed."""
        if not all(key in known for key in keys):
            # Tensors made in inference mode could not take part in a training step later.
            with torch.inference_mode(False), torch.no_grad(), head.taken_off():
                for key, row in zip(keys, features().cpu(), strict=True):
                    known.setdefault(key, row.clone())
        found = torch.stack([known[key] for key in keys])
        return unit(head(found.to(self.mean_C.device)))

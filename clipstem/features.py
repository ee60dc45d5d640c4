"""Towers whose trunks do not learn: each distinct picture and text goes through them once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from clipstem.layers import Head, head_of
from clipstem.memory import Memory
from clipstem.pairs import PairBatch
from clipstem.towers import Towers, text_tower, unit


class RememberingTowers(Towers):
    """The same towers around the same model; what goes into a head is remembered by its content.

    Right as long as the trunks' weights stay as they are. Features lie in the host's memory.

    Attributes:
        picture_head: the picture tower's head, or None where pictures are not remembered.
        text_head: the same for texts.
    """

    def __init__(self, towers: Towers, pictures: bool) -> None:
        super().__init__(towers.model, towers.model_cfg, towers.spec, towers.tokenizer)
        self.picture_head = head_of(towers.model.visual) if pictures else None
        self.text_head = head_of(text_tower(towers.model))
        self._pictures, self._texts = Memory(sys.maxsize), Memory(sys.maxsize)

    @property
    def knows_pictures(self) -> bool:
        """Whether pictures are remembered, so that they need not be decoded again."""
        return self.picture_head is not None

    @property
    def remembered_bytes(self) -> int:
        return self._pictures.nbytes + self._texts.nbytes

    def remember(self, batch: PairBatch) -> None:
        """Encode what the batch has and is not known yet."""
        with torch.no_grad():
            if self.picture_head is not None:
                self.embed_pictures(batch)
            if self.text_head is not None:
                self.embed_texts(batch)

    def embed_pictures(self, batch: PairBatch, places: Sequence[int] | None = None) -> Tensor:
        if self.picture_head is None:
            return super().embed_pictures(batch, places)

        def features(new: list[int] | None) -> Tensor:
            wanted = _chosen(places, new)
            pixels_IHWC = batch.pixels_IHWC if wanted is None else batch.pixels_IHWC[wanted]
            return self.picture_features(self.here(pixels_IHWC))

        keys = batch.pictures if places is None else [batch.pictures[place] for place in places]
        return self._embedded(self.picture_head, self._pictures, keys, features)

    def embed_texts(self, batch: PairBatch, places: Sequence[int] | None = None) -> Tensor:
        if self.text_head is None:
            return super().embed_texts(batch, places)

        def features(new: list[int] | None) -> Tensor:
            return self.text_features(self.texts_at(batch, _chosen(places, new)))

        keys = [text.tokens for text in batch.joined]
        keys = keys if places is None else [keys[place] for place in places]
        return self._embedded(self.text_head, self._texts, keys, features)

    def _embedded(
        self,
        head: Head,
        memory: Memory,
        keys: Sequence[Hashable],
        features: Callable[[list[int] | None], Tensor],
    ) -> Tensor:
        """Unit embeddings of what the memory has, or `features` makes."""

        def make(new: list[int] | None) -> Tensor:
            with head.taken_off():
                return features(new).float().cpu()

        # Tensors made in inference mode could not take part in a training step later.
        with torch.inference_mode(False), torch.no_grad():
            features_ND = self.here(memory.recall(keys, make))
        return unit(head(features_ND.to(self.model.logit_scale.dtype)))


def _chosen(places: Sequence[int] | None, new: list[int] | None) -> Sequence[int] | None:
    """Those of `places` whose own places are in `new`; None is all."""
    if new is None or places is None:
        return places if new is None else new
    return [places[place] for place in new]

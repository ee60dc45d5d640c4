from __future__ import annotations

import open_clip

from clipstem.clip_tokenizer import TextTokenizer
from clipstem.tokens import Layout


def test_token_ids_are_open_clips() -> None:
    ours = TextTokenizer(open_clip.SimpleTokenizer(), Layout.PACKED)
    text = "What's the NAME of this  shape? 12 &amp; café"
    expected = open_clip.get_tokenizer("ViT-B-32")(text)[0]
    ids = (*ours.before, *ours.encode(text), *ours.after)
    assert expected[: len(ids)].tolist() == list(ids)
    assert not expected[len(ids) :].any()

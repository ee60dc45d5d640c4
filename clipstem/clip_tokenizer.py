"""The tokenizers of open_clip: texts to tokens, and the file of them that a bundle holds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, get_clean_fn

from clipstem.question import ClipstemError
from clipstem.tokens import Layout, Tokens

WORD_END = "</w>"  # of CLIP's byte pairs
WORDS = (  # that they are made in, as in open_clip
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


class TextTokenizer:
    """An open_clip tokenizer as `tokens.Tokenizer`; a text is encoded once, then remembered.

    Raises:
        ClipstemError: for a tokenizer that does more than put marks around a text.
    """

    def __init__(self, tokenizer: Any, layout: Layout) -> None:
        self.context_length: int = tokenizer.context_length
        self.layout = layout
        self._tokenizer = tokenizer
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            self.before: Tokens = (tokenizer.sot_token_id,)
            self.after: Tokens = (tokenizer.eot_token_id,)
            self.padding = 0
        elif isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode:
            self.before, self.after = _marks(tokenizer)
            self.padding = int(tokenizer.tokenizer.pad_token_id)
        else:
            raise ClipstemError(
                f"the model's tokenizer is {type(tokenizer).__name__} "
                f"{getattr(tokenizer, 'tokenizer_mode', '')}; expected CLIP's byte pairs or a "
                "plain Hugging Face tokenizer"
            )
        self._remember()

    def save(self, folder: Path) -> None:
        """Write what open_clip needs to make it again; CLIP's byte pairs need nothing."""
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.save_pretrained(folder)

    @property
    def clean(self) -> str:
        """open_clip's name for what it does to a text before it becomes tokens."""
        names = ("lower", "whitespace", "canonicalize")
        return next(it for it in names if get_clean_fn(it) is self._tokenizer.clean_fn)

    def export(self, path: Path) -> None:
        """Write it as a file of the library `tokenizers`, without cleaning and marks."""
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.tokenizer.backend_tokenizer.save(str(path))
        else:
            _byte_pairs(self._tokenizer).save(str(path))

    def _encode(self, text: str) -> Tokens:
        if isinstance(self._tokenizer, HFTokenizer):
            clean = self._tokenizer.clean_fn(text)
            return tuple(self._tokenizer.tokenizer(clean, add_special_tokens=False).input_ids)
        return tuple(self._tokenizer.encode(text))

    def _remember(self) -> None:
        self.encode = lru_cache(maxsize=65_536)(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()


def _marks(tokenizer: Any) -> tuple[Tokens, Tokens]:
    """What a Hugging Face tokenizer puts before and behind every text."""
    whole = tokenizer.tokenizer("a").input_ids
    own = tokenizer.tokenizer("a", add_special_tokens=False).input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    after = tuple(whole[start + len(own) :])
    if tokenizer.strip_sep_token:  # open_clip then writes 0 in its place
        after = tuple(0 if mark == tokenizer.tokenizer.sep_token_id else mark for mark in after)
    return tuple(whole[:start]), after


def _byte_pairs(tokenizer: Any) -> Any:
    """CLIP's byte pairs as a `tokenizers.Tokenizer`: the same ids for a text that was cleaned."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    vocabulary, merges = dict(tokenizer.encoder), list(tokenizer.bpe_ranks)
    pieces_of = models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END).tokenize
    # A mark that stands in a text is one token there. Nothing else joins letters with symbols, so
    # its pieces can be merged behind all other merges; ids of what is half merged never come out.
    for mark in ("<start_of_text>", "<end_of_text>"):
        identity = vocabulary.pop(mark)
        joined, *others = [piece.value for piece in pieces_of(mark)]
        for piece in others:
            merges.append((joined, piece))
            joined += piece
            vocabulary.setdefault(joined, tokenizer.vocab_size + len(merges))
        vocabulary[joined] = identity
    fast = Fast(models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END))
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    return fast

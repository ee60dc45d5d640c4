"""How a question and one of its options become a row of tokens: STEM's joining rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

Tokens = tuple[int, ...]


class Layout(Enum):
    """How a text tower may read texts and still give the numbers of full-length rows."""

    PACKED = "packed"  # shared beginnings once, several texts a row: causal, read out at the end
    TRIMMED = "trimmed"  # a row a text, as long as the longest: the tower masks its padding
    FULL = "full"  # a row a text, of full length: the tower sees its padding


class Tokenizer(Protocol):
    """What both engines offer: token ids of a text, and what the text tower wants around them.

    Attributes:
        before, after: the marks around every text; CLIP has one each, SigLIP none before.
        padding: the id that fills a row.
        context_length: tokens of a full row, marks included.
        layout: how rows may be laid out for this tower.
    """

    before: Tokens
    after: Tokens
    padding: int
    context_length: int
    layout: Layout

    def encode(self, text: str) -> Tokens: ...


@dataclass(frozen=True, slots=True)
class JoinedText:
    """One text: the part it shares with its question's other options, and its own part.

    `shared + own` is the row that the text tower reads; `truncated` counts the tokens of question
    and option that did not fit into the tower's context.
    """

    shared: Tokens
    own: Tokens
    truncated: int

    @property
    def tokens(self) -> Tokens:
        return self.shared + self.own


def join(question: str, options: Sequence[str], tokenizer: Tokenizer) -> list[JoinedText]:
    """Join a question with each of its options at token level, without a separator.

    Text i is BEFORE + question[:m] + option_i + AFTER with m = max(0, min(room - len(option_i),
    len(question))), where room is what the marks leave of the context: the option stays whole and
    the question's tail is cut. An option that alone does not fit is cut at its end. A question
    without text options is joined with one empty text. Source: the public evaluation code of STEM
    (arXiv 2402.17205), there for CLIP's two marks.

    The shared part is the longest beginning of the question that every option keeps, so that a
    causal tower can encode it once.
    """
    room = tokenizer.context_length - len(tokenizer.before) - len(tokenizer.after)
    asked = tokenizer.encode(question)
    whole = [tokenizer.encode(option) for option in options]
    cut = [option[:room] for option in whole]
    kept = [max(0, min(room - len(option), len(asked))) for option in cut]
    shared = min(kept)
    return [
        JoinedText(
            shared=(*tokenizer.before, *asked[:shared]),
            own=(*asked[shared:keep], *option, *tokenizer.after),
            truncated=len(asked) - keep + len(full) - len(option),
        )
        for full, option, keep in zip(whole, cut, kept, strict=True)
    ]

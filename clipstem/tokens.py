"""How a question and one of its options become a row of tokens: STEM's joining rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Tokens = tuple[int, ...]


class Tokenizer(Protocol):
    """What both engines offer: token ids of a text, without the two marks around it."""

    start: int
    end: int
    context_length: int

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

    Text i is START + question[:m] + option_i + END with m = max(0, min(context - len(option_i) - 2,
    len(question))): the option stays whole and the question's tail is cut. An option that alone
    does not fit is cut at its end. A question without text options is joined with one empty text.
    Source: the public evaluation code of STEM (arXiv 2402.17205).

    The shared part is the longest beginning of the question that every option keeps, so that a
    causal tower can encode it once.
    """
    room = tokenizer.context_length - 2
    asked = tokenizer.encode(question)
    whole = [tokenizer.encode(option) for option in options]
    cut = [option[:room] for option in whole]
    kept = [max(0, min(room - len(option), len(asked))) for option in cut]
    shared = min(kept)
    return [
        JoinedText(
            shared=(tokenizer.start, *asked[:shared]),
            own=(*asked[shared:keep], *option, tokenizer.end),
            truncated=len(asked) - keep + len(full) - len(option),
        )
        for full, option, keep in zip(whole, cut, kept, strict=True)
    ]

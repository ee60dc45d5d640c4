"""STEM's joining rule, against golden rows and a plain second reading of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from samples import END, START, Letters

from clipstem.tokens import JoinedText, Tokens, join


def ids(text: str) -> Tokens:
    return tuple(map(ord, text))


def test_what_fits_is_joined_without_a_separator() -> None:
    assert join("abc", ["de", "f"], Letters(context_length=8)) == [
        JoinedText(shared=(START, *ids("abc")), own=(*ids("de"), END), truncated=0),
        JoinedText(shared=(START, *ids("abc")), own=(*ids("f"), END), truncated=0),
    ]


def test_the_questions_tail_is_cut_and_the_shared_part_is_the_shortest_kept() -> None:
    assert join("abcdef", ["xy", "wxyz"], Letters(context_length=8)) == [
        JoinedText(shared=(START, *ids("ab")), own=(*ids("cdxy"), END), truncated=2),
        JoinedText(shared=(START, *ids("ab")), own=(*ids("wxyz"), END), truncated=4),
    ]


def test_an_option_that_alone_does_not_fit_is_cut_at_its_end() -> None:
    assert join("abc", ["tuvwxyz", "z"], Letters(context_length=8)) == [
        JoinedText(shared=(START,), own=(*ids("tuvwxy"), END), truncated=3 + 1),
        JoinedText(shared=(START,), own=(*ids("abcz"), END), truncated=0),
    ]


def test_a_question_whose_options_are_pictures_is_joined_with_empty_texts() -> None:
    text = JoinedText(shared=(START, *ids("abcdef")), own=(END,), truncated=1)
    assert join("abcdefg", ["", ""], Letters(context_length=8)) == [text, text]


def stems_row(question: str, option: str, context: int) -> tuple[Tokens, int]:
    """The row, and how many tokens were dropped: one by one, the question's last ones first."""
    asked, answer, dropped = list(ids(question)), list(ids(option)), 0
    while len(asked) + len(answer) + 2 > context:
        (asked or answer).pop()
        dropped += 1
    return (START, *asked, *answer, END), dropped


@given(
    question=st.text("ab", min_size=1, max_size=12),
    options=st.lists(st.text("ab", max_size=12), min_size=1, max_size=5),
    context=st.integers(3, 20),
)
def test_join_follows_stems_rule(question: str, options: list[str], context: int) -> None:
    joined = join(question, options, Letters(context_length=context))
    rows = [stems_row(question, option, context) for option in options]
    assert [(text.tokens, text.truncated) for text in joined] == rows
    for (row, _), option in zip(rows, options, strict=True):
        whole = ids(option)[: context - 2]
        assert len(row) <= context
        assert row[len(row) - 1 - len(whole) : -1] == whole

    # As long as every option allows: one more letter of the question would not be in all rows.
    kept = [
        len(row) - 2 - min(len(option), context - 2)
        for (row, _), option in zip(rows, options, strict=True)
    ]
    assert {text.shared for text in joined} == {(START, *ids(question)[: min(kept)])}

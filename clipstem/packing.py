"""Texts that begin alike are packed into one row, so that a causal tower reads the beginning once.

A row holds groups, one behind the other. A group is a shared beginning followed by the own parts
of several texts. Token i may look at token j if j stands in the same group, not behind i, and
either in the shared part or in i's own part. Positions of every own part continue from the shared
part's, so each text gets exactly the numbers it would get in a row of its own.

R rows of T tokens hold U distinct texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipstem.tokens import JoinedText, Layout, Tokenizer, Tokens

ROW_TOKENS = 128  # long enough to fill well, short enough that attention (T²) stays cheap
LITTLE_PADDING = 0.05  # of the tokens that are needed; less is not worth the search
ROUND_TOKENS = 8  # row lengths are multiples of this, which bounds the number of shapes
PADDING = -1  # the group of positions that hold no token

Array = Any  # np.ndarray from collate; torch.Tensor once the batch is on its device


@dataclass(frozen=True)
class PackedTexts:
    """`tokens_RT` with each token's position in its text, its group in the row and its part in
    the group (0 is the shared one), all int64; `end_U` is each text's last token, an index into
    the flattened rows."""

    tokens_RT: Array
    position_RT: Array
    group_RT: Array
    part_RT: Array
    end_U: Array

    def map(self, change: Callable[[Array], Array]) -> PackedTexts:
        """The same texts with every array changed, for example moved to a device."""
        return PackedTexts(**{name: change(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class _Group:
    shared: Tokens
    texts: list[tuple[int, Tokens]]  # (index of the text, its own part)

    @property
    def length(self) -> int:
        return len(self.shared) + sum(len(own) for _, own in self.texts)


def lay_out(texts: Sequence[JoinedText], tokenizer: Tokenizer) -> PackedTexts:
    """Distinct texts in the rows that the tokenizer's text tower reads fastest and exactly."""
    if tokenizer.layout is Layout.PACKED:
        return pack(texts)
    longest = max((len(text.tokens) for text in texts), default=1)
    trimmed = min(tokenizer.context_length, _rounded(longest))
    length = trimmed if tokenizer.layout is Layout.TRIMMED else tokenizer.context_length
    return one_a_row(texts, length, tokenizer.padding)


def one_a_row(texts: Sequence[JoinedText], length: int, padding: int) -> PackedTexts:
    """Each text alone in a row of `length` tokens, filled with `padding`; U rows for U texts."""
    shape = (len(texts), length)
    packed = PackedTexts(
        tokens_RT=np.full(shape, padding, np.int64),
        position_RT=np.tile(np.arange(length), (len(texts), 1)),
        group_RT=np.full(shape, PADDING, np.int64),
        part_RT=np.zeros(shape, np.int64),
        end_U=np.zeros(len(texts), np.int64),
    )
    for row, text in enumerate(texts):
        count = len(text.tokens)
        packed.tokens_RT[row, :count] = text.tokens
        packed.group_RT[row, :count] = 0
        packed.end_U[row] = row * length + count - 1
    return packed


def pack(texts: Sequence[JoinedText], row_tokens: int = ROW_TOKENS) -> PackedTexts:
    """Pack distinct texts into rows of one length, with little padding.

    `row_tokens` is the longest a row may be; a text longer than that gets a row length of its own.
    """
    limit = max([row_tokens, *(len(text.tokens) for text in texts)])
    length, rows = _tight_rows(_groups(texts, limit), limit)
    shape = (len(rows), length)
    packed = PackedTexts(
        tokens_RT=np.zeros(shape, np.int64),
        position_RT=np.zeros(shape, np.int64),
        group_RT=np.full(shape, PADDING, np.int64),
        part_RT=np.zeros(shape, np.int64),
        end_U=np.zeros(len(texts), np.int64),
    )
    for row_index, row in enumerate(rows):
        _write_row(packed, row_index, row)
    return packed


def _groups(texts: Sequence[JoinedText], limit: int) -> list[_Group]:
    """Texts by their shared part; a group that would not fit into a row is continued in another."""
    open_groups: dict[Tokens, _Group] = {}
    groups: list[_Group] = []
    for index, text in enumerate(texts):
        group = open_groups.get(text.shared)
        if group is None or group.length + len(text.own) > limit:
            group = open_groups[text.shared] = _Group(text.shared, [])
            groups.append(group)
        group.texts.append((index, text.own))
    return groups


def _tight_rows(groups: list[_Group], limit: int) -> tuple[int, list[list[_Group]]]:
    """A length and rows of groups: the longest length up to `limit` with little padding, else the
    one with the least, and of equal ones the shortest."""
    groups = sorted(groups, key=lambda group: -group.length)
    longest = _rounded(max((group.length for group in groups), default=1))
    enough = sum(group.length for group in groups) * (1 + LITTLE_PADDING)
    found = []
    for length in range(_rounded(limit), longest - 1, -ROUND_TOKENS):
        rows = _fill_rows(groups, min(length, limit))
        found.append((length * len(rows), length, rows))
        if 0 < found[-1][0] <= enough:
            break
    _, length, rows = min(found, key=lambda it: it[:2])
    return length, rows


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUND_TOKENS) * ROUND_TOKENS


def _fill_rows(groups: list[_Group], length: int) -> list[list[_Group]]:
    """First fit: each group into the first row that has room for it."""
    rows: list[list[_Group]] = []
    room: list[int] = []
    for group in groups:
        row = next((i for i, free in enumerate(room) if free >= group.length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(group)
        room[row] -= group.length
    return rows


def _write_row(packed: PackedTexts, row: int, groups: list[_Group]) -> None:
    tokens: list[int] = []
    positions: list[int] = []
    parts: list[int] = []
    group_of: list[int] = []
    for group_index, group in enumerate(groups):
        tokens += group.shared
        positions += range(len(group.shared))
        parts += [0] * len(group.shared)
        for part, (text, own) in enumerate(group.texts, start=1):
            tokens += own
            positions += range(len(group.shared), len(group.shared) + len(own))
            parts += [part] * len(own)
            packed.end_U[text] = row * packed.tokens_RT.shape[1] + len(tokens) - 1
        group_of += [group_index] * (len(tokens) - len(group_of))
    used = slice(0, len(tokens))
    packed.tokens_RT[row, used] = tokens
    packed.position_RT[row, used] = positions
    packed.group_RT[row, used] = group_of
    packed.part_RT[row, used] = parts


def may_look_RTT(packed: PackedTexts) -> Array:
    """Boolean [R, T, T]: may token i (axis 1) look at token j (axis 2)? NumPy and torch alike.

    Padding looks at padding, so no row of the mask is empty and no softmax divides by zero.
    """
    group_RT, part_RT, position = packed.group_RT, packed.part_RT, packed.position_RT
    same_group = group_RT[:, :, None] == group_RT[:, None, :]
    visible_part = (part_RT[:, None, :] == 0) | (part_RT[:, :, None] == part_RT[:, None, :])
    # Inside what is visible, order in the row is order of positions: shared before own.
    not_behind = position[:, None, :] <= position[:, :, None]
    return same_group & visible_part & not_behind

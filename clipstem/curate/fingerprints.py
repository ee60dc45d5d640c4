"""What curation remembers of each question: its texts and options as numbers, its pictures small.

Every question of every split is read once, in worker processes. N questions, O options of all of
them one after the other, P distinct pictures.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipstem.images import small_copy
from clipstem.question import ClipstemError, Picture, Question
from clipstem.shards import Dataset
from clipstem.workers import Workers

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SIDE = 32  # px, of a picture's small copy
STRETCH = 256  # questions read at once by a worker
HASH_BYTES = 16  # of a SHA-256: enough that two of 10^9 never meet by chance

NO_PICTURE = -1

SUPERSCRIPTS, SUBSCRIPTS = (  # but for a few of phonetics, which come later
    "".join(it for it in map(chr, range(0x3200)) if unicodedata.decomposition(it).startswith(kind))
    for kind in ("<super>", "<sub>")
)


@dataclass(frozen=True)
class Fingerprints:
    """All questions of a data set, the splits one after the other.

    Attributes:
        index: `shards.INDEX_SCHEMA` without the places of bytes, and `split`.
        text_N: number of the normalised texts: problem, and options if they are texts. Equal
            numbers mean equal texts, in whatever order the options stand.
        picture_N: number of the problem's picture, or `NO_PICTURE`.
        start_N: [N + 1], where the options of each question begin among all.
        option_O: what the option is: of a picture its number, of a text another number below 0.
        length_O: characters of an option's text; 0 for pictures.
        number_O: what a text says if it is a number, else NaN.
        named_O: whether the option's text stands in the problem.
        small_PHWC: uint8 [P, SIDE, SIDE, 3], on disk.
        size_P2: int64, width and height, px.
        bytes_P: int64, of the encoded file.
        broken: ids of questions with a picture that does not decode, and why; they are compared
            with nothing.
    """

    index: pa.Table
    text_N: Ints
    picture_N: Ints
    start_N: Ints
    option_O: Ints
    length_O: Ints
    number_O: Floats
    named_O: NDArray[np.bool_]
    small_PHWC: NDArray[np.uint8]
    size_P2: Ints
    bytes_P: Ints
    broken: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.text_N)

    def column(self, name: str) -> NDArray[np.object_]:
        """A column of the index, as an array of its values."""
        return np.asarray(self.index[name].to_pylist(), dtype=object)

    @property
    def answer_N(self) -> Ints:
        return np.asarray(self.index["answer"].to_numpy(), np.int64)

    @property
    def num_options_N(self) -> Ints:
        return np.diff(self.start_N)

    @property
    def in_train_N(self) -> NDArray[np.bool_]:
        return self.column("split") == "train"

    @property
    def skill_N(self) -> NDArray[np.object_]:
        """ "subject/skill": two subjects may use one name."""
        return np.asarray(
            [
                f"{subject}/{skill}"
                for subject, skill in zip(
                    self.index["subject"].to_pylist(), self.index["skill"].to_pylist(), strict=True
                )
            ],
            dtype=object,
        )


def normalised(text: str) -> str:
    """A text without what does not change its meaning: case, spacing, forms of one letter."""
    # NFKC alone makes 3² the same as 32, and 101₂ the same as 1012; CO₂ and CO2 are the same.
    text = re.sub(f"([{SUPERSCRIPTS}]+)", r"^\1", text)
    text = re.sub(rf"(?<=\d)(?=[{SUBSCRIPTS}])|(?<=[{SUBSCRIPTS}])(?=\d)", "_", text)
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\W) | (?=\W)", "", plain)


@dataclass
class _Stretch:
    """What a worker sends of a stretch of questions: hashes for the numbers of `Fingerprints`."""

    text: list[bytes] = field(default_factory=list)
    picture: list[bytes] = field(default_factory=list)  # b"" where there is none
    options: list[list[bytes]] = field(default_factory=list)
    has_picture_options: list[bool] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    number: list[float] = field(default_factory=list)
    named: list[bool] = field(default_factory=list)
    smalls: dict[bytes, tuple[NDArray[np.uint8], int, int, int]] = field(default_factory=dict)
    reasons: dict[bytes, str] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)


def read(dataset: Dataset, workers: Workers, progress: Callable[[int], None]) -> Fingerprints:
    """Read every question of a data set once.

    Raises:
        ClipstemError: if a shard is missing or damaged.
    """
    tasks = [
        (split, start, min(start + STRETCH, dataset.size(split)))
        for split in dataset.manifest.questions
        for start in range(0, dataset.size(split), STRETCH)
    ]
    texts: dict[bytes, int] = {}
    words: dict[bytes, int] = {}
    pictures: dict[bytes, int] = {}
    text_N: list[int] = []
    picture_N: list[int] = []
    counts: list[int] = [0]
    option_O: list[int] = []
    length_O, number_O, named_O = [], [], []
    facts: list[tuple[int, int, int]] = []
    broken: list[tuple[str, str]] = []
    # A million small copies are 3 GB: they stay on disk, and only what is compared is read again.
    with tempfile.TemporaryFile() as file:
        for part in workers.map(partial(_read_stretch, dataset), tasks):
            for sha, (small_HWC, *rest) in part.smalls.items():
                if sha not in pictures:
                    pictures[sha] = len(pictures)
                    file.write(small_HWC.tobytes())
                    width, height, size = rest
                    facts.append((width, height, size))
            text_N += [texts.setdefault(it, len(texts)) for it in part.text]
            picture_N += [pictures[it] if it else NO_PICTURE for it in part.picture]
            for options, are_pictures in zip(part.options, part.has_picture_options, strict=True):
                counts.append(len(options))
                option_O += [
                    pictures[it] if are_pictures else -1 - words.setdefault(it, len(words))
                    for it in options
                ]
            length_O += part.length
            number_O += part.number
            named_O += part.named
            broken += part.broken
            progress(len(part.text))
        file.flush()
        shape = (len(pictures), SIDE, SIDE, 3)
        small_PHWC: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        if pictures:  # the mapping outlives the file's name and its handle
            small_PHWC = np.memmap(file, np.uint8, "r", shape=shape)
    fact_P3 = np.array(facts, np.int64).reshape(-1, 3)
    return Fingerprints(
        index=_index(dataset),
        text_N=np.array(text_N, np.int64),
        picture_N=np.array(picture_N, np.int64),
        start_N=np.cumsum(counts, dtype=np.int64),
        option_O=np.array(option_O, np.int64),
        length_O=np.array(length_O, np.int64),
        number_O=np.array(number_O, np.float64),
        named_O=np.array(named_O, np.bool_),
        small_PHWC=small_PHWC,
        size_P2=fact_P3[:, :2],
        bytes_P=fact_P3[:, 2],
        broken=tuple(broken),
    )


def _index(dataset: Dataset) -> pa.Table:
    tables = []
    for split in dataset.manifest.questions:
        table = dataset.index(split)
        tables.append(table.append_column("split", pa.array([split] * len(table), pa.string())))
    return pa.concat_tables(tables)


def _read_stretch(dataset: Dataset, task: tuple[str, int, int]) -> _Stretch:
    split, start, stop = task
    part = _Stretch()
    for question in dataset.read(split, range(start, stop)):
        _add(part, question)
    return part


def _add(part: _Stretch, question: Question) -> None:
    """Put a question's hashes, its options' features and its pictures' small copies to the rest."""
    problem = normalised(question.problem)
    texts = [option for option in question.options if isinstance(option, str)]
    plain = [normalised(text) for text in texts]
    if len(set(plain)) < len(plain):  # "Aa" and "AA" are not the same where both are offered
        plain = [" ".join(text.split()) for text in texts]
    whole = [question.kind.value, problem, str(len(question.options)), *sorted(plain)]
    reasons = [_add_picture(part, picture) for picture in question.pictures]
    if broken := next(filter(None, reasons), None):
        part.broken.append((question.id, broken))
        whole.append(question.id)  # compared with nothing, not even with its own copy
    part.text.append(_hash("\0".join(whole)))
    part.picture.append(_sha(question.picture) if question.picture else b"")
    part.options.append(
        [_sha(it) for it in question.options if isinstance(it, Picture)]
        or [_hash(text) for text in plain]
    )
    part.has_picture_options.append(not texts)
    part.length += [len(text.strip()) for text in texts] or [0] * len(question.options)
    part.number += [_number(text) for text in texts] or [np.nan] * len(question.options)
    part.named += [_stands_in(text, problem) for text in plain] or [False] * len(question.options)


def _add_picture(part: _Stretch, picture: Picture) -> str | None:
    """Why the picture does not decode, or None; its copy is then black, and without a size."""
    if (sha := _sha(picture)) not in part.smalls:
        try:
            small_HWC, width, height = small_copy(picture.data, SIDE)
        except ClipstemError as error:
            part.reasons[sha] = f"a picture {error}"
            small_HWC, width, height = np.zeros((SIDE, SIDE, 3), np.uint8), 0, 0
        part.smalls[sha] = small_HWC, width, height, len(picture.data)
    return part.reasons.get(sha)


def _sha(picture: Picture) -> bytes:
    return bytes.fromhex(picture.sha256)[:HASH_BYTES]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def _number(text: str) -> float:
    try:
        found = float(text.replace(",", ""))
    except ValueError:
        return np.nan
    return found if np.isfinite(found) else np.nan


def _stands_in(option: str, problem: str) -> bool:
    """Whether an option's text is among the words of the problem."""
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", problem) is not None

"""A bundle: a model as ONNX graphs, with all that is needed to score questions with it.

    bundle/
    ├── bundle.json                how pictures and texts go in, scale, temperature, hashes, parity
    ├── tokenizer.json             of the library `tokenizers`
    ├── fp32/picture.onnx text.onnx
    └── int8/picture.onnx text.onnx

The picture graph takes `pixels_IHWC` (uint8) and gives `image_ID`, the text graph takes rows of
tokens and gives `text_UD`, both of unit length. What makes questions into rows and cosines into
logits is `clipstem.pairs`, as for torch.
"""

from __future__ import annotations

import html
import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from clipstem import facts
from clipstem.config import Variant
from clipstem.images import PictureSpec
from clipstem.question import ClipstemError, ProblemPicture
from clipstem.storage import file_sha256
from clipstem.tokens import Layout, Tokens

FORMAT_VERSION = 1
MAX_CONTEXT = 65_536  # tokens
MAX_BYTES = 2**24  # of a bundle.json; it has a count for each skill, as a run.json does
BUNDLE_FILE, TOKENIZER_FILE = "bundle.json", "tokenizer.json"
PICTURE_GRAPH, TEXT_GRAPH = "picture.onnx", "text.onnx"

_FILE = re.compile(r"tokenizer\.json|(fp32|int8)/\w[\w.-]*")


@dataclass(frozen=True)
class TextSettings:
    """What the text tower wants around and behind a text's tokens; see `tokens.Tokenizer`."""

    before: Tokens
    after: Tokens
    padding: int
    context_length: int
    layout: str
    clean: str


@dataclass(frozen=True)
class Bundle:
    """What `bundle.json` says.

    Attributes:
        scale: what a cosine is multiplied with to become a logit.
        temperature: what a logit is then divided by.
        preprocess: how a picture becomes pixels, as open_clip's `preprocess_cfg`.
        variants: by name, what was measured against torch when it was exported.
        sha256: of each file, by its path in the bundle.
        provenance: of the model, for predictions.
        checked_on: the questions of the parity figures.
    """

    format_version: int
    clipstem_version: str
    scale: float
    temperature: float
    problem_picture: str
    preprocess: dict[str, Any]
    text: TextSettings
    variants: dict[str, dict[str, Any]]
    sha256: dict[str, str]
    weights_sha256: str
    parameters: int
    provenance: dict[str, Any]
    checked_on: dict[str, Any]
    environment: dict[str, Any]

    def check(self) -> None:
        """Refuse values that nothing could be scored with.

        Raises:
            ClipstemError: with the reason.
        """
        for name, value in (("scale", self.scale), ("temperature", self.temperature)):
            if not 0 < value < 1e6:
                raise ClipstemError(f"{name} is {value:g}; expected a number above 0")
        known = {
            "problem_picture": (self.problem_picture, [it.value for it in ProblemPicture]),
            "text.layout": (self.text.layout, [it.value for it in Layout]),
            "text.clean": (self.text.clean, list(CLEAN)),
        }
        for name, (word, words) in known.items():
            if word not in words:
                raise ClipstemError(f"{name} is '{word}'; expected {', '.join(words)}")
        marks = len(self.text.before) + len(self.text.after)
        if not marks < self.text.context_length <= MAX_CONTEXT:
            raise ClipstemError(
                f"text.context_length is {self.text.context_length}; expected {marks + 1} to "
                f"{MAX_CONTEXT:,}"
            )
        PictureSpec.from_open_clip(self.preprocess)

    def write(self, folder: Path) -> None:
        (folder / BUNDLE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def is_bundle(folder: Path) -> bool:
    return (folder / BUNDLE_FILE).is_file()


def read(folder: Path, variant: Variant) -> Bundle:
    """A bundle's facts, when the files of the variant are those that it was written with.

    Raises:
        ClipstemError: if there is no bundle, a newer one, another variant, or a changed file.
    """
    path = folder / BUNDLE_FILE
    if not is_bundle(folder):
        raise ClipstemError(
            f"{folder}: there is no bundle here (no {BUNDLE_FILE}); expected a folder made by "
            "python -m clipstem.export out=<folder>"
        )
    advice = "export the bundle again"
    bundle = facts.read(Bundle, path, MAX_BYTES, advice, Bundle.check, FORMAT_VERSION)
    if variant.value not in bundle.variants:
        there = ", ".join(bundle.variants)
        raise ClipstemError(f"{folder}: has no variant '{variant.value}'; it has {there}")
    needed = (TOKENIZER_FILE, *(f"{variant.value}/{it}" for it in (PICTURE_GRAPH, TEXT_GRAPH)))
    for name, expected in {**dict.fromkeys(needed, "none"), **bundle.sha256}.items():
        if not _FILE.fullmatch(name):
            raise ClipstemError(f"{path}: '{name}' is no name of a file of a bundle")
        if name == TOKENIZER_FILE or name.startswith(f"{variant.value}/"):
            _check_hash(folder / name, expected)
    return bundle


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder, by its path in there."""
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _check_hash(path: Path, expected: str) -> None:
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "is no plain file")
        found = file_sha256(path)
    except OSError as error:
        raise ClipstemError(
            f"{path}: cannot be read ({error.strerror}); copy the bundle again"
        ) from None
    if found != expected:
        raise ClipstemError(
            f"{path}: is not the file that was exported (sha256 {found[:12]}…, expected "
            f"{expected[:12]}…); copy the bundle again"
        )


# ------------------------------------------------------------------------------ texts


SHORT = 200  # characters; longer texts are not remembered, so that what is remembered has a bound


class BundleTokenizer:
    """A bundle's tokenizer as `tokens.Tokenizer`; short texts are encoded once, then remembered."""

    def __init__(self, folder: Path, settings: TextSettings) -> None:
        from tokenizers import Tokenizer

        self.before, self.after = settings.before, settings.after
        self.padding, self.context_length = settings.padding, settings.context_length
        self.layout = Layout(settings.layout)
        self._clean = CLEAN[settings.clean]
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # tokenizers raises plain exceptions
            raise ClipstemError(
                f"{folder / TOKENIZER_FILE}: is no tokenizer ({error}); export the bundle again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._remembered = lru_cache(maxsize=8192)(self._encode)

    def encode(self, text: str) -> Tokens:
        return (self._remembered if len(text) <= SHORT else self._encode)(text)

    def _encode(self, text: str) -> Tokens:
        return tuple(self._tokenizer.encode(self._clean(text), add_special_tokens=False).ids)


def _readable(text: str) -> str:
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _one_spaced(text: str) -> str:
    return " ".join(_readable(text).split())


def _without_punctuation(text: str) -> str:
    kept = _readable(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(kept.lower().split())


CLEAN: Mapping[str, Callable[[str], str]] = {
    "lower": lambda text: _one_spaced(text).lower(),
    "whitespace": _one_spaced,
    "canonicalize": _without_punctuation,
}
"""What open_clip does to a text before it becomes tokens, by open_clip's name for it."""

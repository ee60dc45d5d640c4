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

import hashlib
import html
import json
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from clipstem.config import Variant
from clipstem.question import ClipstemError
from clipstem.tokens import Layout, Tokens

FORMAT_VERSION = 1
BUNDLE_FILE, TOKENIZER_FILE = "bundle.json", "tokenizer.json"
PICTURE_GRAPH, TEXT_GRAPH = "picture.onnx", "text.onnx"


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
    try:
        facts = json.loads(path.read_text())
        version = int(facts["format_version"])
        if version <= FORMAT_VERSION:
            text = {**facts["text"]}
            text |= {mark: tuple(text[mark]) for mark in ("before", "after")}
            known = {field.name: facts[field.name] for field in fields(Bundle)}
            bundle = Bundle(**{**known, "text": TextSettings(**text)})
    except FileNotFoundError:
        raise ClipstemError(
            f"{folder}: there is no bundle here (no {BUNDLE_FILE}); expected a folder made by "
            "python -m clipstem.export out=<folder>"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipstemError(f"{path}: is not readable ({error}); export the bundle again") from None
    if version > FORMAT_VERSION:
        raise ClipstemError(
            f"{path}: has format {version}, this clipstem reads up to {FORMAT_VERSION}; install a "
            "newer clipstem or export the bundle again"
        )
    if variant.value not in bundle.variants:
        there = ", ".join(bundle.variants)
        raise ClipstemError(f"{folder}: has no variant '{variant.value}'; it has {there}")
    for name, expected in bundle.sha256.items():
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


def file_sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_hash(path: Path, expected: str) -> None:
    try:
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
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
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

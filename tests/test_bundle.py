"""A bundle gives open_clip's token ids, and refuses files that are not the exported ones."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import open_clip
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from clipstem import bundle, shards
from clipstem.bundle import CLEAN, BundleTokenizer, TextSettings
from clipstem.clip_tokenizer import TextTokenizer
from clipstem.config import Variant
from clipstem.question import ClipstemError
from clipstem.storage import file_sha256
from clipstem.tokens import Layout

TEXTS = st.text(
    st.one_of(
        st.characters(codec="utf-8", max_codepoint=0x2FF),
        st.sampled_from("×÷°π≤≥∠→½²√–—“”’…€\u00a0\u200b\u3000日本語नी🙂"),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, BundleTokenizer]:
    """CLIP's tokenizer, and what a bundle makes of it."""
    ours = TextTokenizer(open_clip.SimpleTokenizer(), Layout.PACKED)
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.export(folder / bundle.TOKENIZER_FILE)
    settings = TextSettings(ours.before, ours.after, ours.padding, 77, "packed", ours.clean)
    return ours, BundleTokenizer(folder, settings)


@given(TEXTS)
@example("How many 12's &amp; don't I'LL <start_of_text>!<end_of_text> a<end_of_text>b")
@example("¼ cup = 0.25; schÃ¶n\r\n\t“quoted”")
def test_clips_byte_pairs_are_the_same(
    both: tuple[TextTokenizer, BundleTokenizer], text: str
) -> None:
    ours, theirs = both
    # The two libraries know different versions of Unicode: what is unassigned may be a letter.
    assume(not any(unicodedata.category(letter) == "Cn" for letter in CLEAN["lower"](text)))
    assert theirs.encode(text) == ours.encode(text)
    assert (theirs.before, theirs.after, theirs.layout) == (ours.before, ours.after, ours.layout)


def test_real_questions_have_the_same_tokens(
    both: tuple[TextTokenizer, BundleTokenizer], mixed_data: Path
) -> None:
    ours, theirs = both
    dataset = shards.open_dataset(str(mixed_data))
    for question in dataset.read("valid", range(dataset.size("valid"))):
        for text in (question.problem, *question.options):
            if isinstance(text, str):
                assert theirs.encode(text) == ours.encode(text), text


@given(TEXTS, st.sampled_from(sorted(CLEAN)))
def test_texts_are_cleaned_as_open_clip_cleans_them(text: str, way: str) -> None:
    assert CLEAN[way](text) == get_clean_fn(way)(text)


# ---------------------------------------------------------------------------- files


@pytest.fixture
def moved(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "moved"))


def changed(folder: Path, **facts: object) -> None:
    path = folder / bundle.BUNDLE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_moved_bundle_is_whole(moved: Path) -> None:
    facts = bundle.read(moved, Variant.int8)
    assert set(facts.variants) == {"fp32", "int8"}
    assert facts.sha256 == {
        name: file_sha256(moved / name)
        for name in (
            *("fp32/picture.onnx", "fp32/text.onnx", "tokenizer.json"),
            *("int8/picture.onnx", "int8/text.onnx"),
        )
    }


@pytest.mark.parametrize("name", ["fp32/text.onnx", "tokenizer.json"])
def test_a_changed_file_is_refused(moved: Path, name: str) -> None:
    with (moved / name).open("ab") as opened:
        opened.write(b"\n")
    with pytest.raises(ClipstemError, match=rf"{name}: is not the file that was exported"):
        bundle.read(moved, Variant.fp32)


def test_a_missing_file_is_named(moved: Path) -> None:
    (moved / "fp32" / "picture.onnx").unlink()
    with pytest.raises(ClipstemError, match=r"fp32/picture.onnx: cannot be read .*; copy the bund"):
        bundle.read(moved, Variant.fp32)


def test_what_is_no_bundle_is_one_clear_line(moved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ClipstemError, match=r"there is no bundle here \(no bundle.json\); expected"
    ):
        bundle.read(tmp_path, Variant.fp32)
    facts = bundle.read(moved, Variant.fp32)
    changed(moved, variants={"fp32": facts.variants["fp32"]})
    with pytest.raises(ClipstemError, match=r"has no variant 'int8'; it has fp32$"):
        bundle.read(moved, Variant.int8)
    changed(moved, format_version=99)
    with pytest.raises(ClipstemError, match=r"has format 99, .* up to 1; update clipstem$"):
        bundle.read(moved, Variant.fp32)
    (moved / bundle.BUNDLE_FILE).write_text("{")
    with pytest.raises(ClipstemError, match=r"bundle.json: is not JSON .*; export the bundle"):
        bundle.read(moved, Variant.fp32)


@pytest.mark.parametrize("key", ["text", "scale", "sha256"])
def test_a_bundle_without_a_fact_is_refused(moved: Path, key: str) -> None:
    path = moved / bundle.BUNDLE_FILE
    facts = json.loads(path.read_text())
    del facts[key]
    path.write_text(json.dumps(facts))
    with pytest.raises(ClipstemError, match=rf"bundle.json: lacks {key}; export the bundle"):
        bundle.read(moved, Variant.fp32)

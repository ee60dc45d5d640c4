"""Files of every format changed at random: either they are read, or a `ClipstemError` says why not.

Each format has a fixed time. What hypothesis draws is where bytes are flipped, cut, doubled or
overwritten; whoever reads the result must not crash, run code, or touch anything outside.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hostile.runs import CHECKPOINT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_hostile import ACTS, Inputs, clean, contents  # noqa: F401  # a fixture

from clipstem.question import ClipstemError

pytestmark = pytest.mark.slow

SECONDS = 20  # of each format

FUZZED = [
    ("stem", "train-00000.parquet"),
    ("jsonl", "questions.jsonl"),
    ("jsonl", "ok.png"),
    ("pictures", "picture"),
    ("shards", "train-000000.tar"),
    ("shards", "train-000000.parquet"),
    ("shards", "manifest.json"),
    ("predictions", "p.parquet"),
    ("bundle", "bundle.json"),
    ("weights", "open_clip_config.json"),
    ("weights", "open_clip_model.safetensors"),
    ("run", "run.json"),
    ("checkpoint", CHECKPOINT),
    ("captions", "captions.jsonl"),
    ("answers", "answers.jsonl"),
]


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, float, bytes]]:
    """What happens to a file, one after the other; places are shares of its length."""
    share = st.floats(0, 1, exclude_max=True)
    kind = st.sampled_from(["flip", "cut", "overwrite", "insert", "double", "remove"])
    known = st.sampled_from(
        [b"\0" * 64, b"\xff" * 8, b"-1", b"9" * 20, b"[" * 2000, b"\x1f\x8b\x08"]
    )
    one = st.tuples(kind, share, share, st.binary(max_size=16) | known)
    return draw(st.lists(one, min_size=1, max_size=4))


def mutated(data: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
    for kind, a, b, new in changes:
        start, stop = sorted((int(a * len(data)), int(b * len(data))))
        stop = min(stop, start + 4096)
        if kind == "flip":
            data = data[:start] + bytes([data[start] ^ 1 << stop % 8]) + data[start + 1 :]
        elif kind == "cut":
            data = data[: max(1, start)]
        elif kind == "overwrite":
            data = data[:start] + new + data[start + len(new) :]
        elif kind == "insert":
            data = data[:start] + new + data[start:]
        elif kind == "double":
            data = data[:stop] + data[start:stop] + data[stop:]
        else:
            data = data[: max(1, start)] + data[stop:]
        data = data or b"\0"
    return data


@pytest.mark.parametrize(("format", "name"), FUZZED, ids=lambda it: it)
def test_a_changed_file_is_read_or_refused(
    format: str,
    name: str,
    clean: Inputs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean.result(format)
    monkeypatch.setenv("CLIPSTEM_CANARY", str(tmp_path / "outside/ran"))
    (tmp_path / "outside").mkdir()
    whole = (clean.folder(format) / name).read_bytes()
    end, tried = time.monotonic() + SECONDS, 0

    @settings(
        max_examples=50,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations())
    def attempt(changes: Any) -> None:
        nonlocal tried
        if time.monotonic() > end:
            return
        tried += 1
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        shutil.copytree(clean.folder(format), work / "in")
        (work / "in" / name).write_bytes(mutated(whole, changes))
        with contextlib.suppress(ClipstemError):
            ACTS[format](work / "in")
        assert contents(tmp_path / "outside") == {}

    while time.monotonic() < end:
        attempt()
    assert tried

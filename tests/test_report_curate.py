"""The report reads no stranger's `curate.json` without checking it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from curating import curated

from clipstem.question import ClipstemError
from clipstem.report import curate as report
from clipstem.shards import Dataset

HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "is not JSON"),
    "nested 100,000 deep": (b"[" * 10**5, "is not JSON"),
    "no UTF-8": (b"\xff\xfe\xff", "is not JSON"),
    "a list": (b"[]", "it is []; expected an object"),
    "nothing": (b"{}", "lacks "),
    "a field of another type": ({"left_out": "many"}, "left_out is 'many'; expected a whole"),
    "a number that no table holds": ({"broken": 10**400}, "expected a whole number below 2^63"),
    "a NaN": ({"cues": [{"chance": float("nan")}]}, "cues[0]"),
    "a cue without a field": ({"cues": [{"skill": "s"}]}, "cues[0] lacks "),
    "findings that are a list": ({"findings": []}, "findings is []; expected an object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_curate_json_is_refused(kind: str, lots: Dataset, tmp_path: Path) -> None:
    content, message = HOSTILE[kind]
    path = tmp_path / "curate.json"
    if isinstance(content, dict):
        curated(lots, tmp_path / "curated")
        whole = json.loads((tmp_path / "curated/curate.json").read_text())
        if kind == "a NaN":
            cue = {"skill": "s", "name": "n", "questions": 1, "right": 1, "p": 0.0}
            content = {"cues": [{**cue, **content["cues"][0]}]}
        content = json.dumps({**whole, **content}).encode()
    path.write_bytes(content)
    with pytest.raises(ClipstemError, match=re.escape(message)) as error:
        report.read(path)
    assert str(path) in str(error.value) and "python -m clipstem.curate" in str(error.value)


def test_a_curate_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipstemError, match=r"there is no such file; expected the curate\.json"):
        report.read(tmp_path / "curate.json")

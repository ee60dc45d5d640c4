"""What the tests of asking share: questions with captions, settings, what is typed and refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from preparing import encoded, prepared, row, write_jsonl

from clipstem.config import AskConfig
from clipstem.shards import Dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from chat_server import ChatServer

KEY = "sk-very-secret-0123456789"
IMAGES = {f"{number}.png": encoded(number) for number in range(4)}
CAPTIONS = {"0.png": "a red ball", "1.png": "a blue box", "2.png": "a green tree"}


def of_all_kinds(tmp_path: Path) -> Dataset:
    """Questions of all kinds; the pictures of q3 and q4 have no captions."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in IMAGES.items():
        (folder / name).write_bytes(content)
    options = [{"image": "0.png"}, {"image": "1.png"}]
    rows = [
        row(0, image="0.png", options=["circle", "square", "star"]),
        row(1, options=options),
        row(2, image="2.png", options=options),
        row(3, image="3.png"),
        row(4, options=[*options, {"image": "3.png"}]),
        row(5),
    ]
    captions = [{"picture": name, "caption": text} for name, text in CAPTIONS.items()]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    path = write_jsonl(folder, [{**it, "split": "valid"} for it in rows])
    return prepared(tmp_path, path)


def config_of(**values: Any) -> AskConfig:
    given: dict[str, Any] = {"data": "d", "split": "valid", "out": "o.parquet"}
    given |= {"base_url": "http://h/v1", "model_name": "m"}
    return AskConfig(**{**given, **values})


def arguments(data: Dataset | Path, server: ChatServer, **values: Any) -> list[str]:
    location = data.location if isinstance(data, Dataset) else str(data)
    given = {"data": location, "split": "valid", "out": "o.parquet", "base_url": server.url}
    given |= {"model_name": "m", **values}
    return [f"{name}={value}" for name, value in given.items()]


def refused(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], *args: Any, **values: Any
) -> str:
    """The one line that a run ends with that exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*args, **values)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("clipstem ask: ") and said.count("\n") == 1
    return said.removeprefix("clipstem ask: ").strip()


def image(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "teal").save(buffer, name)
    return buffer.getvalue()

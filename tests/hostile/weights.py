"""Folders of weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from hostile.table import EVIL, RUN_CODE, Accepted, Make, Refused, edit, kinds, rewrite

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def model_cfg(tower: str, **changes: Any) -> Make:
    return edit(CONFIG, lambda config: config["model_cfg"][tower].update(changes))


def preprocess(**changes: Any) -> Make:
    return edit(CONFIG, lambda config: config["preprocess_cfg"].update(changes))


def safetensors(header: bytes, length: int | None = None) -> Make:
    size = struct.pack("<Q", len(header) if length is None else length)
    return rewrite(WEIGHTS, lambda _: size + header + bytes(64))


def as_pickle(folder: Path) -> None:
    """The weights as a file that torch would unpickle, beside their configuration."""
    (folder / WEIGHTS).unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(EVIL + bytes(2**25))


def own_tokenizer_code(folder: Path) -> None:
    """A Hugging Face tokenizer whose folder brings the code that makes it."""
    code = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    (folder / "evil.py").write_text(f"import os\nos.system({RUN_CODE!r})\nT = None\n")
    model_cfg("text_cfg", hf_tokenizer_name="evil")(folder)


def trusted_tokenizer_code(folder: Path) -> None:
    own_tokenizer_code(folder)
    model_cfg("text_cfg", tokenizer_kwargs={"trust_remote_code": True})(folder)


NOT_OPENED = Refused("cannot be opened")

kinds(
    "weights",
    (
        "pickle that is called safetensors",
        rewrite(WEIGHTS, lambda _: EVIL + bytes(2**25)),
        NOT_OPENED,
    ),
    ("pickle that open_clip finds itself", as_pickle, NOT_OPENED),
    ("file that is cut off", rewrite(WEIGHTS, lambda data: data[:-99]), NOT_OPENED),
    (
        "header of 2^60 bytes",
        rewrite(WEIGHTS, lambda data: struct.pack("<Q", 2**60) + data[8:]),
        NOT_OPENED,
    ),
    (
        "header that is no JSON",
        rewrite(WEIGHTS, lambda data: data[:8] + b"x" + data[9:]),
        NOT_OPENED,
    ),
    ("weights of other shapes", model_cfg("vision_cfg", width=128), NOT_OPENED),
    ("configuration that is no JSON", rewrite(CONFIG, lambda _: b"{"), NOT_OPENED),
    ("configuration that is a list", edit(CONFIG, lambda config: [config]), NOT_OPENED),
    (
        "configuration without towers",
        edit(CONFIG, lambda config: config.update(model_cfg={})),
        Refused("has no text_cfg and vision_cfg|cannot be opened"),
    ),
    (
        "configuration with a key that nobody knows",
        model_cfg("text_cfg", _target_="os.system"),
        NOT_OPENED,
    ),
    (
        "a million layers",
        model_cfg("text_cfg", layers=10**6),
        Refused("text_cfg.layers is 1e.06; no model has so many"),
    ),
    (
        "a width of a million",
        model_cfg("vision_cfg", width=10**6),
        Refused("vision_cfg.width is 1e.06; no model has so many"),
    ),
    (
        "a model of 50 GB",
        model_cfg("text_cfg", width=65_536, layers=3),
        Refused("describes a model of .* weights or more"),
    ),
    (
        "pictures of another size than the model sees",
        preprocess(size=10**6),
        Accepted(),
    ),
    (
        "pictures of no known interpolation",
        preprocess(interpolation="evil"),
        Refused("interpolation bicubic or bilinear"),
    ),
    (
        "channels without spread",
        preprocess(std=[0, 0, 0]),
        Refused("mean and std of three channels"),
    ),
    (
        "tokenizer with code of its own",
        own_tokenizer_code,
        Refused("brings code of its own .auto_map., which is never run"),
    ),
    (
        "tokenizer with code of its own, which the configuration trusts",
        trusted_tokenizer_code,
        Refused("tokenizer_kwargs .'trust_remote_code'. are not let in"),
    ),
)

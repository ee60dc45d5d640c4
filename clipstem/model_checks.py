"""What a model's config or folder may not say, and what is wrong with one that does not open."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip

from clipstem.config import ModelConfig
from clipstem.images import MAX_SIDE
from clipstem.question import ClipstemError

LOCAL_DIR = "local-dir:"
TEXT_CONFIG_FOLDER = "text_config"  # a Hugging Face text tower's own configuration
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")  # that open_clip looks for
TOKENIZER_KWARGS = {"clean", "strip_sep_token", "language"}  # open_clip's; transformers gets others
LARGEST = {"layers": 512, "image_size": MAX_SIDE, "context_length": 65_536, "vocab_size": 2**21}
LARGEST_OTHER = 2**17  # of widths and the like


def refuse_contradictions(config: ModelConfig) -> None:
    """Refuse settings that would be passed over."""
    if config.architecture and config.name in open_clip.list_models():
        raise ClipstemError(
            f"conf key 'model.name': '{config.name}' is an open_clip model, but "
            "'model.architecture' describes another one; use model=open_clip model.name="
            f"{config.name}"
        )
    given = {"pretrained": config.pretrained, "image_size": config.image_size}
    for key, value in given.items():
        if config.architecture and value is not None:
            raise ClipstemError(
                f"conf key 'model.{key}': {value} has no effect on model.architecture of "
                f"'{config.name}'; leave it out, or use model=open_clip model.name=<a model>"
            )
    if ":" in config.name and config.pretrained is not None:
        raise ClipstemError(
            f"conf key 'model.pretrained': {config.pretrained} has no effect, because "
            f"'{config.name}' brings its own weights; leave it out"
        )


def refuse_hostile(config: ModelConfig) -> None:
    """Refuse a stranger's architecture that would run code or take more memory than its weights.

    open_clip hands `tokenizer_kwargs` on to transformers, where `trust_remote_code` among them runs
    what lies in the folder.

    Raises:
        ClipstemError: naming the key.
    """
    if not (config.architecture or ":" in config.name):
        return  # one of open_clip's own
    given = config.architecture or open_clip.get_model_config(config.name) or {}
    towers = {name: given.get(name) for name in ("text_cfg", "vision_cfg")}
    if not all(isinstance(tower, dict) for tower in towers.values()):
        key = "conf key 'model.architecture'" if config.architecture else f"'{config.name}'"
        raise ClipstemError(f"{key} is no open_clip model: it has no text_cfg and vision_cfg")
    text_cfg: dict[str, Any] = given["text_cfg"]
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    strange = sorted(set(kwargs) - TOKENIZER_KWARGS)
    if strange or not isinstance(kwargs, dict):
        raise ClipstemError(
            f"'{config.name}': tokenizer_kwargs {strange} are not let in; expected "
            f"{', '.join(TOKENIZER_KWARGS)}"
        )
    for name, value in _numbers(given, "model_cfg"):
        if not 0 <= abs(value) <= LARGEST.get(name.rpartition(".")[2], LARGEST_OTHER):
            raise ClipstemError(f"'{config.name}': {name} is {value:g}; no model has so many")
    if config.name.startswith(LOCAL_DIR):
        _refuse_hostile_folder(Path(config.name.removeprefix(LOCAL_DIR)), given)


def _refuse_hostile_folder(folder: Path, model_cfg: dict[str, Any]) -> None:
    for path in (*folder.glob("*.json"), *(folder / TEXT_CONFIG_FOLDER).glob("*.json")):
        if path.name.endswith("config.json") and '"auto_map"' in path.read_text(errors="replace"):
            raise ClipstemError(f"{path}: brings code of its own (auto_map), which is never run")
    stored = sum(
        path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES
    )
    least = sum(_least_weights(model_cfg[name]) for name in ("text_cfg", "vision_cfg"))
    if 2 * least > stored:  # at least two bytes a weight
        raise ClipstemError(
            f"{folder}: describes a model of {least:,} weights or more, and has {stored:,} bytes "
            "of them"
        )


def _least_weights(tower: dict[str, Any]) -> int:
    """Weights that a tower of open_clip's own has at least; 0 for towers of other libraries."""
    if {"timm_model_name", "hf_model_name"} & tower.keys() or "width" not in tower:
        return 0
    width, layers = int(tower["width"]), tower.get("layers", 0)
    blocks = 4 * width * width * layers if isinstance(layers, int) else 0
    return blocks + width * int(tower.get("vocab_size", 0))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Each number in nested mappings and lists, with the key that it stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float):
        yield name, value


def why_not(config: ModelConfig, error: Exception) -> str:
    """Which part of `model` is wrong, and what would be right."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if "QuickGELU mismatch" in first:
        return (
            f"conf key 'model.name': the weights '{config.pretrained}' were trained with QuickGELU "
            f"and {config.name} computes GELU, or the reverse; use {config.name}-quickgelu"
        )
    if config.architecture:
        return f"conf key 'model.architecture' is no open_clip model: {first}"
    if ":" in config.name:
        return f"conf key 'model.name': '{config.name}' cannot be opened: {first}"
    if config.name not in open_clip.list_models():
        near = difflib.get_close_matches(config.name, open_clip.list_models(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return (
            f"conf key 'model.name': '{config.name}' is no open_clip model{hint} "
            "(python -c 'import open_clip; print(open_clip.list_models())' lists them)"
        )
    if config.pretrained is None:
        return f"conf key 'model.name': '{config.name}' cannot be built: {first}"
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
    return (
        f"conf key 'model.pretrained': '{config.pretrained}' for {config.name} cannot be had: "
        f"{first}; expected a file of weights, or one of these tags and a network: {tags}; "
        "model.pretrained=null gives random weights"
    )

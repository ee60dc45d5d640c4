"""`python -m clipstem.assemble +assembled=mini out=…`: a CLIP model of two pretrained towers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clipstem import towers
from clipstem.atomic import new_folder, require_new
from clipstem.command import verb
from clipstem.config import AssembleConfig, ModelConfig, TowerConfig
from clipstem.question import ClipstemError
from clipstem.run import ASSEMBLED
from clipstem.storage import file_sha256
from clipstem.towers import Towers

PACKAGE = "package:"
TEXT_WEIGHTS = "model.safetensors"  # Hugging Face's own name


def assemble(config: AssembleConfig) -> Towers:
    """The model, with the towers' own weights and projections drawn from the seed.

    Raises:
        ClipstemError: if a tower is unknown, or its weights are missing, changed or another's.
    """
    text = _place(config.text.name, "text.name")
    if config.text.sha256 is not None:
        _check_hash(text / TEXT_WEIGHTS, config.text.sha256, "text.sha256")
    # A folder here, or a name that the Hub knows.
    source = str(text) if text.is_dir() else config.text.name
    architecture = {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "timm_model_name": config.picture.name,
            "timm_pool": "",
            "timm_proj": config.projection,
            "timm_drop": config.dropout,
            "image_size": config.image_size,
        },
        "text_cfg": {
            "hf_model_name": source,
            "hf_tokenizer_name": source,
            "hf_proj_type": config.projection,
            "hf_pooler_type": config.pooler,
            "context_length": config.context_length,
        },
    }
    model = towers.create(ModelConfig(name=config.out, architecture=architecture), config.seed)
    if config.picture.weights is not None:
        _load_trunk(model.model.visual.trunk, config.picture)
    # The weights are to be opened elsewhere: no path of this machine.
    for key in ("hf_model_name", "hf_tokenizer_name"):
        model.model_cfg["text_cfg"][key] = config.text.name
    spec = replace(model.spec, mean=config.mean, std=config.std, fill=config.fill)
    return Towers(model.model, model.model_cfg, spec, model.tokenizer)


def _place(name: str, key: str) -> Path:
    """The path that a place names, inside an installed package or not."""
    if not name.startswith(PACKAGE):
        return Path(name)
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ClipstemError(
            f"conf key '{key}': {name} needs the Python package {package.replace('_', '-')}, which "
            "is not installed; pip install it"
        )
    return Path(found.submodule_search_locations[0]) / inside


def _check_hash(path: Path, expected: str, key: str) -> None:
    if not path.is_file():
        raise ClipstemError(f"{path}: there is no such file of weights")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
        raise ClipstemError(
            f"conf key '{key}': {path} has sha256 {found[:12]}…, expected {expected[:12]}…; "
            "it is another file, or a damaged one"
        )


def _load_trunk(trunk: nn.Module, config: TowerConfig) -> None:
    """Put a file's weights into a timm trunk, whose classifier is gone.

    Names that are not timm's are matched by their order, if every shape agrees.
    """
    path = _place(str(config.weights), "picture.weights")
    if config.sha256 is not None:
        _check_hash(path, config.sha256, "picture.sha256")
    theirs, ours = _read(path), trunk.state_dict()
    if not ours.keys() <= theirs.keys():
        theirs = dict(zip(ours, theirs.values(), strict=False))
    wrong = [
        name
        for name, value in ours.items()
        if name not in theirs or theirs[name].shape != value.shape
    ]
    if wrong:
        raise ClipstemError(
            f"{path}: are not the weights of {config.name}: neither by name nor by order do they "
            f"fit, first at {wrong[0]} {tuple(ours[wrong[0]].shape)}"
        )
    trunk.load_state_dict({name: theirs[name] for name in ours})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ClipstemError(f"{path}: there is no such file of weights") from None
    except Exception as error:  # a file that holds something else makes torch raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClipstemError(f"{path}: is no file of weights: {reason}") from error
    return state


@verb("assemble", AssembleConfig)
def main(config: AssembleConfig) -> None:
    out = Path(config.out)
    require_new(out, "out=<folder>")
    model = assemble(config)
    with new_folder(out) as partial:
        model.save(partial)
        # With the hash, what somebody puts in their place later does not pass for them.
        said = {"file": towers.WEIGHTS_FILE, "sha256": file_sha256(partial / towers.WEIGHTS_FILE)}
        (partial / ASSEMBLED).write_text(json.dumps(said, indent=2) + "\n")
    millions = sum(value.numel() for value in model.model.parameters()) / 1e6
    print(
        f"{millions:.1f} M parameters in {out}; next: python -m clipstem.train model=open_clip "
        f"model.name=local-dir:{out} tune=head data=… out=…"
    )


if __name__ == "__main__":
    main()

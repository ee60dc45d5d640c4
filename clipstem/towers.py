"""The picture and the text tower of a CLIP model. The only module that imports open_clip.

I distinct pictures, U distinct texts in R packed rows of T tokens, D the embeddings' width,
H height, W width, C channels.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import warnings
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clipstem.config import ModelConfig, PictureFit
from clipstem.images import PictureSpec
from clipstem.packing import PackedTexts, may_look_RTT
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.tokens import Tokens

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

log = logging.getLogger(__name__)


class ClipTokenizer:
    """An open_clip byte-pair tokenizer as `tokens.Tokenizer`; texts are encoded once each."""

    def __init__(self, tokenizer: open_clip.SimpleTokenizer) -> None:
        self.start: int = tokenizer.sot_token_id
        self.end: int = tokenizer.eot_token_id
        self.context_length: int = tokenizer.context_length
        self._tokenizer = tokenizer
        self._make_cache()

    def _make_cache(self) -> None:
        def encode(text: str) -> Tokens:
            return tuple(self._tokenizer.encode(text))

        self.encode = lru_cache(maxsize=65_536)(encode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_cache()


class Towers(nn.Module):
    """An open_clip model with the picture transform and the tokenizer that belong to it.

    Attributes:
        model: the open_clip model; its parameters are the ones that are trained and saved.
        model_cfg: open_clip's own description of it, as in its `open_clip_config.json`.
        spec: how a picture file becomes the picture tower's input.
    """

    model: Any
    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self,
        model: nn.Module,
        model_cfg: dict[str, Any],
        spec: PictureSpec,
        tokenizer: ClipTokenizer,
    ) -> None:
        super().__init__()
        self.model = model
        self.model_cfg = model_cfg
        self.spec = spec
        self.tokenizer = tokenizer
        self.register_buffer("mean_C", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(spec.std), persistent=False)

    @property
    def scale(self) -> Tensor:
        """What a cosine is multiplied with to become a logit."""
        return self.model.logit_scale.exp().reshape(())

    def embed(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """image_ID and text_UD of a batch on the model's device, fp32, unit length."""
        return self.encode_pictures(batch.pixels_IHWC), self.encode_texts(batch.texts)

    def encode_pictures(self, pixels_IHWC: Tensor) -> Tensor:
        """uint8 pixels, normalised here on the device -> unit embeddings [I, D], fp32."""
        pixels_ICHW = (pixels_IHWC.float() / 255 - self.mean_C) / self.std_C
        features_ID = self.model.encode_image(pixels_ICHW.permute(0, 3, 1, 2))
        return F.normalize(features_ID.float(), dim=-1)

    def encode_texts(self, texts: PackedTexts) -> Tensor:
        """Packed texts -> unit embeddings [U, D], fp32.

        open_clip's own `encode_text` wants every text alone in a row of full length; a causal
        tower gives the same numbers here, at a tenth of the work.
        """
        tower = _text_tower(self.model)
        x_RTW = F.embedding(texts.tokens_RT, tower.token_embedding.weight)
        x_RTW = x_RTW + F.embedding(texts.position_RT, tower.positional_embedding)
        may_look_R1TT = may_look_RTT(texts)[:, None]
        for block in tower.transformer.resblocks:
            x_RTW = _block(block, x_RTW, may_look_R1TT)
        # Only the last token of each text is read out: normalise and project just those.
        last_UW = x_RTW.flatten(0, 1).index_select(0, texts.end_U)
        return F.normalize(_project(tower, tower.ln_final(last_UW)).float(), dim=-1)

    def save(self, folder: Path) -> None:
        """Write the weights in open_clip's own layout, which `local-dir:` opens again."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        text = json.dumps(
            {"model_cfg": self.model_cfg, "preprocess_cfg": self.spec.open_clip()}, indent=2
        )
        (folder / CONFIG_FILE).write_text(text + "\n")

    def weights_sha256(self) -> str:
        """A hash over every weight's name, shape and bytes."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _text_tower(model: Any) -> Any:
    """Where open_clip keeps the text tower's parts: on the model itself, or in `model.text`."""
    return model if hasattr(model, "token_embedding") else model.text


def _block(block: Any, x_RTW: Tensor, may_look_R1TT: Tensor) -> Tensor:
    """One residual attention block of open_clip over packed rows."""
    attention_RTW = _attention(block.attn, block.ln_1(x_RTW), may_look_R1TT)
    x_RTW = x_RTW + block.ls_1(attention_RTW)
    return x_RTW + block.ls_2(block.mlp(block.ln_2(x_RTW)))


def _attention(attention: nn.MultiheadAttention, x_RTW: Tensor, may_look_R1TT: Tensor) -> Tensor:
    rows, tokens, width = x_RTW.shape
    qkv = F.linear(x_RTW, attention.in_proj_weight, attention.in_proj_bias)
    heads = qkv.view(rows, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=may_look_R1TT)
    return attention.out_proj(out.transpose(1, 2).reshape(rows, tokens, width))


def _project(tower: Any, x_UW: Tensor) -> Tensor:
    projection = tower.text_projection
    if projection is None:
        return x_UW
    if isinstance(projection, nn.Linear):
        return projection(x_UW)
    return x_UW @ projection


def create(config: ModelConfig, seed: int = 0) -> Towers:
    """Build a model, from our own architecture, an open_clip name, or a folder of weights.

    Weights that nobody gives are drawn from `seed`.

    Raises:
        ClipstemError: if the name, the weights or the text tower are not ones we can use.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = _open(config)
            _check_causal(model, config.name)
            model_cfg = _model_cfg(config)
            tokenizer = _tokenizer(config, model_cfg)
        except ClipstemError:
            raise
        except Exception as error:  # open_clip raises anything for a file that is not its own
            raise ClipstemError(_why_not(config, error)) from error
    return Towers(model, model_cfg, _spec(model, config.picture_fit), ClipTokenizer(tokenizer))


def _open(config: ModelConfig) -> Any:
    _refuse_contradictions(config)
    if config.architecture:
        return open_clip.CLIP(**copy.deepcopy(config.architecture))
    size = {} if config.image_size is None else {"force_image_size": config.image_size}
    with warnings.catch_warnings():
        # open_clip warns and goes on with the wrong activation; here it is an error.
        warnings.filterwarnings("error", "QuickGELU mismatch")
        return open_clip.create_model(
            config.name,
            pretrained=config.pretrained,
            weights_only=True,
            # Without this, weights that are missing are drawn at random, with a log line.
            require_pretrained=config.pretrained is not None or ":" in config.name,
            **size,
        )


def _refuse_contradictions(config: ModelConfig) -> None:
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


def _why_not(config: ModelConfig, error: Exception) -> str:
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
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
    return (
        f"conf key 'model.pretrained': '{config.pretrained}' for {config.name} cannot be had: "
        f"{first}; expected a file of weights, or one of these tags and a network: {tags}; "
        "model.pretrained=null gives random weights"
    )


def _check_causal(model: Any, name: str) -> None:
    """Packed rows are exact only where a token never looks at what follows, and END is read out."""
    tower = _text_tower(model)
    pool = getattr(model, "text_pool_type", getattr(tower, "pool_type", "none"))
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", [])
    if (
        getattr(tower, "attn_mask", None) is None
        or pool not in ("argmax", "eos")
        or getattr(tower, "cls_emb", None) is not None
        or not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks)
    ):
        raise ClipstemError(
            f"conf key 'model.name': the text tower of '{name}' is not a causal CLIP transformer "
            "read out at its end token, which clipstem needs to pack texts exactly; expected a "
            "model such as ViT-B-32, ViT-L-14-336 or RN50"
        )


def _model_cfg(config: ModelConfig) -> dict[str, Any]:
    if config.architecture:
        return copy.deepcopy(config.architecture)
    model_cfg: dict[str, Any] = open_clip.get_model_config(config.name)
    if config.image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = config.image_size
    return model_cfg


def _tokenizer(config: ModelConfig, model_cfg: dict[str, Any]) -> open_clip.SimpleTokenizer:
    text_cfg = model_cfg["text_cfg"]
    tokenizer = (
        open_clip.SimpleTokenizer(context_length=text_cfg.get("context_length", 77))
        if config.architecture
        else open_clip.get_tokenizer(config.name)
    )
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise ClipstemError(
            f"conf key 'model.name': '{config.name}' uses the tokenizer "
            f"{type(tokenizer).__name__}; expected CLIP's own byte-pair tokenizer"
        )
    return tokenizer


def _spec(model: Any, fit: PictureFit | None) -> PictureSpec:
    spec = PictureSpec.from_open_clip(open_clip.get_model_preprocess_cfg(model))
    return spec if fit is None else PictureSpec(**{**asdict(spec), "fit": fit})

"""The picture and the text tower of a CLIP model.

I distinct pictures, U distinct texts in R packed rows of T tokens, D the embeddings' width,
H height, W width, C channels.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipstem.blocks import (
    Attention,
    InPlaceQuickGELU,
    Linear,
    PrepackedBlock,
    PrepackedPatches,
    SplitAttention,
    block,
    onednn_has_bf16,
    prepack,
)
from clipstem.clip_tokenizer import TextTokenizer
from clipstem.config import ModelConfig
from clipstem.images import PictureSpec
from clipstem.model_checks import (
    LOCAL_DIR,
    TEXT_CONFIG_FOLDER,
    refuse_contradictions,
    refuse_hostile,
    why_not,
)
from clipstem.packing import PackedTexts, lay_out, may_look_RTT
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.tokens import Layout

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
OPENAI_EXTRAS = {"input_resolution", "context_length", "vocab_size"}  # not weights

log = logging.getLogger(__name__)


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
        tokenizer: TextTokenizer,
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
        return self.embed_pictures(batch), self.embed_texts(batch)

    def embed_pictures(self, batch: PairBatch, places: Sequence[int] | None = None) -> Tensor:
        """Of the batch's pictures, or of those at `places`; the batch may lie elsewhere."""
        pixels_IHWC = batch.pixels_IHWC if places is None else batch.pixels_IHWC[places]
        return self.encode_pictures(self.here(pixels_IHWC))

    def embed_texts(self, batch: PairBatch, places: Sequence[int] | None = None) -> Tensor:
        """The same for its texts."""
        return self.encode_texts(self.texts_at(batch, places))

    def texts_at(self, batch: PairBatch, places: Sequence[int] | None) -> PackedTexts:
        """The batch's texts on the model's device, or those at `places`, packed anew."""
        if places is None:
            return batch.texts.map(self.here)
        some = lay_out([batch.joined[place] for place in places], self.tokenizer)
        return some.map(torch.from_numpy).map(self.here)

    def here(self, array: Tensor) -> Tensor:
        """On the model's device."""
        return array.to(self.mean_C.device, non_blocking=True)

    def encode_pictures(self, pixels_IHWC: Tensor) -> Tensor:
        """uint8 pixels -> unit embeddings [I, D], fp32."""
        return unit(self.picture_features(pixels_IHWC))

    def encode_texts(self, texts: PackedTexts) -> Tensor:
        """Texts, laid out as the tokenizer's layout says -> unit embeddings [U, D], fp32."""
        return unit(self.text_features(texts))

    def picture_features(self, pixels_IHWC: Tensor) -> Tensor:
        """What the picture tower gives for uint8 pixels, which are normalised here, on the device;
        [I, D], not yet of unit length."""
        if isinstance(getattr(self.model.visual, "conv1", None), PrepackedPatches):
            return self.model.encode_image(pixels_IHWC.permute(0, 3, 1, 2))
        # By whole rows: three numbers are too few for a processor's vector instructions.
        mean_X, std_X = (it.repeat(pixels_IHWC.shape[2]) for it in (self.mean_C, self.std_C))
        rows_IHX = (pixels_IHWC.flatten(2) / 255).sub_(mean_X).div_(std_X)
        pixels_ICHW = rows_IHX.view(pixels_IHWC.shape).permute(0, 3, 1, 2)
        return self.model.encode_image(pixels_ICHW.to(self.model.logit_scale.dtype))

    def text_features(self, texts: PackedTexts) -> Tensor:
        """What the text tower gives, [U, D], not yet of unit length."""
        if self.tokenizer.layout is Layout.PACKED:
            return self._encode_packed(texts)
        return self.model.encode_text(texts.tokens_RT)

    def train(self, mode: bool = True) -> Towers:
        """Only what learns is ever in training mode: frozen layers keep their batch statistics and
        drop nothing."""
        super().train(mode)
        for module in self.modules() if mode else ():
            learns = [parameter.requires_grad for parameter in module.parameters()]
            if learns and not any(learns):
                module.eval()
        return self

    def in_bf16(self) -> Towers:
        """A copy for scoring in bf16, prepared once; it cannot learn, be saved or copied.

        On a CPU whose oneDNN has bf16, linear layers, and attention and patches of open_clip's own
        transformers, compute in bf16, with prepacked weights, and all else stays in fp32: that is
        as fast, and nearer to fp32. Convolutions stay, too: on the white ground of figures, what is
        rounded off is the same everywhere and does not average out. Elsewhere all is cast.
        """
        tensors = (*self.model.parameters(), *self.model.buffers())
        copied = copy.deepcopy(self, {id(it): it for it in tensors}).eval()  # shares the tensors
        if self.mean_C.is_cpu and onednn_has_bf16():
            for blocks in blocks_of(copied):
                for place, it in enumerate(blocks):
                    blocks[place] = PrepackedBlock(it)
            if isinstance(visual := copied.model.visual, VisionTransformer):
                visual.conv1 = PrepackedPatches(visual.conv1, self.mean_C, self.std_C)
            prepack(copied.model)
            return copied
        for module in copied.model.modules():
            for name, value in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
                setattr(module, name, nn.Parameter(cast(value), requires_grad=False))
            for name, value in [*module.named_buffers(recurse=False, remove_duplicate=False)]:
                setattr(module, name, cast(value))
        return copied

    def _encode_packed(self, texts: PackedTexts) -> Tensor:
        """Features of packed texts, [U, D].

        open_clip's own `encode_text` wants every text alone in a row of full length; a causal
        tower gives the same numbers here, at a tenth of the work.
        """
        tower = text_tower(self.model)
        x_RTW = F.embedding(texts.tokens_RT, tower.token_embedding.weight)
        x_RTW = x_RTW + F.embedding(texts.position_RT, tower.positional_embedding)
        may_look_R1TT = may_look_RTT(texts)[:, None]
        again = tower.transformer.grad_checkpointing and torch.is_grad_enabled()
        for it in tower.transformer.resblocks:
            given = (it, x_RTW, may_look_R1TT)
            x_RTW = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        # Only the last token of each text is read out: normalise and project just those.
        last_UW = x_RTW.flatten(0, 1).index_select(0, texts.end_U)
        return _project(tower, tower.ln_final(last_UW))

    def save(self, folder: Path) -> None:
        """Write the weights in open_clip's own layout, which `local-dir:` opens again."""
        folder.mkdir(parents=True, exist_ok=True)
        # Clones: some towers have one tensor under two names, which safetensors refuses.
        weights = {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in self.model.state_dict().items()
        }
        try:
            save_file(weights, folder / WEIGHTS_FILE)
        except SafetensorError as error:  # in whose words a full disk is
            raise ClipstemError(f"{folder}: could not be written ({error})") from error
        text = json.dumps(
            {"model_cfg": self.model_cfg, "preprocess_cfg": self.spec.open_clip()}, indent=2
        )
        (folder / CONFIG_FILE).write_text(text + "\n")
        self.tokenizer.save(folder)
        if isinstance(getattr(self.model, "text", None), HFTextEncoder):
            self.model.text.config.save_pretrained(folder / TEXT_CONFIG_FOLDER)

    def weights_sha256(self) -> str:
        """A hash over every weight's name, shape and bytes."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.MultiheadAttention: Attention,
    QuickGELU: InPlaceQuickGELU,
}
"""The modules of which towers are built, and those that compute the same sooner."""


def exchange(model: nn.Module, kinds: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Let each module of one of these kinds compute as another does that has the same weights."""
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]


def unit(features_ND: Tensor) -> Tensor:
    """The rows at unit length, fp32."""
    return F.normalize(features_ND.float(), dim=-1)


def text_tower(model: Any) -> Any:
    """Where open_clip keeps the text tower's parts: on the model itself, or in `model.text`."""
    return model if hasattr(model, "token_embedding") else model.text


def blocks_of(towers: Towers) -> list[Any]:
    """The attention blocks of open_clip's own towers that may be run otherwise than by its code, by
    tower: those of pictures, which have no mask, and those of packed texts, which we run."""
    visual, found = towers.model.visual, []
    if isinstance(visual, VisionTransformer):
        found.append(visual.transformer.resblocks)
    if towers.tokenizer.layout is Layout.PACKED:
        found.append(text_tower(towers.model).transformer.resblocks)
    return [blocks for blocks in found if {*map(type, blocks)} == {ResidualAttentionBlock}]


@contextmanager
def attention_for_graphs(towers: Towers) -> Iterator[None]:
    """Meanwhile these blocks attend in three products.

    The exporter writes `nn.MultiheadAttention` as twice as many nodes.
    """
    own = [(it, it.attn) for blocks in blocks_of(towers) for it in blocks]
    for it, attention in own:
        it.attn = SplitAttention(attention)
    try:
        yield
    finally:
        for it, attention in own:
            it.attn = attention


def cast(tensor: Tensor) -> Tensor:
    """In bf16, if it holds fractions."""
    return tensor.detach().bfloat16() if tensor.is_floating_point() else tensor.detach()


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
            model_cfg = _model_cfg(config)
            tokenizer = _tokenizer(config, model_cfg)
        except ClipstemError:
            raise
        except Exception as error:  # open_clip raises anything for a file that is not its own
            raise ClipstemError(why_not(config, error)) from error
    exchange(model, OURS)
    layout, why = layout_of(model)
    log.info("%s: texts are %s: %s", config.name, layout.value, why)
    spec = PictureSpec.from_open_clip(open_clip.get_model_preprocess_cfg(model))
    if config.picture_fit is not None:
        spec = replace(spec, fit=config.picture_fit)
    return Towers(model, model_cfg, spec, TextTokenizer(tokenizer, layout))


def layout_of(model: Any) -> tuple[Layout, str]:
    """The fastest way to lay out texts that is exact for this text tower, and why it is."""
    tower = text_tower(model)
    if isinstance(tower, HFTextEncoder):
        return Layout.TRIMMED, "a Hugging Face tower masks its padding, so shorter rows are exact"
    pool = getattr(model, "text_pool_type", getattr(tower, "pool_type", "none"))
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", [])
    if getattr(tower, "attn_mask", None) is None:
        return Layout.FULL, "the tower is not causal and sees its padding"
    if pool not in ("argmax", "eos") or getattr(tower, "cls_emb", None) is not None:
        return Layout.FULL, "the tower is not read out at the text's last token"
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        return Layout.FULL, "the tower's attention is not the plain one"
    return Layout.PACKED, "the tower is causal, so shared beginnings are read once"


def _open(config: ModelConfig) -> Any:
    refuse_contradictions(config)
    refuse_hostile(config)
    if config.architecture:
        return _of_architecture(config)
    given: dict[str, Any] = {"weights_only": True}
    if config.image_size is not None:
        given["force_image_size"] = config.image_size
    if text_cfg := _stored_text_cfg(config.name):
        given["text_cfg"] = text_cfg
    if config.pretrained is not None and Path(config.pretrained).is_file():
        return _with_file(config, given)
    with warnings.catch_warnings():
        # open_clip warns and goes on with the wrong activation; here it is an error.
        warnings.filterwarnings("error", "QuickGELU mismatch")
        # Without require_pretrained, weights that are missing are drawn, with a log line.
        needs_weights = config.pretrained is not None or ":" in config.name
        return open_clip.create_model(
            config.name, pretrained=config.pretrained, require_pretrained=needs_weights, **given
        )


def _of_architecture(config: ModelConfig) -> Any:
    architecture = copy.deepcopy(config.architecture)
    is_custom = architecture.pop("custom_text", False) or "hf_model_name" in architecture.get(
        "text_cfg", {}
    )
    return (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**architecture)


def _stored_text_cfg(name: str) -> dict[str, Any] | None:
    """For a folder that holds a Hugging Face text tower's own config: the text config to use it.

    open_clip itself would ask the Hub for that config by name.
    """
    if not name.startswith(LOCAL_DIR):
        return None
    folder = Path(name.removeprefix(LOCAL_DIR))
    if not (folder / TEXT_CONFIG_FOLDER).is_dir():
        return None
    text_cfg = open_clip.get_model_config(name)["text_cfg"]
    stored = str(folder / TEXT_CONFIG_FOLDER)
    return {**text_cfg, "hf_model_name": stored, "hf_model_pretrained": False}


def _with_file(config: ModelConfig, given: dict[str, Any]) -> Any:
    """An open_clip architecture with the weights of a file: open_clip's own, or OpenAI's.

    Raises:
        ClipstemError: for a TorchScript archive, which holds code.
    """
    path = Path(str(config.pretrained))
    if _is_torchscript(path):
        save = f"torch.save(torch.jit.load('{path}', 'cpu').state_dict(), '{path.stem}.weights.pt')"
        raise ClipstemError(
            f"conf key 'model.pretrained': {path} is a TorchScript archive, which holds code, not "
            f'weights alone; if you trust it, convert it: python -c "import torch; {save}"'
        )
    state = open_clip.factory.load_state_dict(str(path), weights_only=True)
    if not OPENAI_EXTRAS & state.keys():
        return open_clip.create_model(config.name, pretrained=str(path), **given)
    if not open_clip.get_model_config(config.name).get("quick_gelu"):
        raise ClipstemError(
            f"conf key 'model.name': {path} holds OpenAI's weights, which were trained with "
            f"QuickGELU, but {config.name} computes GELU; use model.name={config.name}-quickgelu"
        )
    weights = {name: value.float() for name, value in state.items() if name not in OPENAI_EXTRAS}
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder) / WEIGHTS_FILE
        save_file(weights, cleaned)
        return open_clip.create_model(config.name, pretrained=str(cleaned), **given)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _model_cfg(config: ModelConfig) -> dict[str, Any]:
    if config.architecture:
        return copy.deepcopy(config.architecture)
    model_cfg: dict[str, Any] = open_clip.get_model_config(config.name)
    if config.image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = config.image_size
    return model_cfg


def _tokenizer(config: ModelConfig, model_cfg: dict[str, Any]) -> Any:
    if not config.architecture:
        return open_clip.get_tokenizer(config.name)
    text_cfg = model_cfg["text_cfg"]
    context_length = text_cfg.get("context_length", 77)
    if name := text_cfg.get("hf_tokenizer_name"):
        kwargs = text_cfg.get("tokenizer_kwargs", {})
        return HFTokenizer(name, context_length=context_length, **kwargs)
    return open_clip.SimpleTokenizer(context_length=context_length)

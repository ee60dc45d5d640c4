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
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer, get_clean_fn
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipstem.blocks import (
    Attention,
    InPlaceQuickGELU,
    Linear,
    PrepackedPatches,
    SplitAttention,
    block,
    can_prepack,
    prepack,
)
from clipstem.config import ModelConfig
from clipstem.images import MAX_SIDE, PictureSpec
from clipstem.packing import PackedTexts, lay_out, may_look_RTT
from clipstem.pairs import PairBatch
from clipstem.question import ClipstemError
from clipstem.tokens import Layout, Tokens

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
TEXT_CONFIG_FOLDER = "text_config"  # a Hugging Face text tower's own configuration
LOCAL_DIR = "local-dir:"
WORD_END = "</w>"  # of CLIP's byte pairs
WORDS = (  # that they are made in, as in open_clip
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
TOKENIZER_KWARGS = {"clean", "strip_sep_token", "language"}  # open_clip's; transformers gets others
LARGEST = {"layers": 512, "image_size": MAX_SIDE, "context_length": 65_536, "vocab_size": 2**21}
LARGEST_OTHER = 2**17  # of widths and the like
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")  # that open_clip looks for
OPENAI_EXTRAS = {"input_resolution", "context_length", "vocab_size"}  # not weights

log = logging.getLogger(__name__)


class TextTokenizer:
    """An open_clip tokenizer as `tokens.Tokenizer`; a text is encoded once, then remembered.

    Raises:
        ClipstemError: for a tokenizer that does more than put marks around a text.
    """

    def __init__(self, tokenizer: Any, layout: Layout) -> None:
        self.context_length: int = tokenizer.context_length
        self.layout = layout
        self._tokenizer = tokenizer
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            self.before: Tokens = (tokenizer.sot_token_id,)
            self.after: Tokens = (tokenizer.eot_token_id,)
            self.padding = 0
        elif isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode:
            self.before, self.after = _marks(tokenizer)
            self.padding = int(tokenizer.tokenizer.pad_token_id)
        else:
            raise ClipstemError(
                f"the model's tokenizer is {type(tokenizer).__name__} "
                f"{getattr(tokenizer, 'tokenizer_mode', '')}; expected CLIP's byte pairs or a "
                "plain Hugging Face tokenizer"
            )
        self._remember()

    def save(self, folder: Path) -> None:
        """Write what open_clip needs to make it again; CLIP's byte pairs need nothing."""
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.save_pretrained(folder)

    @property
    def clean(self) -> str:
        """open_clip's name for what it does to a text before it becomes tokens."""
        names = ("lower", "whitespace", "canonicalize")
        return next(it for it in names if get_clean_fn(it) is self._tokenizer.clean_fn)

    def export(self, path: Path) -> None:
        """Write it as a file of the library `tokenizers`, without cleaning and marks."""
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.tokenizer.backend_tokenizer.save(str(path))
        else:
            _byte_pairs(self._tokenizer).save(str(path))

    def _encode(self, text: str) -> Tokens:
        if isinstance(self._tokenizer, HFTokenizer):
            clean = self._tokenizer.clean_fn(text)
            return tuple(self._tokenizer.tokenizer(clean, add_special_tokens=False).input_ids)
        return tuple(self._tokenizer.encode(text))

    def _remember(self) -> None:
        self.encode = lru_cache(maxsize=65_536)(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()


def _marks(tokenizer: Any) -> tuple[Tokens, Tokens]:
    """What a Hugging Face tokenizer puts before and behind every text."""
    whole = tokenizer.tokenizer("a").input_ids
    own = tokenizer.tokenizer("a", add_special_tokens=False).input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    after = tuple(whole[start + len(own) :])
    if tokenizer.strip_sep_token:  # open_clip then writes 0 in its place
        after = tuple(0 if mark == tokenizer.tokenizer.sep_token_id else mark for mark in after)
    return tuple(whole[:start]), after


def _byte_pairs(tokenizer: Any) -> Any:
    """CLIP's byte pairs as a `tokenizers.Tokenizer`: the same ids for a text that was cleaned."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    vocabulary, merges = dict(tokenizer.encoder), list(tokenizer.bpe_ranks)
    pieces_of = models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END).tokenize
    # A mark that stands in a text is one token there. Nothing else joins letters with symbols, so
    # its pieces can be merged behind all other merges; ids of what is half merged never come out.
    for mark in ("<start_of_text>", "<end_of_text>"):
        identity = vocabulary.pop(mark)
        joined, *others = [piece.value for piece in pieces_of(mark)]
        for piece in others:
            merges.append((joined, piece))
            joined += piece
            vocabulary.setdefault(joined, tokenizer.vocab_size + len(merges))
        vocabulary[joined] = identity
    fast = Fast(models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END))
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    return fast


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
        """A copy for scoring in bf16: its weights are cast once, and on a CPU prepacked."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        copied = copy.deepcopy(self, {id(it): it for it in tensors}).eval()  # shares the tensors
        if self.mean_C.is_cpu and can_prepack():
            for it in blocks_of(copied):
                prepack(it)
            if isinstance(visual := copied.model.visual, VisionTransformer):
                visual.conv1 = PrepackedPatches(visual.conv1)
        for module in copied.model.modules():
            for name, value in [*module.named_parameters(recurse=False)]:
                setattr(module, name, nn.Parameter(cast(value), requires_grad=False))
            for name, value in [*module.named_buffers(recurse=False)]:
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
    """The attention blocks of open_clip that are ours to run, or that have no mask."""
    visual, found = towers.model.visual, []
    if isinstance(visual, VisionTransformer):
        found += visual.transformer.resblocks
    if towers.tokenizer.layout is Layout.PACKED:
        found += text_tower(towers.model).transformer.resblocks
    return [it for it in found if isinstance(it.attn, nn.MultiheadAttention)]


@contextmanager
def attention_for_graphs(towers: Towers) -> Iterator[None]:
    """Meanwhile these blocks attend in three products.

    The exporter writes `nn.MultiheadAttention` as twice as many nodes.
    """
    own = [(it, it.attn) for it in blocks_of(towers)]
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
            raise ClipstemError(_why_not(config, error)) from error
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
    _refuse_contradictions(config)
    _refuse_hostile(config)
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


def _refuse_hostile(config: ModelConfig) -> None:
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
    if config.pretrained is None:
        return f"conf key 'model.name': '{config.name}' cannot be built: {first}"
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
    return (
        f"conf key 'model.pretrained': '{config.pretrained}' for {config.name} cannot be had: "
        f"{first}; expected a file of weights, or one of these tags and a network: {tags}; "
        "model.pretrained=null gives random weights"
    )


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

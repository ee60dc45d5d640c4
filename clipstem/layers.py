"""The layers of open_clip's towers: which of them learn, how fast, and with what regularisation.

Beside `towers` the only module that knows the classes of open_clip's towers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import timm
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, TextTransformer, VisionTransformer
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout as TimmPatchDropout
from torch import Tensor, nn

from clipstem.config import TuneConfig, TuneMode
from clipstem.question import ClipstemError
from clipstem.towers import text_tower

SCALES = ("logit_scale", "logit_bias")  # of no tower


# ---- how far a parameter is from its tower's end


@dataclass(frozen=True)
class _Names:
    """How a tower calls its parameters: regular expressions; what none of them matches is a norm
    or a pooling behind the last block."""

    embeddings: str
    block: str  # its group is the block's number
    head: str


_BLOCKS = r"transformer\.resblocks\.(\d+)\."
_TEXT = _Names(r"token_embedding|positional_embedding|cls_emb", _BLOCKS, r"text_projection")
_NAMES: dict[type, _Names] = {
    VisionTransformer: _Names(
        r"conv1|class_embedding|positional_embedding|ln_pre", _BLOCKS, r"proj$"
    ),
    ModifiedResNet: _Names(r"(conv|bn)\d", r"layer(\d)\.", r"attnpool"),
    CLIP: _TEXT,  # which holds its text tower's parts itself
    TextTransformer: _TEXT,
    HFTextEncoder: _Names(
        r"transformer\.(\w*embed|shared)",
        r"transformer\.(?:encoder\.)?(?:layers?|block)\.(\d+)\.",
        r"proj\.",
    ),
}


def distances(model: Any) -> dict[str, int]:
    """How far each parameter is from the end of its tower, by its name in the model.

    0 is the projection (and the logit scale), 1 the last block with the norm behind it, 2 the block
    before; the embeddings are furthest.

    Raises:
        ClipstemError: naming the tower, if its layers are not known here.
    """
    text = text_tower(model)
    prefix = "" if text is model else "text."
    found = {"visual." + name: far for name, far in _of_tower(model.visual, "picture").items()}
    own = {name: far for name, far in _of_tower(text, "text").items() if name not in SCALES}
    if text is model:
        own = {name: far for name, far in own.items() if not name.startswith("visual.")}
    found |= {prefix + name: far for name, far in own.items()}
    found |= dict.fromkeys(SCALES, 0)
    names = [name for name, _ in model.named_parameters()]
    if strangers := [name for name in names if name not in found]:
        raise ClipstemError(
            f"conf key 'tune': {type(model).__name__} has parameters outside its two towers, such "
            f"as {strangers[0]}; use tune=full without layer_decay"
        )
    return {name: found[name] for name in names}


def _of_tower(tower: Any, kind: str) -> dict[str, int]:
    if isinstance(tower, TimmModel) and hasattr(tower.trunk, "group_matcher"):
        return _of_timm(tower)
    names = next((own for known, own in _NAMES.items() if isinstance(tower, known)), None)
    if names is None:
        raise ClipstemError(
            f"conf key 'tune': the layers of the {kind} tower {_name_of(tower)} are not known; "
            "expected open_clip's VisionTransformer, ModifiedResNet, TextTransformer, a timm model "
            "or a Hugging Face text model; use tune=full without layer_decay"
        )
    block_of = {
        name: int(match[1])
        for name, _ in tower.named_parameters()
        if (match := re.match(names.block, name))
    }
    order = sorted(set(block_of.values()), reverse=True)
    found = {}
    for name, _ in tower.named_parameters():
        if re.match(names.head, name):
            found[name] = 0
        elif re.match(names.embeddings, name):
            found[name] = len(order) + 1
        else:
            found[name] = 1 + order.index(block_of[name]) if name in block_of else 1
    return found


def _of_timm(tower: TimmModel) -> dict[str, int]:
    """timm itself groups a trunk's parameters into layers, those behind the last block together.

    They are the head where open_clip puts none behind the trunk.
    """
    end = "behind every block"  # a name that no layer matches, so that the group is always there
    names = [*tower.trunk.named_parameters(), (end, None)]
    named: Any = SimpleNamespace(named_parameters=lambda: names)
    matcher = tower.trunk.group_matcher(coarse=True)
    layer_of = timm.models.group_parameters(named, matcher, reverse=True)
    last = layer_of.pop(end)
    least = 1 if _has_parameters(tower.head) else 0
    trunk = {"trunk." + name: max(least, last - layer) for name, layer in layer_of.items()}
    return trunk | {"head." + name: 0 for name, _ in tower.head.named_parameters()}


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _name_of(tower: nn.Module) -> str:
    return type(tower.trunk if isinstance(tower, TimmModel) else tower).__name__


# ---- what learns, and what is laid over it


def set_up(model: Any, tune: TuneConfig) -> None:
    """Freeze what is not to learn, and switch on what regularises the rest.

    Raises:
        ClipstemError: if the model cannot do what the config asks.
    """
    for name, parameter in model.named_parameters():
        if _is_outside(name, model):
            parameter.requires_grad_(False)  # ranks would wait for a gradient that never comes
    if tune.mode is not TuneMode.full:
        _freeze(model, tune)
    if tune.patch_dropout:
        _drop_patches(model.visual, tune.patch_dropout)
    if tune.drop_path:
        _drop_paths(model.visual, tune.drop_path)
    if tune.gradient_checkpointing:
        _checkpoint(model)


def _is_outside(name: str, model: Any) -> bool:
    """Whether no loss of ours looks at a parameter: SigLIP's bias, which softmax does not see, or
    CoCa's decoder."""
    parts = ("",) if text_tower(model) is model else ("visual.", "text.", "logit_scale")
    return name == "logit_bias" or not name.startswith(parts)


def _freeze(model: Any, tune: TuneConfig) -> None:
    if tune.mode is TuneMode.zero_shot:
        model.requires_grad_(False)
        return
    far = distances(model)
    furthest = tune.blocks if tune.mode is TuneMode.last_blocks else 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and far[name] <= furthest)
    learning = [name for name, value in model.named_parameters() if value.requires_grad]
    if not set(learning) - set(SCALES):
        raise ClipstemError(
            "conf key 'tune.mode': neither tower has a projection that could learn; "
            "use tune=last_blocks"
        )


def _drop_patches(visual: Any, share: float) -> None:
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = PatchDropout(share)
    elif isinstance(visual, TimmModel) and isinstance(
        getattr(visual.trunk, "patch_drop", None), nn.Identity | TimmPatchDropout
    ):
        visual.trunk.patch_drop = TimmPatchDropout(share, visual.trunk.num_prefix_tokens)
    else:
        raise ClipstemError(
            f"conf key 'tune.patch_dropout': the picture tower {_name_of(visual)} has no patches "
            "that could be dropped; expected a vision transformer; leave it out"
        )


def _drop_paths(visual: Any, share: float) -> None:
    """As timm itself does: from 0 in the first residual block linearly to `share` in the last."""
    modules = visual.trunk.modules() if isinstance(visual, TimmModel) else []
    branches = ("drop_path", "drop_path1", "drop_path2")
    blocks = [
        (module, names)
        for module in modules
        if (names := [name for name in branches if hasattr(module, name)])
    ]
    # An EfficientNet's blocks know of themselves whether they are residual.
    if not any(getattr(block, "has_skip", True) for block, _ in blocks):
        raise ClipstemError(
            f"conf key 'tune.drop_path': the picture tower {_name_of(visual)} has no residual "
            "branches that could be dropped; expected a timm model with drop path; leave it out"
        )
    for number, (block, names) in enumerate(blocks):
        for name in names:
            setattr(block, name, DropPath(share * number / max(1, len(blocks) - 1)))


def _checkpoint(model: Any) -> None:
    try:
        if isinstance(model.visual, ModifiedResNet):  # open_clip accepts it and does nothing
            raise AssertionError("it is convolutional")
        if isinstance(model.visual, TimmModel):  # open_clip only warns if the trunk refuses
            model.visual.trunk.set_grad_checkpointing(True)
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, ValueError) as error:
        raise ClipstemError(
            f"conf key 'tune.gradient_checkpointing': {_name_of(model.visual)} with "
            f"{_name_of(text_tower(model))} cannot do it: {error}; leave it out"
        ) from error


# ---- the head of a tower, apart from the trunk


@dataclass(frozen=True)
class Head:
    """The projection at a tower's end, which learns with `tune=head` while the trunk does not."""

    tower: Any
    attribute: str
    stand_in: Callable[[], nn.Module | None]

    def __call__(self, features: Tensor) -> Tensor:
        """Embeddings, not yet of unit length, of what comes out of the trunk."""
        head = getattr(self.tower, self.attribute)
        if head is None:
            return features
        return head(features) if isinstance(head, nn.Module) else features @ head

    @contextmanager
    def taken_off(self) -> Iterator[None]:
        """Meanwhile the tower computes what goes into its head."""
        head = getattr(self.tower, self.attribute)
        setattr(self.tower, self.attribute, self.stand_in())
        try:
            yield
        finally:
            setattr(self.tower, self.attribute, head)


_HEADS: dict[type, tuple[str, Callable[[], nn.Module | None]]] = {
    VisionTransformer: ("proj", lambda: None),
    ModifiedResNet: ("attnpool", nn.Identity),
    TimmModel: ("head", nn.Identity),
    CLIP: ("text_projection", lambda: None),
    TextTransformer: ("text_projection", lambda: None),
    HFTextEncoder: ("proj", nn.Identity),
}


def head_of(tower: Any) -> Head | None:
    """A tower's head; None where it cannot be taken off, as timm's own classifiers."""
    if isinstance(tower, TimmModel) and not _has_parameters(tower.head):
        return None
    known = (Head(tower, *head) for kind, head in _HEADS.items() if isinstance(tower, kind))
    return next(known, None)

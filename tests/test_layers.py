"""Which layers learn, how fast, and what is laid over them: told by the parameters' names."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn
from transformers import BertConfig

from clipstem import blocks, layers, towers
from clipstem.config import ModelConfig, OptimizerConfig, TuneConfig, TuneMode
from clipstem.learner import adamw
from clipstem.packing import PackedTexts, pack
from clipstem.question import ClipstemError
from clipstem.tokens import JoinedText, join
from clipstem.towers import Towers, text_tower

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "patch_size": 8, "layers": 4, "width": 32, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}


def timm_tower(name: str, proj: str = "linear") -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": "", "timm_proj": proj, "image_size": 32}


def small(vision: dict[str, Any], **top: Any) -> Towers:
    architecture = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, **top}
    return towers.create(ModelConfig(name="small", architecture=architecture))


def hugging_face() -> Any:
    """A model with a BERT of three layers as its text tower."""
    model = open_clip.CustomTextCLIP(16, vision_cfg=VIT, text_cfg=TEXT)
    shape: Any = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, num_hidden_layers=3, **shape)
    model.text = HFTextEncoder(
        "", 16, config, pooler_type="mean_pooler", proj_type="linear", pretrained=False
    )
    return model


@pytest.fixture(scope="module")
def vit() -> Towers:
    return small(VIT)


def changed(model: Towers, **tune: Any) -> Towers:
    ours = copy.deepcopy(model)
    layers.set_up(ours.model, TuneConfig(**tune))
    return ours


def learning(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


# ---------------------------------------------------------------------------- distances


@pytest.mark.parametrize(
    ("name", "far"),
    [
        ("logit_scale", 0),
        ("visual.proj", 0),
        ("text_projection", 0),
        ("visual.ln_post.weight", 1),
        ("visual.transformer.resblocks.3.attn.in_proj_weight", 1),
        ("visual.transformer.resblocks.0.mlp.c_fc.bias", 4),
        ("visual.conv1.weight", 5),
        ("visual.class_embedding", 5),
        ("visual.positional_embedding", 5),
        ("ln_final.bias", 1),
        ("transformer.resblocks.2.ln_1.weight", 1),
        ("transformer.resblocks.0.ln_1.weight", 3),
        ("token_embedding.weight", 4),
        ("positional_embedding", 4),
    ],
)
def test_a_layers_distance_is_counted_from_its_towers_end(vit: Towers, name: str, far: int) -> None:
    assert layers.distances(vit.model)[name] == far


def test_a_text_tower_of_its_own_is_counted_alike(vit: Towers) -> None:
    shared = layers.distances(vit.model)
    custom = layers.distances(small(VIT, custom_text=True).model)
    assert {name.removeprefix("text."): far for name, far in custom.items()} == shared


def test_a_resnet_is_counted_in_stages() -> None:
    far = layers.distances(small(RESNET).model)
    assert far["visual.attnpool.c_proj.weight"] == far["visual.attnpool.positional_embedding"] == 0
    assert [far[f"visual.layer{stage}.0.conv1.weight"] for stage in (1, 2, 3, 4)] == [4, 3, 2, 1]
    assert far["visual.conv1.weight"] == far["visual.bn3.bias"] == 5


@pytest.mark.parametrize(
    ("name", "first", "last", "blocks"),
    [
        ("test_vit", "patch_embed.proj.weight", "blocks.5.mlp.fc1.weight", 6),
        ("test_efficientnet", "conv_stem.weight", "conv_head.weight", 5),
    ],
)
def test_timm_groups_its_own_trunks(name: str, first: str, last: str, blocks: int) -> None:
    far = layers.distances(small(timm_tower(name)).model)
    assert far["visual.head.proj.weight"] == 0
    assert far[f"visual.trunk.{last}"] == 1
    assert far[f"visual.trunk.{first}"] == blocks + 1


def test_behind_a_trunk_without_a_projection_timms_own_end_is_the_head() -> None:
    far = layers.distances(small(timm_tower("test_vit", proj="")).model)
    assert {n for n, value in far.items() if value == 0 and "visual" in n} == {
        "visual.trunk.head.weight",
        "visual.trunk.head.bias",
    }


def test_a_hugging_face_tower_is_counted_in_its_layers() -> None:
    far = layers.distances(hugging_face())
    assert far["text.proj.weight"] == 0
    encoder = "text.transformer.encoder.layer"
    assert [far[f"{encoder}.{n}.output.dense.weight"] for n in range(3)] == [3, 2, 1]
    assert far["text.transformer.embeddings.word_embeddings.weight"] == 4


def test_an_unknown_tower_is_named(vit: Towers) -> None:
    ours = copy.deepcopy(vit)
    ours.model.visual = nn.Linear(3, 16)
    with pytest.raises(ClipstemError, match="the layers of the picture tower Linear are not known"):
        layers.set_up(ours.model, TuneConfig(mode=TuneMode.head))
    layers.set_up(ours.model, TuneConfig())  # which needs no layers


# ---------------------------------------------------------------------------- what learns


def test_full_leaves_everything_learning(vit: Towers) -> None:
    assert learning(changed(vit).model) == {name for name, _ in vit.model.named_parameters()}


def test_zero_shot_learns_nothing(vit: Towers) -> None:
    assert learning(changed(vit, mode=TuneMode.zero_shot).model) == set()


def test_head_learns_the_projections_and_the_scale(vit: Towers) -> None:
    found = learning(changed(vit, mode=TuneMode.head).model)
    assert found == {"visual.proj", "text_projection", "logit_scale"}


def test_the_last_blocks_learn_in_both_towers(vit: Towers) -> None:
    found = learning(changed(vit, mode=TuneMode.last_blocks, blocks=1).model)
    assert {name.rsplit(".", 1)[0] for name in found if "resblocks" not in name} == {
        *("visual.ln_post", "visual", "ln_final", "text_projection", "logit_scale")
    }
    blocks = {name.split(".resblocks.")[1][0] for name in found if ".resblocks." in name}
    assert blocks == {"3", "2"}  # the last of four, and the last of three
    assert sum(".resblocks." in name for name in found) == 2 * 12


def test_the_head_of_a_hugging_face_tower_learns() -> None:
    model = hugging_face()
    layers.set_up(model, TuneConfig(mode=TuneMode.head))
    assert learning(model) == {"visual.proj", "text.proj.weight", "logit_scale"}


def test_frozen_layers_keep_their_batch_statistics_and_drop_nothing() -> None:
    model = changed(small(RESNET), mode=TuneMode.last_blocks, blocks=1)
    model.train()
    visual = model.model.visual
    assert not visual.layer3.training and not visual.bn1.training
    assert visual.layer4[0].bn1.training and visual.training
    before = {name: value.clone() for name, value in visual.named_buffers()}
    model.encode_pictures(torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8))
    moved = {name for name, value in visual.named_buffers() if not value.equal(before[name])}
    assert moved and all(name.startswith("layer4.") for name in moved)


def test_layers_learn_slower_the_further_they_are_from_the_end(vit: Towers) -> None:
    optimizer = adamw(vit, OptimizerConfig(lr=0.1), layer_decay=0.5)
    name_of = {id(value): name for name, value in vit.model.named_parameters()}
    rate_of = {
        name_of[id(value)]: group["lr"]
        for group in optimizer.param_groups
        for value in group["params"]
    }
    far = layers.distances(vit.model)
    assert rate_of == {name: pytest.approx(0.1 * 0.5 ** far[name]) for name in name_of.values()}
    assert optimizer.param_groups[0]["lr"] == rate_of["visual.proj"] == 0.1
    assert min(rate_of, key=lambda name: rate_of[name]).startswith("visual.")
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


def test_what_is_frozen_is_not_in_the_optimiser(vit: Towers) -> None:
    optimizer = adamw(changed(vit, mode=TuneMode.head), OptimizerConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


# ---------------------------------------------------------------------------- regularisation

PIXELS = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("vision", "tune"),
    [
        (VIT, {"patch_dropout": 0.5}),
        (timm_tower("test_vit"), {"patch_dropout": 0.5}),
        (timm_tower("test_vit"), {"drop_path": 0.9}),
        (timm_tower("test_resnet"), {"drop_path": 0.9}),
    ],
)
def test_what_is_dropped_is_dropped_in_training_only(
    vision: dict[str, Any], tune: dict[str, Any]
) -> None:
    plain = small(vision).eval()
    for parameter in plain.model.visual.parameters():  # drawn ones make some branches give 0
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    dropping = changed(plain, **tune)
    dropping.model.visual.train()
    for module in dropping.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        assert not torch.equal(dropping.encode_pictures(PIXELS), plain.encode_pictures(PIXELS))
        assert torch.equal(dropping.eval().encode_pictures(PIXELS), plain.encode_pictures(PIXELS))
    assert dropping.weights_sha256() == plain.weights_sha256()


def test_drop_path_grows_with_depth() -> None:
    trunk = changed(small(timm_tower("test_vit")), drop_path=0.5).model.visual.trunk
    shares = [block.drop_path1.drop_prob for block in trunk.blocks]
    assert shares == [block.drop_path2.drop_prob for block in trunk.blocks]
    assert shares == pytest.approx([0.1 * number for number in range(6)])


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"drop_path": 0.1}, "'tune.drop_path': the picture tower ModifiedResNet has no residual"),
        ({"patch_dropout": 0.1}, "'tune.patch_dropout': the picture tower ModifiedResNet has no"),
        ({"gradient_checkpointing": True}, "ModifiedResNet with CLIP cannot do it: it is convol"),
    ],
)
def test_what_a_tower_does_not_have_is_refused(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipstemError, match=message):
        changed(small(RESNET), **tune)


def test_blocks_that_are_not_residual_have_no_paths_to_drop() -> None:
    with pytest.raises(ClipstemError, match="the picture tower EfficientNet has no residual"):
        changed(small(timm_tower("test_efficientnet")), drop_path=0.1)


# ---------------------------------------------------------------------------- checkpointing


def packed(texts: list[JoinedText]) -> PackedTexts:
    return PackedTexts(**{n: torch.from_numpy(v) for n, v in vars(pack(texts)).items()})


@pytest.mark.parametrize("vision", [VIT, timm_tower("test_vit")], ids=["open_clip", "timm"])
def test_checkpointing_changes_no_gradient(
    vision: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    plain_block = blocks.block

    def counted(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain_block(*given)

    monkeypatch.setattr(towers, "block", counted)
    gradients = []
    for tune in ({}, {"gradient_checkpointing": True}):
        ours = changed(small(vision), **tune)
        texts = packed(join("Which shape?", ["a circle", "a square"], ours.tokenizer))
        cosine_IU = ours.encode_pictures(PIXELS) @ ours.encode_texts(texts).T
        cosine_IU[0, 0].backward()  # type: ignore[no-untyped-call]
        gradients.append({n: p.grad for n, p in ours.model.named_parameters()})
    assert calls == 3 + 2 * 3  # three blocks of text, computed again in the second backward
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, atol=0, rtol=0, msg=name)


# ---------------------------------------------------------------------------- heads


@pytest.mark.parametrize("vision", [VIT, RESNET, timm_tower("test_efficientnet")])
@pytest.mark.parametrize("custom_text", [False, True])
def test_a_head_on_its_trunks_features_is_the_tower(
    vision: dict[str, Any], custom_text: bool
) -> None:
    ours = small(vision, custom_text=custom_text).eval()
    texts = packed(join("Which shape?", ["a circle", "a square"], ours.tokenizer))
    for tower, features, embed in (
        (ours.model.visual, partial(ours.picture_features, PIXELS), ours.encode_pictures(PIXELS)),
        (text_tower(ours.model), partial(ours.text_features, texts), ours.encode_texts(texts)),
    ):
        head = layers.head_of(tower)
        assert head is not None
        with head.taken_off():
            trunk = features()
        assert trunk.shape[1:] != embed.shape[1:]
        assert torch.equal(towers.unit(head(trunk)), embed)
    names = [name for name, _ in ours.model.named_parameters()]
    again = small(vision, custom_text=custom_text).model.named_parameters()
    assert names == [name for name, _ in again]


def test_timms_own_classifier_cannot_be_taken_off() -> None:
    assert layers.head_of(small(timm_tower("test_vit", proj="")).model.visual) is None

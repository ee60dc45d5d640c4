from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torchvision import transforms

from clipstem import blocks, towers
from clipstem.blocks import Linear, PrepackedBlock, PrepackedPatches, SplitAttention
from clipstem.clip_tokenizer import TextTokenizer
from clipstem.command import model_config
from clipstem.config import ModelConfig, PictureFit
from clipstem.packing import PackedTexts, lay_out, pack
from clipstem.question import ClipstemError
from clipstem.tokens import JoinedText, Layout, join
from clipstem.towers import Towers

QUESTION = "Which of these is true of the picture, if one looks at it for long enough?"
OPTIONS = ["a", "the second and much longer one, with a comma", "", "word " * 90, "third"]


@pytest.fixture(scope="module")
def tiny() -> Towers:
    return towers.create(model_config("tiny_vit")).eval()


def as_tensors(packed: PackedTexts) -> PackedTexts:
    return PackedTexts(**{name: torch.from_numpy(value) for name, value in vars(packed).items()})


def full_rows(texts: list[JoinedText], context: int) -> torch.Tensor:
    rows = torch.zeros(len(texts), context, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text.tokens)] = torch.tensor(text.tokens)
    return rows


@pytest.mark.parametrize("name", ["tiny", "tiny_vit"])
def test_packed_texts_equal_open_clips_full_length_rows(name: str) -> None:
    ours = towers.create(model_config(name)).eval()
    texts = join(QUESTION, OPTIONS, ours.tokenizer) + join("Another one?", ["x"], ours.tokenizer)
    with torch.inference_mode():
        packed = ours.encode_texts(as_tensors(pack(texts)))
        full = ours.model.encode_text(full_rows(texts, 77), normalize=True)
    torch.testing.assert_close(packed, full, atol=1e-6, rtol=0)


def test_packed_texts_have_open_clips_gradients(tiny: Towers) -> None:
    texts = join(QUESTION, OPTIONS[:3], tiny.tokenizer)
    probe = torch.randn(len(texts), 192, generator=torch.Generator().manual_seed(0))
    gradients = []
    for embedded in (
        tiny.encode_texts(as_tensors(pack(texts))),
        tiny.model.encode_text(full_rows(texts, 77), normalize=True),
    ):
        tiny.zero_grad()
        (embedded * probe).sum().backward()
        gradients.append(
            {n: p.grad for n, p in tiny.model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_custom_text_clip_is_packed_as_well() -> None:
    cfg = model_config("tiny_vit").architecture
    model = open_clip.model.CustomTextCLIP(**cfg).eval()
    tokenizer = TextTokenizer(open_clip.SimpleTokenizer(), Layout.PACKED)
    spec = towers.create(model_config("tiny_vit")).spec
    ours = Towers(model, cfg, spec, tokenizer)
    texts = join(QUESTION, OPTIONS, tokenizer)
    with torch.inference_mode():
        packed = ours.encode_texts(as_tensors(pack(texts)))
        full = model.encode_text(full_rows(texts, 77), normalize=True)
    torch.testing.assert_close(packed, full, atol=1e-6, rtol=0)


def test_a_saved_model_comes_back_the_same(tiny: Towers, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    again = towers.create(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert again.weights_sha256() == tiny.weights_sha256()
    assert again.spec == tiny.spec
    assert again.model_cfg == tiny.model_cfg


def test_weights_that_are_missing_are_not_drawn_at_random(tiny: Towers, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / towers.WEIGHTS_FILE).unlink()
    with pytest.raises(ClipstemError, match=r"describes a model of .* and has 0 bytes of them"):
        towers.create(ModelConfig(name=f"local-dir:{tmp_path}"))


def test_weights_that_are_cut_off_are_refused(tiny: Towers, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    weights = tmp_path / towers.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ClipstemError, match="cannot be opened"):
        towers.create(ModelConfig(name=f"local-dir:{tmp_path}"))


def test_weights_for_the_other_gelu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "weights.pt")
    with pytest.raises(ClipstemError, match=r"trained with QuickGELU.*use RN50-quickgelu"):
        towers.create(ModelConfig(name="RN50", pretrained="openai"))


def test_the_weights_hash_sees_a_single_bit(tiny: Towers) -> None:
    before = tiny.weights_sha256()
    with torch.no_grad():
        tiny.model.visual.proj.view(-1)[0] += 1e-6
        changed = tiny.weights_sha256()
        tiny.model.visual.proj.view(-1)[0] -= 1e-6
    assert changed != before


def test_drawn_weights_depend_on_the_seed_alone() -> None:
    hashes = [towers.create(model_config("tiny"), seed).weights_sha256() for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def stirred(model: Towers) -> Towers:
    """With biases, of which torch and open_clip begin many with 0."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model


def test_graphs_have_our_attention_and_the_model_its_own_again() -> None:
    tiny = stirred(towers.create(model_config("tiny_vit"))).eval()
    blocks = [*tiny.model.visual.transformer.resblocks, *tiny.model.transformer.resblocks]
    own, names = [block.attn for block in blocks], list(tiny.state_dict())
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    packed = as_tensors(pack(join(QUESTION, OPTIONS, tiny.tokenizer)))

    def both() -> list[torch.Tensor]:
        return [tiny.model.encode_image(pixels), tiny.encode_texts(packed)]

    with torch.inference_mode():
        expected = both()
        with pytest.raises(ZeroDivisionError), towers.attention_for_graphs(tiny):
            kinds = {type(block.attn) for block in blocks}
            found = both()
            raise ZeroDivisionError
    assert kinds == {SplitAttention}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert [block.attn for block in blocks] == own and list(tiny.state_dict()) == names


def test_the_pictures_fit_is_stored_with_the_weights(tmp_path: Path) -> None:
    config = model_config("tiny")
    config.picture_fit = PictureFit.pad
    towers.create(config).save(tmp_path)
    assert towers.create(ModelConfig(name=f"local-dir:{tmp_path}")).spec.fit is PictureFit.pad
    theirs = open_clip.get_model_preprocess_cfg(open_clip.create_model(f"local-dir:{tmp_path}"))
    assert theirs["resize_mode"] == "longest"


def test_another_image_size_travels_with_the_weights(tmp_path: Path) -> None:
    config = ModelConfig(name="ViT-S-32-alt", image_size=96)
    towers.create(config).save(tmp_path)
    again = towers.create(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert again.spec.size == 96
    pixels = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    assert again.eval().encode_pictures(pixels).shape == (1, 256)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="ViT-B/23"), "'ViT-B/23' is no open_clip model; did you mean 'ViT-B-"),
        (
            replace(model_config("tiny"), pretrained="openai"),
            "'model.pretrained': openai has no effect on model.architecture of 'tiny'",
        ),
        (replace(model_config("tiny"), image_size=96), "'model.image_size': 96 has no effect"),
        (
            ModelConfig(name="local-dir:x", pretrained="openai"),
            "'model.pretrained': openai has no effect, because 'local-dir:x' brings its own",
        ),
        (ModelConfig(name="ViT-B-23"), "'ViT-B-23' is no open_clip model; did you mean 'ViT-B-32'"),
        (ModelConfig(name="local-dir:nowhere"), "'local-dir:nowhere' cannot be opened"),
        (
            ModelConfig(name="ViT-B-32", pretrained="no-such-tag"),
            "'model.pretrained': 'no-such-tag' for ViT-B-32 cannot be had.*these tags.*openai",
        ),
        (
            ModelConfig(name="mine", architecture={"embed_dim": 8}),
            "'model.architecture' is no open_clip model",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_named(config: ModelConfig, message: str) -> None:
    with pytest.raises(ClipstemError, match=message):
        towers.create(config)


def test_a_tensor_with_two_names_is_saved_under_both(tmp_path: Path) -> None:
    made = towers.create(model_config("tiny_vit"))
    made.model.register_parameter("twin", made.model.token_embedding.weight)
    made.save(tmp_path)
    stored = load_file(tmp_path / towers.WEIGHTS_FILE)
    assert torch.equal(stored["twin"], stored["token_embedding.weight"])


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VIT = {"image_size": 40, "patch_size": 16, "layers": 3, "width": 64, "head_width": 32}
SEEING_PADDING = {"text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True}
TIMM = {"timm_pool": "", "timm_proj": "linear", "image_size": 32}


WITH_BF16 = pytest.param(
    True,
    marks=pytest.mark.skipif(
        not blocks.onednn_has_bf16(), reason="oneDNN has no bf16 here, so nothing can be prepacked"
    ),
)


@pytest.mark.parametrize("has_bf16", [WITH_BF16, False])
@pytest.mark.parametrize(
    ("given", "prepacked"),  # what of its transformers is open_clip's and may be changed
    [
        ({"vision_cfg": VIT}, {"visual", "text"}),
        ({"vision_cfg": VIT, "quick_gelu": True}, {"visual", "text"}),
        (
            {"vision_cfg": {**VIT, "ls_init_value": 0.1, "attentional_pool": True}},
            {"visual", "text"},
        ),
        ({"vision_cfg": VIT, **SEEING_PADDING}, {"visual"}),
        ({"vision_cfg": {**VIT, "qk_norm": True}}, {"text"}),
        ({"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}, {"text"}),
        ({"vision_cfg": {**TIMM, "timm_model_name": "test_efficientnet"}}, {"text"}),
        ({"vision_cfg": {**TIMM, "timm_model_name": "test_vit"}, **SEEING_PADDING}, set()),
    ],
    ids=[
        "vit",
        "quick",
        "pooler",
        "seeing padding",
        "its own attention",
        "resnet",
        "convolutions",
        "timm alone",
    ],
)
def test_a_copy_in_bf16_gives_nearly_the_same_and_leaves_the_weights(
    given: dict[str, Any], prepacked: set[str], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "onednn_has_bf16", lambda: has_bf16)
    architecture = {"embed_dim": 32, "text_cfg": TEXT, **given}
    ours = stirred(towers.create(ModelConfig(name="small", architecture=architecture))).train()
    before = {name: (value, value.clone()) for name, value in ours.model.state_dict().items()}
    half = ours.in_bf16()
    assert ours.training and not half.training
    kinds = {it.dtype for it in half.model.parameters() if it.is_floating_point()}
    assert kinds == {torch.float32 if has_bf16 else torch.bfloat16}
    after = ours.model.state_dict()
    assert list(after) == list(before)
    for name, (value, copy) in before.items():
        assert after[name].data_ptr() == value.data_ptr() and torch.equal(value, copy), name
    packed = [name for name, it in half.model.named_modules() if isinstance(it, PrepackedBlock)]
    found = {"visual" if name.startswith("visual.") else "text" for name in packed}
    assert found == (prepacked if has_bf16 else set())
    has_patches = isinstance(getattr(half.model.visual, "conv1", None), PrepackedPatches)
    assert has_patches is (
        has_bf16 and isinstance(ours.model.visual, open_clip.transformer.VisionTransformer)
    )
    assert not has_bf16 or Linear not in {type(it) for it in half.model.modules()}

    ours.eval()
    pixels = torch.randint(0, 256, (3, *[ours.spec.size] * 2, 3), dtype=torch.uint8)
    joined = join("Which one?", ["a circle", "both"], ours.tokenizer)
    texts = as_tensors(lay_out(joined, ours.tokenizer))
    with torch.inference_mode():
        embeddings = [
            (model.encode_pictures(pixels), model.encode_texts(texts)) for model in (ours, half)
        ]
    for exact, rough in zip(*embeddings, strict=True):
        assert rough.dtype is torch.float32
        assert (exact * rough).sum(-1).min() > 0.999


def test_pixels_are_normalised_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, and rows of another length than columns."""
    ours = towers.create(model_config("tiny_vit"))
    seen = []
    monkeypatch.setattr(ours.model, "encode_image", lambda pixels: seen.append(pixels))
    pixels = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    ours.picture_features(pixels)
    to_tensor = transforms.ToTensor()
    normalise = transforms.Normalize(ours.spec.mean, ours.spec.std)
    for one, found in zip(pixels, seen[0], strict=True):
        assert torch.equal(found, normalise(to_tensor(one.numpy())))

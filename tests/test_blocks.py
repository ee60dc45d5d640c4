from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import strategies as st
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.profiler import profile

from clipstem import blocks, towers
from clipstem.command import model_config

INTEL, AMD = "vendor_id\t: GenuineIntel\n", "vendor_id\t: AuthenticAMD\n"


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def either_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors of either kind: both libraries are there on all of them."""
    monkeypatch.setattr(blocks, "MKL_IS_SLOW", request.param)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def with_gradients(compute: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """The result, and a gradient for each tensor given."""
    leaves = [value.clone().requires_grad_() for value in given]
    result = compute(*leaves)
    torch.autograd.backward(result.square().sum())
    return [result.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


@pytest.mark.usefixtures("either_library")
@pytest.mark.parametrize(
    "shape", [(400, 64), (2, 200, 64), (3, 5, 40, 64), (321, 64), (320, 64), (5, 64), (0, 64)]
)
def test_linear_is_torchs_with_its_gradients(shape: tuple[int, ...]) -> None:
    """Large enough for oneDNN or not."""
    given = [random(*shape), random(11, 64) / 8, random(11)]
    found, expected = with_gradients(blocks.linear, *given), with_gradients(F.linear, *given)
    assert len(found) == 4 and found[0].shape == (*shape[:-1], 11)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("either_library")
def test_linear_takes_what_is_turned_and_needs_no_bias() -> None:
    x, weight = random(64, 40, 9).transpose(0, 2), random(5, 64)
    found = blocks.linear(x, weight, None)
    torch.testing.assert_close(found, F.linear(x, weight), atol=1e-5, rtol=1e-4)
    assert found.is_contiguous()


@drawn(seed=st.integers(0, 2**32), threads=st.sampled_from([1, 2]))
def test_onednn_multiplies_and_to_the_same_bits_every_time(seed: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(shape, generator=generator) for shape in ((7, 60, 64), (32, 64), (32,))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch, profile() as seen:
            patch.setattr(blocks, "MKL_IS_SLOW", True)
            twice = [with_gradients(blocks.linear, *given) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(once, again) for once, again in zip(*twice, strict=True))
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls["aten::mkldnn_convolution"] == 2


def test_few_numbers_bf16_and_graphs_keep_the_plain_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "MKL_IS_SLOW", True)
    x, layer = random(400, 64), blocks.Linear(64, 3)
    assert blocks.takes_onednn(x, layer.weight)
    assert not blocks.takes_onednn(x[:320], layer.weight)
    assert not blocks.takes_onednn(x.bfloat16(), layer.weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not blocks.takes_onednn(x, layer.weight)
    operations = {str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes}
    assert "aten.linear.default" in operations and not any("conv" in name for name in operations)


@pytest.mark.usefixtures("either_library")
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_with_its_gradients(learning: bool, masked: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 4, batch_first=True).train(learning)
    ours = blocks.Attention(64, 4, batch_first=True).train(learning)
    ours.load_state_dict(theirs.state_dict())
    mask = torch.full((50, 50), -torch.inf).triu(1) if masked else None
    found = [
        with_gradients(lambda x, m=m: m(x, x, x, need_weights=False, attn_mask=mask)[0], x)
        for x in [random(7, 50, 64)]
        for m in (ours, theirs)
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("either_library")
def test_other_attention_is_left_to_torch() -> None:
    """To other rows, with weights asked for, with padding, or with a mask of another kind."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 4, batch_first=True)
    ours = blocks.Attention(64, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, y = random(7, 50, 64), random(7, 2, 64)
    padding = torch.tensor([[False, True]] * 7)
    behind = torch.ones(50, 50, dtype=torch.bool).triu(1)
    of_each_head = torch.zeros(7 * 4, 50, 50).masked_fill(behind, -torch.inf)
    quiet: dict[str, Any] = {"need_weights": False}
    cases: list[tuple[Tensor, dict[str, Any]]] = [
        (y, {}),
        (y, {"key_padding_mask": padding}),
        (x, {}),
        (x, {"attn_mask": behind} | quiet),
        (x, {"attn_mask": of_each_head} | quiet),
    ]
    for rows, more in cases:
        found, expected = ours(x, rows, rows, **more), theirs(x, rows, rows, **more)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    nobody = torch.zeros(7, 50, dtype=torch.bool)  # is padding, said by place and not by name
    torch.testing.assert_close(ours(x, x, x, nobody, False), theirs(x, x, x, nobody, False))


@pytest.mark.parametrize("learning", [False, True])
def test_quick_gelu_is_open_clips_to_the_last_bit(learning: bool) -> None:
    found = []
    for make in (QuickGELU, blocks.InPlaceQuickGELU):
        x = random(4, 7, 32).requires_grad_()
        with torch.set_grad_enabled(learning):
            y = make()(x)
        if learning:
            y.square().sum().backward()
        found.append([y, x, *([x.grad] if learning else [])])
    for expected, ours in zip(*found, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", ["tiny", "tiny_vit"])
def test_a_model_is_made_of_ours_and_open_clip_sees_its_own(name: str) -> None:
    config = model_config(name)
    config.architecture = {**config.architecture, "quick_gelu": True}
    made = towers.create(replace(config))
    kinds = {type(module) for module in made.model.modules()}
    assert {blocks.Linear, blocks.Attention, blocks.InPlaceQuickGELU} <= kinds
    assert not kinds & towers.OURS.keys()
    names = list(made.model.state_dict())
    towers.exchange(made.model, {ours: theirs for theirs, ours in towers.OURS.items()})
    assert {type(module) for module in made.model.modules()} >= towers.OURS.keys()
    assert list(made.model.state_dict()) == names


@pytest.mark.parametrize(
    ("capability", "info", "is_slow"),
    [
        ("AVX512", AMD, True),
        ("AVX512", INTEL, False),
        ("AVX2", AMD, False),
        ("AVX512", "nobody says\n", False),
        ("AVX512", None, False),
    ],
)
def test_mkl_is_slow_where_it_passes_over_avx512(
    capability: str,
    info: str | None,
    is_slow: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(blocks, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert blocks.mkl_is_slow() is is_slow


def half(*shape: int) -> Tensor:
    return random(*shape).bfloat16()


needs_bf16 = pytest.mark.skipif(
    not blocks.onednn_has_bf16(), reason="oneDNN has no bf16 here, so nothing can be prepacked"
)


@needs_bf16
@pytest.mark.parametrize("shape", [(2, 50, 64), (3000, 64), (1, 64), (0, 64)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_layer_is_the_layer(shape: tuple[int, ...], biased: bool) -> None:
    weight, bias = random(40, 64) / 8, random(40) if biased else None
    expected = F.linear(half(*shape).float(), weight, bias)
    given = nn.Linear(64, 40, biased)
    given.weight = nn.Parameter(weight)
    if bias is not None:
        given.bias = nn.Parameter(bias)
    layer = blocks.PrepackedLinear(given)
    assert layer.weight is given.weight and layer.bias is given.bias
    with torch.inference_mode():
        for x in (half(*shape), half(*shape).float()):
            found = layer(x)
            assert found.dtype is x.dtype
            torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=2e-2)


@needs_bf16
@pytest.mark.parametrize("size", [(64, 96), (70, 99)], ids=["whole", "with a rest"])
@pytest.mark.parametrize("patch", [(32, 32), (16, 32)])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_patches_are_the_convolution_of_normalised_pixels(
    size: tuple[int, int], patch: tuple[int, int], biased: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 24, patch, patch, bias=biased).requires_grad_(False)
    mean_C, std_C = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    bytes_ICHW = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    bytes_ICHW[0] = 255  # white, on which rounding errors of weights don't average out
    found = blocks.PrepackedPatches(convolution, mean_C, std_C)(bytes_ICHW)
    normalised = (bytes_ICHW / 255 - mean_C[:, None, None]) / std_C[:, None, None]
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, convolution(normalised), atol=2e-2, rtol=2e-2)


def test_attention_in_bf16_is_torchs() -> None:
    draws = [torch.Generator().manual_seed(number) for number in range(3)]
    q, k, v = (torch.randn((3, 2, 20, 32), generator=draw) for draw in draws)
    found = blocks.attention_in_bf16(q.bfloat16(), k.bfloat16(), v.bfloat16())
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)


def test_long_rows_attend_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (half(5, 2, 20, 32) for _ in range(3))
    whole, sizes = blocks.attention_in_bf16(q, k, v), []
    product = torch.baddbmm

    def seen(*given: Any, **more: Any) -> Tensor:
        sizes.append(len(given[1]))
        return product(*given, **more)

    monkeypatch.setattr(torch, "baddbmm", seen)
    for bytes_of, expected in ((2, [4, 4, 2]), (0.5, [2] * 5)):  # of so many rows' pairs
        sizes.clear()
        monkeypatch.setattr(blocks, "ATTENTION_BYTES", int(bytes_of * 2 * 2 * 20**2))
        found = blocks.attention_in_bf16(q, k, v)
        assert sizes == expected
        torch.testing.assert_close(found, whole, atol=1e-2, rtol=1e-2)


@needs_bf16
@pytest.mark.parametrize(("masked", "calls"), [(False, 1), (True, 0)])
def test_masked_rows_attend_by_torchs_own(
    masked: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_products, seen = blocks.attention_in_bf16, []

    def counted(*given: Any) -> Tensor:
        seen.append(given)
        return by_products(*given)

    monkeypatch.setattr(blocks, "attention_in_bf16", counted)
    torch.manual_seed(0)
    attention = blocks.Attention(64, 4, batch_first=True)
    may_look = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril() if masked else None
    with torch.inference_mode():
        expected = blocks.attend(attention, half(2, 20, 64).float(), may_look)
        found = blocks.attend(attention.bfloat16(), half(2, 20, 64), may_look)
    assert len(seen) == calls
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


@needs_bf16
@pytest.mark.parametrize(
    ("activation", "fused"),
    [
        (blocks.InPlaceQuickGELU(), True),
        (nn.GELU(), True),
        (nn.GELU("tanh"), False),
        (nn.SiLU(), False),
    ],
)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_packed_block_is_the_block(
    activation: nn.Module, fused: bool, scale: float | None
) -> None:
    torch.manual_seed(0)
    given = ResidualAttentionBlock(
        64, 4, ls_init_value=scale, act_layer=lambda: activation, batch_first=True
    ).eval()
    for parameter in given.parameters():
        if parameter.dim() == 1:  # biases, which torch begins with 0
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    may_look = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    x = random(2, 20, 64)
    packed = blocks.PrepackedBlock(copy.deepcopy(given))
    with torch.inference_mode():
        expected = blocks.block(given, x, may_look)
        found = blocks.block(packed, x, may_look)
        alone = packed(x)  # as a picture tower runs it, without a mask
    assert found.dtype is alone.dtype is torch.float32
    torch.testing.assert_close(alone, given(x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(x, random(2, 20, 64))
    assert isinstance(packed.gelu, nn.Identity) is fused
    kinds = {type(it) for it in packed.modules()}
    assert blocks.PrepackedLinear in kinds
    assert not kinds & {nn.Linear, blocks.Linear, nn.MultiheadAttention, blocks.Attention}


class TiedLayers(nn.Module):
    """As some towers are, it multiplies with a layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = blocks.Linear(64, 64), blocks.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.called(x), self.read.weight, self.read.bias)


@needs_bf16
def test_layers_are_prepacked_where_they_are_and_keep_their_weights() -> None:
    torch.manual_seed(0)
    given = nn.Sequential(TiedLayers(), nn.LayerNorm(64), blocks.Linear(64, 5)).eval()
    expected = given(random(7, 64)).detach()
    packed = copy.deepcopy(given)
    blocks.prepack(packed)
    kinds = [type(it) for it in packed.modules()]
    assert kinds.count(blocks.PrepackedLinear) == 3 and blocks.Linear not in kinds
    with torch.inference_mode():
        found = packed(random(7, 64))
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import strategies as st
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

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
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 3, 7), (2, 3, 4, 7), (0, 7)])
def test_linear_is_torchs_with_its_gradients(shape: tuple[int, ...]) -> None:
    given = [random(*shape), random(11, 7), random(11)]
    found, expected = with_gradients(blocks.linear, *given), with_gradients(F.linear, *given)
    assert len(found) == 4 and found[0].shape == (*shape[:-1], 11)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("either_library")
def test_linear_needs_no_bias_and_no_memory_of_its_own() -> None:
    x, weight = random(7, 4, 3).transpose(0, 2), random(5, 7)
    torch.testing.assert_close(blocks.linear(x, weight, None), F.linear(x, weight))
    assert blocks.linear(x, weight, None).is_contiguous()


@drawn(seed=st.integers(0, 2**32))
def test_onednns_products_are_the_same_every_time(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(shape, generator=generator) for shape in ((3, 50, 64), (32, 64), (32,))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MKL_IS_SLOW", True)
        twice = [with_gradients(blocks.linear, *given) for _ in range(2)]
    assert all(torch.equal(once, again) for once, again in zip(*twice, strict=True))


def test_bf16_and_graphs_keep_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MKL_IS_SLOW", True)
    x, layer = random(2, 7), blocks.Linear(7, 3)
    assert blocks.takes_onednn(x, layer.weight)
    assert not blocks.takes_onednn(x.bfloat16(), layer.weight.bfloat16())
    operations = {str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes}
    assert "aten.linear.default" in operations and not any("conv" in name for name in operations)


@pytest.mark.usefixtures("either_library")
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_with_its_gradients(learning: bool, masked: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).train(learning)
    ours = blocks.Attention(16, 4, batch_first=True).train(learning)
    ours.load_state_dict(theirs.state_dict())
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    found = [
        with_gradients(lambda x, m=m: m(x, x, x, need_weights=False, attn_mask=mask)[0], x)
        for x in [random(3, 5, 16)]
        for m in (ours, theirs)
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("either_library")
def test_other_attention_is_left_to_torch() -> None:
    """To other rows, with weights asked for, or with padding."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    ours = blocks.Attention(16, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, y = random(3, 5, 16), random(3, 2, 16)
    padding = torch.tensor([[False, True]] * 3)
    for rows, more in ((y, {}), (y, {"key_padding_mask": padding}), (x, {})):
        found = ours(x, rows, rows, **more)
        assert found[1] is not None
        torch.testing.assert_close(found, theirs(x, rows, rows, **more))


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
    [("AVX512", AMD, True), ("AVX512", INTEL, False), ("AVX2", AMD, False)],
)
def test_mkl_is_slow_where_it_passes_over_avx512(
    capability: str, info: str, is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(blocks, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert blocks.mkl_is_slow() is is_slow
